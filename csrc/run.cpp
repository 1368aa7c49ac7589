#include "run.hpp"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <stdexcept>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#define RECURRA_COMPILED_FOR(isa)                  \
  namespace isa {                                  \
  recurra::Table<recurra::Kernel> kernels();       \
  recurra::Table<recurra::Follower> followers();   \
  int64_t sweep(const recurra::Sweep&);            \
  }
RECURRA_COMPILED_FOR(avx512)
namespace avx512_bf16 {
recurra::Table<recurra::Kernel> kernels();
}
RECURRA_COMPILED_FOR(avx2)
RECURRA_COMPILED_FOR(baseline)

namespace recurra {

namespace {

constexpr int SPINS = 2000;  // some tens of microseconds: many times a step, and little beside a time slice

[[maybe_unused]] bool always() { return true; }

// Whether this variable of the environment says 0.
bool off(const char* name) {
  const char* wish = std::getenv(name);
  return wish && !std::strcmp(wish, "0");
}

#if defined(__x86_64__)
[[maybe_unused]] bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw");
}
[[maybe_unused]] bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

[[maybe_unused]] Table<Kernel> none() { return {nullptr, 0}; }

#if defined(RECURRA_HAS_avx512)
Table<Kernel> avx512_halves() { return __builtin_cpu_supports("avx512bf16") ? avx512_bf16::kernels() : none(); }
#endif

const InstructionSet SETS[] = {
#if defined(RECURRA_HAS_avx512)
    {"avx512", has_avx512, avx512::kernels, avx512_halves, avx512::followers, avx512::sweep},
#endif
#if defined(RECURRA_HAS_avx2)
    {"avx2", has_avx2, avx2::kernels, none, avx2::followers, avx2::sweep},
#endif
#if defined(RECURRA_HAS_baseline)
    {"baseline", always, baseline::kernels, none, baseline::followers, baseline::sweep},
#endif
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
    round_.store(round + 1);
    if (sleepers_.load() > 0) wake();
    return;
  }
  for (int spins = 0; spins < SPINS; spins++) {
    if (round_.load(std::memory_order_acquire) != round) return;
    pause();
  }
  sleepers_.fetch_add(1);
  while (round_.load() == round) sleep(round);
  sleepers_.fetch_sub(1);
}

void wait_for(const std::atomic<int64_t>& done, int64_t steps) {
  for (int spins = 0; done.load(std::memory_order_acquire) < steps; spins++)
    if (spins < SPINS)
      pause();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(20));
}

#if defined(__linux__)
void Barrier::sleep(int round) { syscall(SYS_futex, &round_, FUTEX_WAIT_PRIVATE, round, nullptr, nullptr, 0); }
void Barrier::wake() { syscall(SYS_futex, &round_, FUTEX_WAKE_PRIVATE, threads_, nullptr, nullptr, 0); }
#else
void Barrier::sleep(int) { std::this_thread::yield(); }
void Barrier::wake() {}
#endif

