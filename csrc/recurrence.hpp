// One template for all cells: packed weights, one register tile, the time loop, and the way back.
//
// A register tile holds R rows of the batch times Z vectors of output; with Z = gates * vectors it holds every gate of
// some units, so that the gate arithmetic happens where the product ends and nothing but states (and, in training, gates)
// is written. Weights are packed by panels of such units: [panel][k][gate][unit].
//
// The sums of a row are added up in the same order whatever tile, thread or split it falls into: the bits of a result
// depend on the sizes of the problem only.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <numeric>
#include <type_traits>
#include <vector>

#include "cells.hpp"
#include "run.hpp"
#include "tiles.hpp"

namespace RECURRA_ISA {

using recurra::Barrier;
using recurra::Problem;

// Rows of a tile of Z vectors, at most: its sums, a column of weights and one value have their places in the registers.
template <int Z>
constexpr int ROWS = RECURRA_SUMS / Z < 1 ? 1 : RECURRA_SUMS / Z > 12 ? 12 : RECURRA_SUMS / Z;
constexpr long CHUNK_ROWS = 96;     // of a projection or a product of gradients: what stays in cache
constexpr long BACK_ROWS = 192;
constexpr long STACK_ROWS = 12;     // of a chunk in a stack, where the layer above waits for it
constexpr long GROUP_ROWS = 16;     // of a group at most, and of one in backward at least a quarter of that
constexpr long MOST_GROUPS = 16;    // in backward, where each has sums as large as the weights
constexpr long SHARED_BYTES = 2 << 20;  // recurrent weights of which every core reads all: more are shared out among the cores

template <int N>
using Int = std::integral_constant<int, N>;

// f(Int<rows>) for rows from 1 to Most.
template <int Most, class F>
RECURRA_INLINE void with_rows(long rows, F&& f) {
  if constexpr (Most > 1) {
    if (rows < Most) return with_rows<Most - 1>(rows, f);
  }
  f(Int<Most>{});
}

// f(first, Int<count>) over [0, n) in tiles of nearly equal height.
template <int Most, class F>
RECURRA_INLINE void in_tiles(long n, F&& f) {
  long tiles = (n + Most - 1) / Most;
  for (long i = 0, at = 0; i < tiles; i++) {
    long height = (n - at) / (tiles - i);
    with_rows<Most>(height, [&](auto R) { f(at, R); });
    at += height;
  }
}

// The numbers of a product, some to a word of 32 bits. Sums, states and the arithmetic of the gates are floats with all of them.
struct Floats {
  static constexpr long in_a_word = 1;
  static RECURRA_INLINE vf everywhere(float word) { return all(word); }
  static RECURRA_INLINE vf add(vf sum, vf a, vf b) { return sum + a * b; }
  static RECURRA_INLINE vf words(const float* from, long left) { return load_part(from, left); }
};

#if defined(__AVX512BF16__)
// Two bfloat16, the first in the low half: the products of both are added to a sum, as floats.
struct Pairs {
  static constexpr long in_a_word = 2;
  static RECURRA_INLINE vf everywhere(float word) { return _mm512_set1_ps(word); }
  static RECURRA_INLINE vf add(vf sum, vf a, vf b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
  static RECURRA_INLINE vf words(const float* from, long left) {
    return (vf)_mm512_cvtne2ps_pbh(load_part(from + W, left - W), load_part(from, left));
  }
  // Zeros past the first `left`: what stands there is multiplied by zero, but may be infinite.
  static RECURRA_INLINE void store(float* words, vf v, long left) {
    if (left < W) v = _mm512_maskz_mov_ps((1 << left) - 1, v);
    _mm256_storeu_si256((__m256i*)words, (__m256i)_mm512_cvtneps_pbh(v));
  }
};
#endif

// sum[m][z] += value(m, k) * b[k][z], k from 0 to K; row k of b begins `row` words after the one before.
template <class Numbers = Floats, int R, int Z, class Value>
RECURRA_INLINE void accumulate(vf (&sum)[R][Z], Value&& value, const float* b, long row, long K) {
  vf s[R][Z];
#pragma GCC unroll 16
  for (int m = 0; m < R; m++)
#pragma GCC unroll 16
    for (int z = 0; z < Z; z++) s[m][z] = sum[m][z];
  for (long k = 0; k < K; k++, b += row) {
    vf column[Z];
#pragma GCC unroll 16
    for (int z = 0; z < Z; z++) column[z] = load(b + z * W);
#pragma GCC unroll 16
    for (int m = 0; m < R; m++) {
      vf one = Numbers::everywhere(value(m, k));
#pragma GCC unroll 16
      for (int z = 0; z < Z; z++) s[m][z] = Numbers::add(s[m][z], one, column[z]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < R; m++)
#pragma GCC unroll 16
    for (int z = 0; z < Z; z++) sum[m][z] = s[m][z];
}

// sum[m][z] += a[m][k] * b[k][z], k over K words; b is a packed panel.
template <class Numbers = Floats, int R, int Z>
RECURRA_INLINE void multiply(vf (&sum)[R][Z], const float* const* a, const float* b, long K) {
  accumulate<Numbers>(sum, [&](int m, long k) { return a[m][k]; }, b, Z * W, K);
}

// The same for a single row, with the sum in several parts: one part alone would wait for its own last addition. Only for
// problems of one row, since the order of adding differs from that of `multiply`.
template <class Numbers = Floats, int Z>
RECURRA_INLINE void multiply_alone(vf (&sum)[1][Z], const float* a, const float* b, long K) {
  constexpr int P = Z >= 6 ? 2 : Z >= 3 ? 3 : 4;
  vf s[P][Z] = {};
  long k = 0;
  for (; k + P <= K; k += P, b += P * Z * W)
#pragma GCC unroll 16
    for (int part = 0; part < P; part++) {
      vf value = Numbers::everywhere(a[k + part]);
#pragma GCC unroll 16
      for (int z = 0; z < Z; z++) s[part][z] = Numbers::add(s[part][z], value, load(b + (part * Z + z) * W));
    }
  for (; k < K; k++, b += Z * W)
    for (int z = 0; z < Z; z++) s[0][z] = Numbers::add(s[0][z], Numbers::everywhere(a[k]), load(b + z * W));
#pragma GCC unroll 16
  for (int z = 0; z < Z; z++) {
    vf total = s[0][z];
#pragma GCC unroll 16
    for (int part = 1; part < P; part++) total += s[part][z];
    sum[0][z] += total;
  }
}

// The product of a tile, which may be all there is to the problem.
template <class Numbers = Floats, int R, int Z>
RECURRA_INLINE void multiply(bool alone, vf (&sum)[R][Z], const float* const* a, const float* b, long K) {
  if constexpr (R == 1) {
    if (alone) return multiply_alone<Numbers>(sum, a[0], b, K);
  }
  multiply<Numbers>(sum, a, b, K);
}

// Rows become columns: blocks of 1, 2, 4, ... change places across the diagonal.
template <int S = 1>
RECURRA_INLINE void transpose(vf (&square)[W]) {
  if constexpr (S < W) {
    vi low, high;
    for (int i = 0; i < W; i++) low[i] = i & S ? i - S + W : i, high[i] = i & S ? i + W : i + S;
#pragma GCC unroll 16
    for (int i = 0; i < W; i++)
      if (!(i & S)) {
        vf a = square[i], b = square[i + S];
        square[i] = shuffle(a, b, low), square[i + S] = shuffle(a, b, high);
      }
    transpose<S * 2>(square);
  }
}

constexpr long ceil_div(long a, long b) { return (a + b - 1) / b; }

// How many words hold K numbers.
template <class Numbers>
constexpr long words_of(long K) {
  return ceil_div(K, Numbers::in_a_word);
}

// The first `count` of W rows of K numbers as the columns of a vector: word k of all of them at to + k * stride.
template <class Numbers = Floats>
inline void pack_vector(const float* from, long count, long K, float* to, long stride) {
  const long words = words_of<Numbers>(K);
  for (long k = 0; k < words; k += W) {
    const long at = k * Numbers::in_a_word;
    vf square[W];
    for (int j = 0; j < W; j++) square[j] = j < count ? Numbers::words(from + j * K + at, K - at) : vf{};
    transpose(square);
    for (int j = 0; j < W && k + j < words; j++) store(to + (k + j) * stride, square[j]);
  }
}

// A row of K numbers as words, in whole vectors.
template <class Numbers>
inline void pack_row(const float* from, long K, float* to) {
  for (long at = 0; at < K; at += W * Numbers::in_a_word) store(to + at / Numbers::in_a_word, Numbers::words(from + at, K - at));
}

// Memory that starts on a cache line, from the pool of the calling thread.
class Buffer {
 public:
  explicit Buffer(long floats = 0) : block_(recurra::take_block(floats * sizeof(float))) {}
  Buffer(Buffer&& other) noexcept : block_(other.block_) { other.block_ = {}; }
  Buffer(const Buffer&) = delete;
  ~Buffer() { recurra::give_block(block_); }
  float* at(long i = 0) { return static_cast<float*>(block_.start) + i; }
  void zero(long floats) { std::memset(block_.start, 0, floats * sizeof(float)); }

 private:
  recurra::Block block_;
};

// A share of [0, n) for one of the threads.
struct Share {
  long begin, end;
  Share(long n, int thread, int threads) : begin(n * thread / threads), end(n * (thread + 1) / threads) {}
};

// [panel][k][N * W] from [K, columns]: as it lies, cut into panels.
template <int N>
void pack_plain(const float* weight, long K, long columns, float* packed, Share share) {
  for (long panel = share.begin; panel < share.end; panel++)
    for (long k = 0; k < K; k++) {
      long n = std::min<long>(N * W, columns - panel * N * W);
      float* to = packed + (panel * K + k) * N * W;
      std::memcpy(to, weight + k * columns + panel * N * W, n * sizeof(float));
      std::fill(to + n, to + N * W, 0.0f);
    }
}

// For `count` rows and one panel of N vectors, of which `left` numbers are wanted: out[m] = the sum over terms of a[m] + offsets[term]
// times its K rows of the panel, or that added to what is there. It is the same function for all cells: compiled once.
template <int N>
void product(bool alone, bool add, long count, const float* const* a, const long* offsets, int terms, float* const* out, long left,
             const float* packed, long K) {
  in_tiles<ROWS<N>>(count, [&](long at, auto R) {
    vf sum[R][N] = {};
    const float* from[R];
    if (add)
      for (int m = 0; m < R; m++)
        for (int z = 0; z < N; z++) sum[m][z] = load_part(out[at + m] + z * W, left - z * W);
    for (int term = 0; term < terms; term++) {
      for (int m = 0; m < R; m++) from[m] = a[at + m] + offsets[term];
      multiply(alone, sum, from, packed + term * K * N * W, K);
    }
    for (int m = 0; m < R; m++)
      for (int z = 0; z < N; z++) store_part(out[at + m] + z * W, sum[m][z], left - z * W);
  });
}

// Of each row of x the product with a panel of Z vectors and its bias, `width` floats from one to the next.
template <int Z, class Numbers = Floats>
void project_panel(const std::vector<const float*>& x, const float* w, const float* bias, long words, float* out, long width) {
  in_tiles<ROWS<Z>>(x.size(), [&](long at, auto R) {
    vf sum[R][Z];
    for (int m = 0; m < R; m++)
      for (int z = 0; z < Z; z++) sum[m][z] = load(bias + z * W);
    multiply<Numbers>(sum, x.data() + at, w, words);
    for (int m = 0; m < R; m++)
      for (int z = 0; z < Z; z++) store(out + (at + m) * width + z * W, sum[m][z]);
  });
}

// out += d' x over `total` rows in their order, the rows `mine` of it, added up by themselves first.
template <int N>
void outer(const float* d, long d_row, const float* x, long x_row, long total, float* out, Share mine) {
  for (long panel = 0; panel < x_row / (N * W); panel++)
    in_tiles<ROWS<N>>(mine.end - mine.begin, [&](long at, auto R) {
      vf sum[R][N] = {};
      const float* gradient = d + mine.begin + at;
      accumulate(sum, [&](int m, long r) { return gradient[r * d_row + m]; }, x + panel * N * W, x_row, total);
      float* to = out + (mine.begin + at) * x_row + panel * N * W;
      for (int m = 0; m < R; m++)
        for (int z = 0; z < N; z++) store(to + m * x_row + z * W, load(to + m * x_row + z * W) + sum[m][z]);
    });
}

// Pointers to the rows of a product.
struct Places {
  std::vector<const float*> in;
  std::vector<float*> out;
  explicit Places(long n) : in(n), out(n) {}
};

// How the rows of a problem go through time: longest first, so that the rows still running are always the first ones.
struct Rows {
  std::vector<long> row, length, running;  // by place: the row and its length; by step: how many rows still run

  // Of a Problem or a Following.
  template <class Asked>
  explicit Rows(const Asked& p) : row(p.batch), length(p.batch), running(p.steps) {
    std::iota(row.begin(), row.end(), 0L);
    auto steps_of = [&](long r) { return p.lengths ? (long)p.lengths[r] : (long)p.steps; };
    if (p.lengths) std::stable_sort(row.begin(), row.end(), [&](long a, long b) { return steps_of(a) > steps_of(b); });
    for (long i = 0; i < p.batch; i++) length[i] = steps_of(row[i]);
    for (long s = 0, n = p.batch; s < p.steps; s++) {
      while (n > 0 && length[n - 1] <= s) n--;
      running[s] = n;
    }
  }

  // Where step s of place i lies in [batch, steps].
  long at(const Problem& p, long i, long s) const { return row[i] * p.steps + (p.reverse ? length[i] - 1 - s : s); }
};

// Some rows that go through time together: the places first, first + stride, ... Groups do not wait for each other.
struct Group {
  long first, stride;
  long place(long n) const { return first + n * stride; }
  long count(long running) const { return running <= first ? 0 : (running - first + stride - 1) / stride; }
};

// The threads that run a group together, sharing its units; `rank` is the place of the calling thread.
struct Crew {
  int rank, size;
  Barrier& barrier;
  void wait() const { barrier.wait(); }
  Share share(long n) const { return Share(n, rank, size); }
};

// All threads in crews, and the groups that the crews take one after the other.
class Crews {
 public:
  Crews(int threads, long groups)
      : groups(groups), threads_(threads), crews_(std::min<long>(threads, groups)), taken_(crews_), next_(crews_) {
    for (int crew = 0; crew < crews_; crew++) barriers_.push_back(std::make_unique<Barrier>(size(crew)));
  }
  const long groups;
  int smallest() const { return threads_ / crews_; }
  int size(int crew) const { return (threads_ - crew + crews_ - 1) / crews_; }

  template <class F>
  void each(int thread, F&& f) {
    const int number = thread % crews_;
    const Crew crew{thread / crews_, size(number), *barriers_[number]};
    // The first is settled, so that backward finds in its cache what forward left there.
    for (long group = number; group < groups; group = taken_[number]) {
      f(crew, Group{group, groups}, group);
      crew.wait();
      if (crew.rank == 0) taken_[number] = next_++;
      crew.wait();
    }
  }

 private:
  const int threads_, crews_;
  std::vector<std::unique_ptr<Barrier>> barriers_;
  std::vector<long> taken_;
  std::atomic<long> next_;
};

// Panel: vectors of a panel of a plain product, fewer for few units, so that little of a panel is empty. Numbers: what the products
// of forward are made of.
template <class Cell, int Panel = 4, class Numbers = Floats>
struct Recurrence {
  static constexpr int G = Cell::gates, V = Cell::vectors, Z = G * V, U = V * W;
  static constexpr int P = Cell::params, D = G + Cell::apart + P;  // blocks of gradients of sums, and of the units' own
  static constexpr int N = Panel;
  static constexpr bool narrowed = Numbers::in_a_word > 1;  // what is multiplied is not the floats that come in and go out

  static constexpr float NOTHING[Z * W] = {};

  // The block that stands on the side of the state for gate g.
  static constexpr int state_side(int g) { return Cell::apart && g == G - 1 ? G : g; }

  const Problem& p;
  const Rows rows;
  const long B, T, I, H, panels, padded;  // `padded` units
  const int threads;
  const bool tiled;      // whether products are of tiles
  const long tile_rows;  // of each in a step, or 0

  explicit Recurrence(const Problem& problem)
      : p(problem), rows(problem), B(p.batch), T(p.steps), I(p.inputs), H(p.units), panels(ceil_div(H, U)),
        padded(panels * U), threads(std::max(1, p.threads)), tiled(by_tiles()), tile_rows(tiled ? std::min(Tiles::ROWS, B) : 0) {}

  static bool by_tiles() { return narrowed && Tiles::here(); }

  // Rows of a group where groups of `rows` are wished for: with weights that are too large for one core, or with few rows,
  // all of them.
  long rows_of_group(long rows) const { return B > recurra::MOST_STACKED_ROWS && recurrent_bytes(H) <= SHARED_BYTES ? rows : std::max(1L, B); }
  static long recurrent_bytes(long units) { return G * units * units * static_cast<long>(sizeof(float)); }

  // Floats that forward keeps for backward: for each step and place the gates, and c after the step.
  static int64_t saved_floats(int64_t batch, int64_t steps, int64_t units) {
    return batch * steps * ceil_div(units, U) * U * (Cell::saved + Cell::fields - 1);
  }
  float* kept(long s, long i, long panel) const { return p.saved + ((s * B + i) * panels + panel) * Cell::saved * U; }
  float* kept_c(long s, long i) const { return p.saved + T * B * padded * Cell::saved + (s * B + i) * padded; }

  // --- packing ---

  // Words of a panel for K numbers: of tiles whole ones, the last filled with zeros.
  static long panel_words(long K) { return by_tiles() ? row_words(K) : words_of<Numbers>(K); }

  // [panel][word][gate][unit] from [gate * units, K], in squares of W by W.
  void pack(const float* weight, long K, float* packed, Share share) const {
    const long words = panel_words(K);
    for (long panel = share.begin; panel < share.end; panel++) {
      float* const to = packed + panel * words * Z * W;
      for (int z = 0; z < Z; z++) {
        const long unit = panel * U + z % V * W, count = std::max(0L, std::min<long>(W, H - unit));
        pack_vector<Numbers>(weight + (z / V * H + unit) * K, count, K, to + z * W, Z * W);
      }
      std::fill(to + words_of<Numbers>(K) * Z * W, to + words * Z * W, 0.0f);
    }
  }

  void pack_bias(const float* from, float* packed) const {
    for (long panel = 0; panel < panels; panel++)
      for (int g = 0; g < G; g++)
        for (int j = 0; j < U; j++) {
          long unit = panel * U + j;
          packed[panel * Z * W + g * U + j] = unit < H ? from[g * H + unit] : 0.0f;
        }
  }

  // With sums that stay apart the last block of the second bias belongs to the state, and else all of it to the input.
  void pack_biases(Buffer& bias, Buffer& state_bias) const {
    pack_bias(p.b_ih, bias.at());
    pack_bias(p.b_hh, state_bias.at());
    for (long panel = 0; panel < panels; panel++)
      for (int j = 0; j < (Cell::apart ? G - 1 : G) * U; j++)
        bias.at(panel * Z * W)[j] += state_bias.at(panel * Z * W)[j];
  }

  // --- forward ---

  // All memory is taken before the threads start: what throws must not throw in one of them.
  struct Forward {
    struct Local {
      Buffer sums;
      std::vector<const float*> x;
      std::vector<long> start;
      std::vector<Buffer> inputs;  // of a chunk as words, where they are not floats
      Buffer products;             // of a step with a panel, where they are of tiles
    };
    const long rows;  // of a group
    const long steps;  // of a chunk
    Buffer w, r, bias, state_bias, c;
    std::vector<Buffer> h;  // as words, where they are not floats: before steps of even and of odd numbers
    Barrier barrier;
    Crews crews;
    std::vector<Local> local;
    Forward(const Recurrence& q)
        : rows(q.rows_of_group(std::min(GROUP_ROWS, ceil_div(q.B, q.threads)))), steps(std::max(1L, (q.p.done ? STACK_ROWS : CHUNK_ROWS) / rows)),
          w(q.panels * q.panel_words(q.I) * Z * W), r(q.panels * q.panel_words(q.H) * Z * W), bias(q.panels * Z * W),
          state_bias(q.panels * Z * W), c(q.B * q.padded), barrier(q.threads), crews(q.threads, ceil_div(q.B, rows)) {
      const long width = ceil_div(q.panels, crews.smallest()) * Z * W;
      const long chunk = steps * rows + (q.tiled ? Tiles::ROWS : 0), over = q.tile_rows;  // with what the last tile reads and writes beyond
      for (int thread = 0; thread < q.threads; thread++) {
        local.push_back({Buffer(chunk * width), {}, std::vector<long>(steps + 1), {}, Buffer(q.tiled * (rows + over) * Z * W)});
        local.back().x.reserve(steps * rows);
        if (narrowed) local.back().inputs.emplace_back(chunk * row_words(q.I));
      }
      for (int parity = 0; narrowed && parity < 2; parity++) {
        const long words = (q.B + over * crews.groups) * row_words(q.padded);
        h.emplace_back(words);
        if (q.tiled) h.back().zero(words);
      }
    }
  };

  // From a row of K numbers as words to the next.
  static long row_words(long K) { return ceil_div(K, W * Numbers::in_a_word) * W; }

  const float* h_before(long i, long s) const {
    return s ? p.y + rows.at(p, i, s - 1) * H : p.h0 + rows.row[i] * H;
  }

  void forward(Forward& f, int thread) const {
    pack(p.w_ih, I, f.w.at(), Share(panels, thread, threads));
    pack(p.w_hh, H, f.r.at(), Share(panels, thread, threads));
    if (thread == 0) pack_biases(f.bias, f.state_bias);
    f.barrier.wait();
    f.crews.each(thread, [&](const Crew& crew, Group group, long) { forward_group(f, f.local[thread], crew, group); });
  }

  void forward_group(Forward& f, typename Forward::Local& local, const Crew& crew, Group group) const {
    for (long n = crew.rank; n < group.count(B); n += crew.size) {
      const long i = group.place(n);
      if (Cell::fields > 1) {
        std::memcpy(f.c.at(i * padded), p.c0 + rows.row[i] * H, H * sizeof(float));
        std::fill(f.c.at(i * padded + H), f.c.at((i + 1) * padded), 0.0f);
      }
      if constexpr (narrowed) pack_row<Numbers>(p.h0 + rows.row[i] * H, H, f.h[0].at(i * row_words(padded)));
      for (long t = rows.length[i]; t < T; t++) std::memset(p.y + (rows.row[i] * T + t) * H, 0, H * sizeof(float));
    }
    crew.wait();
    const Share mine = crew.share(panels);
    const long width = (mine.end - mine.begin) * Z * W;
    std::vector<const float*>& x = local.x;
    for (long s0 = 0; s0 < T; s0 += f.steps) {
      const long s1 = std::min(T, s0 + f.steps);
      if (p.below) recurra::wait_for(*p.below, s1);
      x.clear();
      for (long s = s0; s < s1; s++) {
        local.start[s - s0] = x.size();
        for (long n = 0; n < group.count(rows.running[s]); n++) x.push_back(p.x + rows.at(p, group.place(n), s) * I);
      }
      if constexpr (narrowed)
        for (size_t n = 0; n < x.size(); n++) {
          float* words = local.inputs[0].at(n * row_words(I));
          pack_row<Numbers>(x[n], I, words);
          x[n] = words;
        }
      project(f, x, mine, local.sums.at(), width);
      const Tiles tiles(tile_rows);
      for (long s = s0; s < s1; s++) {
        const bool back = s & 1;  // walking the panels to and fro keeps the last of them in cache
        const long count = group.count(rows.running[s]);
        for (long n = mine.begin; n < mine.end; n++) {
          long panel = back ? mine.end - 1 - (n - mine.begin) : n;
          const float* of_panel = local.sums.at(local.start[s - s0] * width + (panel - mine.begin) * Z * W);
          if (tiled) recur_by_tiles(f, s, group, count, panel, local.products.at());
          in_tiles<ROWS<Z>>(count, [&](long at, auto R) {
            step<R>(f, s, group.place(at), group.stride, panel, of_panel + at * width, width, local.products.at(at * Z * W));
          });
        }
        crew.wait();
      }
      if (p.done) p.done->store(s1, std::memory_order_release);
    }
    for (long n = crew.rank; n < group.count(B); n += crew.size) {
      const long i = group.place(n);
      std::memcpy(p.h_last + rows.row[i] * H, h_before(i, rows.length[i]), H * sizeof(float));
      if (Cell::fields > 1) std::memcpy(p.c_last + rows.row[i] * H, f.c.at(i * padded), H * sizeof(float));
    }
  }

  void project(Forward& f, const std::vector<const float*>& x, Share mine, float* sums, long width) const {
    const long words = panel_words(I);
    const Tiles tiles(tiled ? Tiles::ROWS : 0);
    for (long panel = mine.begin; panel < mine.end; panel++) {
      const float *w = f.w.at(panel * words * Z * W), *bias = f.bias.at(panel * Z * W);
      float* to = sums + (panel - mine.begin) * Z * W;
      if (!tiled) {
        project_panel<Z, Numbers>(x, w, bias, words, to, width);
        continue;
      }
      for (long at = 0; at < static_cast<long>(x.size()); at += Tiles::ROWS)
        Tiles::product<Z>(x[at], row_words(I), w, words, bias, 0, to + at * width, width);
    }
  }

  // The products of the rows of a group with a panel of the recurrent weights, in their order.
  void recur_by_tiles(Forward& f, long s, Group group, long count, long panel, float* products) const {
    const long words = panel_words(H), row = row_words(padded);
    for (long at = 0; at < count; at += tile_rows)
      Tiles::product<Z>(f.h[s & 1].at(group.place(at) * row), group.stride * row, f.r.at(panel * words * Z * W), words, NOTHING, 0,
                        products + at * Z * W, Z * W);
  }

  // The new state of the units of a panel in R rows: in(m, z) is the sum of the input, add(sum) adds the product of the state before,
  // which is h[m], and c(m, unit, left) its second field, own(k, unit, left) what belongs to the units; what comes out goes to
  // give(m, v, unit, left, state, kept), `left` the units there are from `unit` on.
  template <int R, class In, class Add, class C, class Own, class Give>
  static RECURRA_INLINE void tile(Int<R>, long panel, long H, const float* bias, const float* const* h, In&& in, Add&& add, C&& c, Own&& own,
                                  Give&& give) {
    vf sum[R][Z];
    for (int m = 0; m < R; m++)
      for (int v = 0; v < V; v++) {
        vf x[G], b[G], from[G];
        for (int g = 0; g < G; g++) x[g] = in(m, g * V + v), b[g] = load(bias + (g * V + v) * W);
        Cell::start(from, x, b);
        for (int g = 0; g < G; g++) sum[m][g * V + v] = from[g];
      }
    add(sum);
    for (int m = 0; m < R; m++)
      for (int v = 0; v < V; v++) {
        const long unit = panel * U + v * W, left = H - unit;
        if (left <= 0) break;
        vf of[G], x[G], mine[P + 1], keep[Cell::saved + 1];
        for (int g = 0; g < G; g++) of[g] = sum[m][g * V + v], x[g] = in(m, g * V + v);
        for (int k = 0; k < P; k++) mine[k] = own(k, unit, left);
        Unit before{Cell::sees_h ? load_part(h[m] + unit, left) : vf{}, Cell::fields > 1 ? c(m, unit, left) : vf{}};
        Unit after = Cell::forward(of, x, before, mine, keep);
        give(m, v, unit, left, after, keep);
      }
  }

  template <int R>
  static RECURRA_INLINE void add_products(vf (&sum)[R][Z], const float* products) {
    for (int m = 0; m < R; m++)
      for (int z = 0; z < Z; z++) sum[m][z] += load(products + (m * Z + z) * W);
  }

  // `products`, of tiles: of these rows with this panel.
  template <int R>
  RECURRA_INLINE void step(Forward& f, long s, long place, long stride, long panel, const float* sums, long width, const float* products) const {
    const float *h[R], *words[R];
    for (int m = 0; m < R; m++) {
      h[m] = words[m] = h_before(place + m * stride, s);
      if constexpr (narrowed) words[m] = f.h[s & 1].at((place + m * stride) * row_words(padded));
    }
    tile(
        Int<R>{}, panel, H, f.state_bias.at(panel * Z * W), h, [&](int m, int z) { return load(sums + m * width + z * W); },
        [&](vf(&sum)[R][Z]) {
          if (!narrowed || !tiled)
            return multiply<Numbers>(B == 1, sum, words, f.r.at(panel * words_of<Numbers>(H) * Z * W), words_of<Numbers>(H));
          add_products(sum, products);
        },
        [&](int m, long unit, long) { return load(f.c.at((place + m * stride) * padded + unit)); },
        [&](int k, long unit, long left) { return load_part(p.own[k] + unit, left); },
        [&](int m, int v, long unit, long left, Unit after, const vf* keep) {
          const long i = place + m * stride;
          store_part(p.y + rows.at(p, i, s) * H + unit, after.h, left);
          if constexpr (narrowed) Numbers::store(f.h[~s & 1].at(i * row_words(padded)) + unit / Numbers::in_a_word, after.h, left);
          if (Cell::fields > 1) store(f.c.at(i * padded + unit), after.c);
          if (!p.saved) return;
          for (int k = 0; k < Cell::saved; k++) store(kept(s, i, panel) + (k * V + v) * W, keep[k]);
          if (Cell::fields > 1) store(kept_c(s, i) + unit, after.c);
        });
  }

  // --- backward ---

  // Gradients of the sums of a chunk of steps, a row for each step and place, and the factors that they are multiplied by.
  struct Chunk {
    Buffer d, x, h;
    std::vector<long> start;  // by step: the first of its rows
    long total = 0;           // of rows
  };

  // Sums over all rows of a group. Who adds up which rows in which order is settled by the sizes, whatever the threads.
  struct Sums {
    Buffer dw, dr, db;
  };

  struct Backward {
    const long rows;  // of a group
    const long steps;  // of a chunk
    const long in_panels, in_padded, h_panels, wide, width;  // wide: units, a multiple of every panel
    Buffer w, r, dh, dc;
    Barrier barrier;
    Crews crews;
    std::vector<Chunk> chunks;             // by crew
    std::vector<Sums> sums;                // by group
    std::vector<Places> places;  // by thread
    Backward(const Recurrence& q)
        : rows(q.rows_of_group(std::max(ceil_div(q.B, MOST_GROUPS), std::clamp(ceil_div(q.B, 4), GROUP_ROWS / 4, GROUP_ROWS)))),
          steps(std::max(1L, BACK_ROWS / rows)), in_panels(ceil_div(q.I, N * W)), in_padded(in_panels * N * W),
          h_panels(ceil_div(q.H, N * W)), wide(h_panels * N * W), width(D * wide + 16), w(in_panels * G * q.H * N * W),
          r(h_panels * G * q.H * N * W), dh(q.B * wide), dc(q.B * wide), barrier(q.threads),
          crews(q.threads, ceil_div(q.B, rows)), places(q.threads, Places(steps * rows)) {
      for (int crew = 0; crew < std::min<long>(q.threads, crews.groups); crew++)
        chunks.push_back({Buffer(steps * rows * width), Buffer(steps * rows * in_padded), Buffer(steps * rows * wide),
                          std::vector<long>(steps + 1)});
      for (long group = 0; group < crews.groups; group++)
        sums.push_back({Buffer(G * q.H * in_padded), Buffer(G * q.H * wide), Buffer(D * wide)});
    }
  };

  void backward(Backward& b, int thread) const {
    pack_plain<N>(p.w_ih, G * H, I, b.w.at(), Share(b.in_panels, thread, threads));
    pack_plain<N>(p.w_hh, G * H, H, b.r.at(), Share(b.h_panels, thread, threads));
    b.barrier.wait();
    b.crews.each(thread, [&](const Crew& crew, Group group, long number) {
      back_group(b, b.chunks[thread % b.chunks.size()], b.sums[number], b.places[thread], crew, group);
    });
    b.barrier.wait();
    give(b, thread);
  }

  void back_group(Backward& b, Chunk& chunk, Sums& sums, Places& places, const Crew& crew, Group group) const {
    for (long n = crew.rank; n < group.count(B); n += crew.size) {
      const long i = group.place(n);
      take(b, p.dh_last, i, b.dh);
      if (Cell::fields > 1) take(b, p.dc_last, i, b.dc);
      if (p.dx)
        for (long t = rows.length[i]; t < T; t++) std::memset(p.dx + (rows.row[i] * T + t) * I, 0, I * sizeof(float));
    }
    if (crew.rank == 0) sums.dw.zero(G * H * b.in_padded), sums.dr.zero(G * H * b.wide), sums.db.zero(D * b.wide);
    crew.wait();
    for (long s1 = T; s1 > 0;) {
      const long s0 = std::max(0L, s1 - b.steps);
      if (crew.rank == 0) {
        chunk.total = 0;
        for (long s = s0; s < s1; s++) chunk.start[s - s0] = chunk.total, chunk.total += group.count(rows.running[s]);
      }
      crew.wait();
      for (long s = s1 - 1; s >= s0; s--) back_step(b, chunk, places, crew, group, s, chunk.start[s - s0]);
      crew.wait();
      gather(b, chunk, crew, group, s0, s1);
      if (p.dx) back_inputs(b, chunk, places, crew, group, s0, s1);
      crew.wait();
      back_weights(b, chunk, sums, crew);
      crew.wait();
      s1 = s0;
    }
    for (long n = crew.rank; n < group.count(B); n += crew.size) {
      const long i = group.place(n);
      std::memcpy(p.dh0 + rows.row[i] * H, b.dh.at(i * b.wide), H * sizeof(float));
      if (Cell::fields > 1) std::memcpy(p.dc0 + rows.row[i] * H, b.dc.at(i * b.wide), H * sizeof(float));
    }
  }

  void take(Backward& b, const float* from, long i, Buffer& into) const {
    float* to = into.at(i * b.wide);
    if (from) std::memcpy(to, from + rows.row[i] * H, H * sizeof(float));
    std::fill(to + (from ? H : 0), to + b.wide, 0.0f);
  }

  // The gradients of the sums of one step, and with them the gradient of the state before it.
  void back_step(Backward& b, Chunk& chunk, Places& places, const Crew& crew, Group group, long s, long start) const {
    const long count = group.count(rows.running[s]);
    const Share units = crew.share(b.h_panels);
    for (long n = 0; n < count; n++) back_gates(b, s, group.place(n), chunk.d.at((start + n) * b.width), units);
    crew.wait();
    long offsets[G];
    for (int g = 0; g < G; g++) offsets[g] = state_side(g) * b.wide;
    for (long panel = units.begin; panel < units.end; panel++) {
      for (long n = 0; n < count; n++)
        places.in[n] = chunk.d.at((start + n) * b.width), places.out[n] = b.dh.at(group.place(n) * b.wide + panel * N * W);
      product<N>(B == 1, true, count, places.in.data(), offsets, G, places.out.data(), N * W, b.r.at(panel * G * H * N * W), H);
    }
  }

  void back_gates(Backward& b, long s, long i, float* d, Share units) const {
    const long HP = b.wide;
    const float *dy = p.dy ? p.dy + rows.at(p, i, s) * H : nullptr, *y = p.y + rows.at(p, i, s) * H, *h = h_before(i, s);
    for (long unit = units.begin * N * W; unit < units.end * N * W; unit += W) {
      const long left = H - unit, panel = unit / U, v = unit % U / W;
      if (left <= 0) {
        for (int k = 0; k < D; k++) store(d + k * HP + unit, vf{});
        continue;
      }
      vf kept_[Cell::saved + 1], mine[P + 1], sum[D];
      for (int k = 0; k < P; k++) mine[k] = load_part(p.own[k] + unit, left);
      for (int k = 0; k < Cell::saved; k++) kept_[k] = load(kept(s, i, panel) + (k * V + v) * W);
      Unit after{load_part(y + unit, left), vf{}}, before{load_part(h + unit, left), vf{}};
      Unit grad{load(b.dh.at(i * HP + unit)), vf{}};
      if (dy) grad.h += load_part(dy + unit, left);
      if (Cell::fields > 1) {
        after.c = load(kept_c(s, i) + unit);
        before.c = s ? load(kept_c(s - 1, i) + unit) : load_part(p.c0 + rows.row[i] * H + unit, left);
        grad.c = load(b.dc.at(i * HP + unit));
      }
      Cell::backward(sum, kept_, after, before, mine, grad);
      for (int k = 0; k < D; k++) store(d + k * HP + unit, sum[k]);
      store(b.dh.at(i * HP + unit), grad.h);
      if (Cell::fields > 1) store(b.dc.at(i * HP + unit), grad.c);
    }
  }

  void gather(Backward& b, Chunk& chunk, const Crew& crew, Group group, long s0, long s1) const {
    for (long s = s0; s < s1; s++)
      for (long n = crew.rank; n < group.count(rows.running[s]); n += crew.size) {
        const long place = chunk.start[s - s0] + n, i = group.place(n);
        float *x = chunk.x.at(place * b.in_padded), *h = chunk.h.at(place * b.wide);
        std::memcpy(x, p.x + rows.at(p, i, s) * I, I * sizeof(float));
        std::fill(x + I, x + b.in_padded, 0.0f);
        std::memcpy(h, h_before(i, s), H * sizeof(float));
        std::fill(h + H, h + b.wide, 0.0f);
      }
  }

  void back_inputs(Backward& b, Chunk& chunk, Places& places, const Crew& crew, Group group, long s0, long s1) const {
    const Share mine = crew.share(chunk.total);
    long offsets[G];
    for (int g = 0; g < G; g++) offsets[g] = g * b.wide;
    for (long panel = 0; panel < b.in_panels; panel++) {
      for (long s = s0; s < s1; s++)
        for (long n = 0; n < group.count(rows.running[s]); n++) {
          const long row = chunk.start[s - s0] + n;
          places.in[row] = chunk.d.at(row * b.width), places.out[row] = p.dx + rows.at(p, group.place(n), s) * I + panel * N * W;
        }
      product<N>(false, false, mine.end - mine.begin, &places.in[mine.begin], offsets, G, &places.out[mine.begin], I - panel * N * W,
                 b.w.at(panel * G * H * N * W), H);
    }
  }

  // dW += d' x, dR += d' h, db += d, each thread its own rows of the results, over all rows of the chunk in order. A chunk is
  // added up by itself first: the error of a long sum grows with the parts that are added one by one.
  void back_weights(Backward& b, Chunk& chunk, Sums& sums, const Crew& crew) const {
    for (int g = 0; g < G; g++) {
      const Share mine = crew.share(H);
      const float *d = chunk.d.at(g * b.wide), *d_state = chunk.d.at(state_side(g) * b.wide);
      outer<N>(d, b.width, chunk.x.at(), b.in_padded, chunk.total, sums.dw.at(g * H * b.in_padded), mine);
      outer<N>(d_state, b.width, chunk.h.at(), b.wide, chunk.total, sums.dr.at(g * H * b.wide), mine);
    }
    const Share vectors = crew.share(D * b.wide / W);
    for (long v = vectors.begin; v < vectors.end; v++) {
      vf part[8] = {}, sum = {};
      for (long r = 0; r < chunk.total; r++) part[r % 8] += load(chunk.d.at(r * b.width + v * W));
      for (const vf& one : part) sum += one;
      store(sums.db.at(v * W), load(sums.db.at(v * W)) + sum);
    }
  }

  // From the padded sums of the groups, added in their order, to the arrays of the caller.
  void give(Backward& b, int thread) const {
    const Share mine(G * H, thread, threads);
    for (long row = mine.begin; row < mine.end; row++) {
      add_up(b, &Sums::dw, row * b.in_padded, I, p.dw_ih + row * I);
      add_up(b, &Sums::dr, row * b.wide, H, p.dw_hh + row * H);
    }
    if (thread == 0)
      for (int g = 0; g < G; g++) {
        add_up(b, &Sums::db, g * b.wide, H, p.db_ih + g * H);
        add_up(b, &Sums::db, state_side(g) * b.wide, H, p.db_hh + g * H);
      }
    if (thread == 0)
      for (int k = 0; k < P; k++) add_up(b, &Sums::db, (D - P + k) * b.wide, H, p.down[k]);
  }

  static void add_up(Backward& b, Buffer Sums::*part, long at, long n, float* to) {
    std::memcpy(to, (b.sums[0].*part).at(at), n * sizeof(float));
    for (size_t group = 1; group < b.sums.size(); group++) {
      const float* more = (b.sums[group].*part).at(at);
      for (long k = 0; k < n; k++) to[k] += more[k];
    }
  }
};

// One step at a time with weights that are packed once: for a stream, whose weights do not change.
template <class Cell, class Numbers>
struct Step final : recurra::Stepper {
  using Q = Recurrence<Cell, 4, Numbers>;
  static constexpr int Z = Q::Z, U = Q::U;
  const long I, H, panels;
  const int threads;
  const bool tiled;
  Buffer w, r, bias, state_bias, own;

  explicit Step(const Problem& p)
      : I(p.inputs), H(p.units), panels(ceil_div(H, U)), threads(p.threads), tiled(Q::by_tiles()), w(panels * Q::panel_words(I) * Z * W),
        r(panels * Q::panel_words(H) * Z * W), bias(panels * Z * W), state_bias(panels * Z * W), own(Cell::params * H) {
    Q q(p);
    for (int k = 0; k < Cell::params; k++) std::memcpy(own.at(k * H), p.own[k], H * sizeof(float));
    q.pack(p.w_ih, I, w.at(), Share(panels, 0, 1));
    q.pack(p.w_hh, H, r.at(), Share(panels, 0, 1));
    q.pack_biases(bias, state_bias);
  }

  void step(int64_t batch, const float* x, const float* h, const float* c, float* h_out, float* c_out) override {
    std::vector<Buffer> words, products;  // x and h as words, where they are not floats; by thread: of tiles, of x and of h
    Given given{x, I, h, H};
    const long tile_rows = tiled ? std::min<long>(Tiles::ROWS, batch) : 0, most = ceil_div(batch, std::max(1L, tile_rows)) * tile_rows;
    if constexpr (Q::narrowed) {
      const long held = std::max<long>(batch, most);
      words.emplace_back(held * Q::row_words(I)), words.emplace_back(held * Q::row_words(H));
      given = {words[0].at(), Q::row_words(I), words[1].at(), Q::row_words(H)};
      for (long m = 0; m < batch; m++) {
        pack_row<Numbers>(x + m * I, I, words[0].at(m * given.x_row));
        pack_row<Numbers>(h + m * H, H, words[1].at(m * given.h_row));
      }
    }
    const int now = recurra::threads_now(threads);
    for (int thread = 0; tiled && thread < now; thread++) products.emplace_back(2 * most * Z * W);
    recurra::on_threads(now, [&](int thread) {
      const Share mine(panels, thread, now);
      const Tiles tiles(tile_rows);
      for (long panel = mine.begin; panel < mine.end; panel++) {
        float* of_x = tiled ? products[thread].at() : nullptr;
        for (long at = 0; at < most; at += tile_rows) by_tiles(at, panel, given, of_x + at * Z * W, of_x + (most + at) * Z * W);
        in_tiles<ROWS<Z>>(batch, [&](long at, auto R) {
          const float *in = tiled ? of_x + at * Z * W : nullptr, *of_h = tiled ? of_x + (most + at) * Z * W : nullptr;
          rows<R>(batch == 1, at, panel, given, in, of_h, h, c, h_out, c_out);
        });
      }
    });
  }

  // The rows that are multiplied, and how far it is from one to the next.
  struct Given {
    const float* x;
    long x_row;
    const float* h;
    long h_row;
  };

  void by_tiles(long at, long panel, const Given& given, float* of_x, float* of_h) {
    const long x_words = Q::panel_words(I), h_words = Q::panel_words(H);
    Tiles::product<Z>(given.x + at * given.x_row, given.x_row, w.at(panel * x_words * Z * W), x_words, bias.at(panel * Z * W), 0, of_x, Z * W);
    Tiles::product<Z>(given.h + at * given.h_row, given.h_row, r.at(panel * h_words * Z * W), h_words, Q::NOTHING, 0, of_h, Z * W);
  }

  // `of_x` and `of_h`, where products are of tiles: of these rows with this panel.
  template <int R>
  RECURRA_INLINE void rows(bool alone, long at, long panel, const Given& given, const float* of_x, const float* of_h, const float* h,
                           const float* c, float* h_out, float* c_out) {
    const float *xs[R], *hs[R], *words[R];
    vf in[R][Z];
    for (int m = 0; m < R; m++) {
      xs[m] = given.x + (at + m) * given.x_row, words[m] = given.h + (at + m) * given.h_row, hs[m] = h + (at + m) * H;
      for (int z = 0; z < Z; z++) in[m][z] = load(Q::narrowed && tiled ? of_x + (m * Z + z) * W : bias.at((panel * Z + z) * W));
    }
    if (!Q::narrowed || !tiled) multiply<Numbers>(alone, in, xs, w.at(panel * words_of<Numbers>(I) * Z * W), words_of<Numbers>(I));
    Q::tile(
        Int<R>{}, panel, H, state_bias.at(panel * Z * W), hs, [&](int m, int z) { return in[m][z]; },
        [&](vf(&sum)[R][Z]) {
          if (!Q::narrowed || !tiled)
            return multiply<Numbers>(alone, sum, words, r.at(panel * words_of<Numbers>(H) * Z * W), words_of<Numbers>(H));
          Q::add_products(sum, of_h);
        },
        [&](int m, long unit, long left) { return load_part(c + (at + m) * H + unit, left); },
        [&](int k, long unit, long left) { return load_part(own.at(k * H + unit), left); },
        [&](int m, int, long unit, long left, Unit after, const vf*) {
          store_part(h_out + (at + m) * H + unit, after.h, left);
          if (Cell::fields > 1) store_part(c_out + (at + m) * H + unit, after.c, left);
        });
  }
};

}  // namespace RECURRA_ISA
