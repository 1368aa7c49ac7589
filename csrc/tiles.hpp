// Products of up to sixteen rows of bfloat16 at once, on processors with tiles: eight registers of 16 rows of 64 bytes. Where a processor
// has them, its vectors multiply pairs more slowly than floats, so that they are more than a way to be quicker.
#pragma once

#include <algorithm>
#include <cstdint>

#include "run.hpp"
#include "vector.hpp"

namespace RECURRA_ISA {

// The tiles of a thread, as long as this lives: six for sums, and one for each factor.
class Tiles {
 public:
  static constexpr long ROWS = 16, WORDS = 16;  // of a tile, at most; a word is a pair

#if defined(__AMX_BF16__)
  static bool here() { return recurra::has_tiles(); }

  // With sums of so many rows; of none, there are no tiles.
  explicit Tiles(long rows) : wanted_(rows > 0) {
    if (!wanted_) return;
    Shapes shapes;
    std::fill_n(shapes.rows, 7, static_cast<uint8_t>(rows));
    asm volatile("" : : "r"(&shapes) : "memory");  // the compiler does not know that all of it is read,
    _tile_loadconfig(&shapes);
    asm volatile("" : : "r"(&shapes) : "memory");  // nor until when
  }
  Tiles(const Tiles&) = delete;
  ~Tiles() {
    if (wanted_) _tile_release();
  }

  // out [rows, Z * W], rows `out_row` floats apart = start + a [rows, words] times the panel [words, Z * W]: `words` a multiple of WORDS,
  // rows of a `a_row` words apart, and those of start `start_row` floats, which may be 0.
  template <int Z>
  static void product(const float* a, long a_row, const float* panel, long words, const float* start, long start_row, float* out, long out_row) {
    static_assert(Z <= 6, "sums have six tiles");
    constexpr long bytes = sizeof(float), next = Z * W * bytes;
    asm volatile("" ::: "memory");  // the compiler does not know that tiles are loaded from memory
#define RECURRA_EACH_TILE(work) work(0) work(1) work(2) work(3) work(4) work(5)
#define RECURRA_START(z) if constexpr (Z > z) { _tile_loadd(z, start + z * W, start_row * bytes); }
#define RECURRA_ADD(z) if constexpr (Z > z) { _tile_loadd(7, panel + z * W, next); _tile_dpbf16ps(z, 6, 7); }
#define RECURRA_GIVE(z) if constexpr (Z > z) { _tile_stored(z, out + z * W, out_row * bytes); }
    RECURRA_EACH_TILE(RECURRA_START)
    for (long k = 0; k < words; k += WORDS, panel += WORDS * Z * W) {
      _tile_loadd(6, a + k, a_row * bytes);
      RECURRA_EACH_TILE(RECURRA_ADD)
    }
    RECURRA_EACH_TILE(RECURRA_GIVE)
#undef RECURRA_EACH_TILE
#undef RECURRA_START
#undef RECURRA_ADD
#undef RECURRA_GIVE
  }

 private:
  // As the processor is told of them: which palette, where to begin, bytes of a row of each tile, rows of each tile.
  struct alignas(64) Shapes {
    uint8_t palette = 1, begin = 0, none[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  const bool wanted_;
#else
  static bool here() { return false; }
  explicit Tiles(long) {}
  template <int Z>
  static void product(const float*, long, const float*, long, const float*, long, float*, long) {}
#endif
};

}  // namespace RECURRA_ISA
