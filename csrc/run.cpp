#include "run.hpp"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace avx512 { recurra::Kernel find(recurra::Kind); }
namespace avx2 { recurra::Kernel find(recurra::Kind); }
namespace baseline { recurra::Kernel find(recurra::Kind); }

namespace recurra {

namespace {

bool always() { return true; }

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw");
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

const InstructionSet SETS[] = {
#if defined(__x86_64__)
    {"avx512", has_avx512, avx512::find},
    {"avx2", has_avx2, avx2::find},
#endif
    {"baseline", always, baseline::find},
};

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

void Barrier::wait() {
  if (threads_ == 1) return;
  const int round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; round_.load(std::memory_order_acquire) == round; spins++) {
    if (spins < 2000)
      pause();
    else
      sched_yield();
  }
}

namespace {

constexpr size_t MOST_KEPT = size_t(64) << 20;

struct Pool {
  std::vector<Block> blocks;
  size_t kept = 0;
  ~Pool() {
    for (Block block : blocks) std::free(block.start);
    gone = true;
  }
  static thread_local bool gone;  // blocks may come back after the pool of their thread is gone
};
thread_local bool Pool::gone = false;
thread_local Pool pool;

}  // namespace

Block take_block(size_t bytes) {
  bytes = (std::max<size_t>(bytes, 1) + 4095) / 4096 * 4096;
  if (!Pool::gone) {
    size_t best = pool.blocks.size();
    for (size_t i = 0; i < pool.blocks.size(); i++)
      if (pool.blocks[i].bytes >= bytes && (best == pool.blocks.size() || pool.blocks[i].bytes < pool.blocks[best].bytes))
        best = i;
    if (best < pool.blocks.size() && pool.blocks[best].bytes <= 2 * bytes) {
      Block block = pool.blocks[best];
      pool.blocks.erase(pool.blocks.begin() + best);
      pool.kept -= block.bytes;
      return block;
    }
  }
  void* start = std::aligned_alloc(64, bytes);
  if (!start) throw std::bad_alloc();
  return {start, bytes};
}

void give_block(Block block) noexcept {
  if (!block.start) return;
  if (!Pool::gone && pool.kept + block.bytes <= MOST_KEPT && pool.blocks.size() < 64) {
    try {
      pool.blocks.push_back(block);
      pool.kept += block.bytes;
      return;
    } catch (...) {
    }
  }
  std::free(block.start);
}

void on_threads(int threads, const std::function<void(int)>& work) {
  if (threads == 1) return work(0);
#ifdef _OPENMP
  int given = threads;
#pragma omp parallel num_threads(threads)
  {
#pragma omp single
    given = omp_get_num_threads();
    // Fewer threads than asked for would wait for each other without end.
    if (given == threads) work(omp_get_thread_num());
  }
  if (given != threads) throw std::exception();
#else
  throw std::exception();
#endif
}

const InstructionSet* instruction_set(const char* name) {
  for (const auto& set : SETS)
    if (set.runs_here() && (!name || !std::strcmp(name, set.name))) return &set;
  return nullptr;
}

}  // namespace recurra