namespace {

// Through `new`, which whoever checks what happens without memory can replace (csrc/checks.cpp).
constexpr std::align_val_t CACHE_LINE{64};
void free_memory(void* start) noexcept { ::operator delete(start, CACHE_LINE, std::nothrow); }

constexpr size_t MOST_KEPT = size_t(64) << 20;

struct Pool {
  std::vector<Block> blocks;
  size_t kept = 0;
  void empty() noexcept {
    for (Block block : blocks) free_memory(block.start);
    blocks.clear();
    kept = 0;
  }
  ~Pool() {
    empty();
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
  void* start = ::operator new(bytes, CACHE_LINE, std::nothrow);
  if (!start) throw std::bad_alloc();
  prefer_large_pages(start, bytes);
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
  free_memory(block.start);
}

void give_blocks_back() noexcept {
  if (!Pool::gone) pool.empty();
}

bool has_tiles() {
#if defined(RECURRA_HAS_TILES) && defined(__linux__) && defined(__x86_64__)
  static const bool has = [] {
    unsigned a, b, c, d;
    if (off("RECURRA_TILES") || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned bfloat16 = 1u << 22, tiles = 1u << 24;
    constexpr int ask_for_state = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM: a process says that it wants their registers kept
    return (d & bfloat16) && (d & tiles) && syscall(SYS_arch_prctl, ask_for_state, tile_data) == 0;
  }();
  return has;
#else
  return false;
#endif
}

void prefer_large_pages(const void* start, size_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t page = 2 << 20;
  if (bytes < (32 << 20)) return;
  const uintptr_t from = (reinterpret_cast<uintptr_t>(start) + page - 1) & ~(page - 1);
  const uintptr_t to = (reinterpret_cast<uintptr_t>(start) + bytes) & ~(page - 1);
  if (start && to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);  // a wish: no harm if refused
#else
  (void)start, (void)bytes;
#endif
}

namespace {

// What is known of other work on the machine: in how much of the time of late calls no thread advanced. Where that is more
// than half, two threads take longer than one would; alone on its cores a process loses some thousandths.
class Crowd {
 public:
  int threads(int wished) { return minded_ && wished > 1 && alone_until_.load(std::memory_order_relaxed) > now() ? 1 : wished; }

  // Nanoseconds of a call, and those of them that its busiest thread was running.
  void learn(int64_t whole, int64_t busy) {
    std::lock_guard<std::mutex> lock(mutex_);
    const double fading = std::exp(-whole / MEMORY);
    lost_ = lost_ * fading + (whole - busy);
    span_ = span_ * fading + whole;
    if (span_ < ENOUGH) return;
    if (lost_ > span_ / 2) {
      pause_ = std::min(LONGEST, std::max(SHORTEST, 2 * pause_));
      alone_until_ = now() + pause_;
      lost_ = span_ = 0;
    } else if (span_ > MEMORY / 2) {
      pause_ = 0;
    }
  }

  static int64_t now() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

 private:
  // Nanoseconds: with one thread; of calls before anything is concluded; until a call is forgotten.
  static constexpr int64_t SHORTEST = 50'000'000, LONGEST = 1'000'000'000;
  static constexpr double ENOUGH = 10e6, MEMORY = 300e6;
  const bool minded_ = !off("RECURRA_CROWD");
  std::atomic<int64_t> alone_until_{0};
  std::mutex mutex_;
  int64_t pause_ = 0;
  double lost_ = 0, span_ = 0;
};
Crowd crowd;

// Nanoseconds that the calling thread has been running.
int64_t time_running() {
  timespec t;
  return clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0 ? t.tv_sec * int64_t(1'000'000'000) + t.tv_nsec : 0;
}

// A forked child has no threads but the one that forked, and the pool of its parent does not come back.
std::atomic<bool> forked{false};

}  // namespace

int threads_now(int wished) {
  if (wished <= 1 || forked.load(std::memory_order_relaxed)) return 1;
#ifdef _OPENMP
  if (omp_in_parallel() || omp_get_dynamic()) return 1;  // it may give fewer threads than it is asked for
  wished = std::min(wished, omp_get_thread_limit());
#endif
  return crowd.threads(wished);
}

void watch_for_forks() {
#if defined(__unix__) || defined(__APPLE__)
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif
}

#if defined(RECURRA_PTHREADS)
// For the checks: a sanitizer of threads knows these, and not how OpenMP waits.
void on_threads(int threads, const std::function<void(int)>& work) {
  struct One {
    const std::function<void(int)>* work;
    int number;
    pthread_t thread;
  } all[64];
  for (int i = 1; i < threads; i++) {
    all[i] = {&work, i, {}};
    auto run = [](void* given) -> void* { return (*static_cast<One*>(given)->work)(static_cast<One*>(given)->number), nullptr; };
    if (pthread_create(&all[i].thread, nullptr, run, &all[i]) != 0) std::abort();
  }
  work(0);
  for (int i = 1; i < threads; i++) pthread_join(all[i].thread, nullptr);
}
#else
void on_threads(int threads, const std::function<void(int)>& work) {
  if (threads == 1) return work(0);
#ifdef _OPENMP
  bool enough = false;
  Barrier together(threads);
  std::atomic<int64_t> busiest{0};
  const int64_t began = Crowd::now();
#pragma omp parallel num_threads(threads)
  // Fewer threads than asked for would wait for each other without end.
  if (omp_get_num_threads() == threads) {
    if (omp_get_thread_num() == 0) enough = true;
    const int64_t before = time_running();
    work(omp_get_thread_num());
    together.wait();  // sleeping, where the end of the region would spin
    const int64_t busy = time_running() - before;
    for (int64_t most = busiest; busy > most && !busiest.compare_exchange_weak(most, busy);) {
    }
  }
  crowd.learn(Crowd::now() - began, busiest);
  if (!enough) throw std::runtime_error("OpenMP gave fewer threads than torch.get_num_threads(); call torch.set_num_threads(1)");
#else
  throw std::runtime_error("recurra was built without OpenMP; call torch.set_num_threads(1)");
#endif
}
#endif

const InstructionSet* instruction_set(const char* name) {
  for (const auto& set : SETS)
    if (set.runs_here() && (!name || !std::strcmp(name, set.name))) return &set;
  return nullptr;
}

}  // namespace recurra
