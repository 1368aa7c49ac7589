// The kernels without Python: every one of them with several threads and with one, on arrays that end where their content ends, so
// that a sanitizer sees each step beyond; then with each allocation failing once. `make sanitize` runs it, and so does an emulator
// of another processor.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "run.hpp"

namespace {

std::atomic<long> allocations{0}, fails_at{0};  // 0: none

void* taken(size_t bytes, size_t alignment) {
  if (fails_at > 0 && ++allocations == fails_at) return nullptr;
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

void* taken_or_thrown(size_t bytes, size_t alignment) {
  void* start = taken(bytes, alignment);
  if (!start) throw std::bad_alloc();
  return start;
}

}  // namespace

void* operator new(size_t bytes) { return taken_or_thrown(bytes, 16); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return taken(bytes, 16); }
void* operator new(size_t bytes, std::align_val_t at) { return taken_or_thrown(bytes, static_cast<size_t>(at)); }
void* operator new(size_t bytes, std::align_val_t at, const std::nothrow_t&) noexcept { return taken(bytes, static_cast<size_t>(at)); }
void operator delete(void* start) noexcept { std::free(start); }
void operator delete(void* start, size_t) noexcept { std::free(start); }
void operator delete(void* start, const std::nothrow_t&) noexcept { std::free(start); }
void operator delete(void* start, std::align_val_t) noexcept { std::free(start); }
void operator delete(void* start, size_t, std::align_val_t) noexcept { std::free(start); }
void operator delete(void* start, std::align_val_t, const std::nothrow_t&) noexcept { std::free(start); }

namespace {

using namespace recurra;
using Numbers = std::unique_ptr<float[], decltype(&std::free)>;

// Arrays by themselves, each as long as it says.
struct Arrays {
  std::mt19937 random{0};
  std::vector<Numbers> all;
  std::vector<size_t> sizes;
  float* take(size_t n, float scale) {
    float* start = static_cast<float*>(std::malloc(std::max<size_t>(n, 1) * sizeof(float)));
    std::uniform_real_distribution<float> some(-scale, scale);
    for (size_t i = 0; i < n; i++) start[i] = some(random);
    all.emplace_back(start, &std::free), sizes.push_back(n);
    return start;
  }
  bool equal(const Arrays& other) const {
    for (size_t i = 0; i < all.size(); i++)
      if (std::memcmp(all[i].get(), other.all[i].get(), sizes[i] * sizeof(float))) return false;
    return true;
  }
};

struct Sizes {
  int64_t batch, steps, inputs, units;
  bool ragged;
};
const Sizes SIZES[] = {{1, 5, 3, 7, false}, {9, 6, 5, 33, true}, {3, 4, 70, 130, true}, {5, 40, 21, 21, true}, {37, 3, 40, 33, true}};

std::vector<int64_t> ends(const Sizes& s) {
  std::vector<int64_t> found(s.batch);
  for (int64_t i = 0; i < s.batch; i++) found[i] = s.ragged ? (i * 5 + 1) % (s.steps + 1) : s.steps;
  return found;
}

void recurrence(const Kernel& kernel, const Sizes& s, int threads, Arrays& a) {
  const std::vector<int64_t> lengths = ends(s);
  const int64_t rows = kernel.gates * s.units, state = s.batch * s.units;
  Problem p{};
  p.batch = s.batch, p.steps = s.steps, p.inputs = s.inputs, p.units = s.units, p.threads = threads, p.reverse = s.ragged;
  p.lengths = lengths.data();
  p.x = a.take(s.batch * s.steps * s.inputs, 1), p.w_ih = a.take(rows * s.inputs, 0.1f), p.w_hh = a.take(rows * s.units, 0.1f);
  p.h0 = a.take(state, 1), p.c0 = a.take(state, 1), p.b_ih = a.take(rows, 1), p.b_hh = a.take(rows, 1);
  for (int k = 0; k < kernel.params; k++) p.own[k] = a.take(s.units, 0.5f), p.down[k] = a.take(s.units, 0);
  p.y = a.take(s.batch * s.steps * s.units, 0), p.h_last = a.take(state, 0), p.c_last = a.take(state, 0);
  // Of three layers the upper two read what is below, which is as wide as they are.
  if (s.batch <= MOST_STACKED_ROWS && s.inputs == s.units) {
    Problem layers[3] = {p, p, p};
    for (int i = 0; i < 3; i++) {
      layers[i].reverse = 0, layers[i].y = a.take(s.batch * s.steps * s.units, 0);
      layers[i].h_last = a.take(state, 0), layers[i].c_last = a.take(state, 0);
      if (i) layers[i].x = layers[i - 1].y;
    }
    kernel.forward_stack(layers, 3);
  }
  if (!kernel.backward) {
    kernel.forward(&p, 1);
    kernel.stepper(p)->step(s.batch, p.x, p.h0, p.c0, p.h_last, p.c_last);
    return;
  }
  p.saved = a.take(kernel.saved_floats(s.batch, s.steps, s.units), 0);
  p.dy = a.take(s.batch * s.steps * s.units, 1), p.dh_last = a.take(state, 1), p.dc_last = a.take(state, 1);
  p.dx = a.take(s.batch * s.steps * s.inputs, 0), p.dh0 = a.take(state, 0), p.dc0 = a.take(state, 0);
  p.dw_ih = a.take(rows * s.inputs, 0), p.dw_hh = a.take(rows * s.units, 0), p.db_ih = a.take(rows, 0), p.db_hh = a.take(rows, 0);
  kernel.forward(&p, 1);
  kernel.backward(&p, 1);
  kernel.stepper(p)->step(s.batch, p.x, p.h0, p.c0, p.h_last, p.c_last);
}

void follower(const Follower& follower, const Sizes& s, int threads, Arrays& a) {
  const std::vector<int64_t> lengths = ends(s);
  Following p{};
  p.batch = s.batch, p.steps = s.steps, p.units = s.units, p.outputs = follower.projects ? s.units / 2 : s.units, p.threads = threads;
  p.lengths = lengths.data();
  const int64_t all = s.batch * s.steps, outputs = all * follower.says * p.outputs;
  for (int k = 0; k < follower.blocks; k++)
    p.u[k] = a.take(all * s.units, 1), p.du[k] = a.take(all * s.units, 0), p.stride[k] = s.units;
  for (int f = 0; f < follower.fields; f++) {
    const int64_t n = s.batch * (f ? p.units : p.outputs);
    p.state[f] = a.take(n, 1), p.last[f] = a.take(n, 0), p.dlast[f] = a.take(n, 1), p.dstate[f] = a.take(n, 0);
  }
  for (int k = 0; k < follower.params; k++) {
    const Shape& shape = follower.shapes[k];
    auto size = [&](Side side) { return side == Side::none ? 1 : side == Side::units ? p.units : p.outputs; };
    const int64_t n = shape.blocks * size(shape.rows) * size(shape.columns);
    p.params[k] = a.take(n, 0.1f), p.dparams[k] = a.take(n, 0);
  }
  p.y = a.take(outputs, 0), p.saved = a.take(all * follower.saved_floats(s.units), 0), p.dy = a.take(outputs, 1);
  follower.forward(p);
  follower.backward(p);
}

// The same numbers from several threads as from one; and where any allocation fails, an exception, or the same numbers where the
// library makes do without (a sort in place).
template <class Work>
bool holds(const char* isa, const char* name, Work&& work) {
  Arrays expected;
  work(SIZES[1], 1, expected);
  for (const Sizes& s : SIZES) {
    Arrays one, several;
    work(s, 1, one), work(s, 3, several);
    if (!one.equal(several)) return std::printf("%s %s: other numbers with three threads\n", isa, name), false;
  }
  for (long n = 1;; n++) {
    Arrays a;
    bool failed = false;
    a.all.reserve(64), a.sizes.reserve(64);
    give_blocks_back();
    allocations = 0, fails_at = n;
    try {
      work(SIZES[1], 2, a);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
    const bool reached = allocations >= n;
    fails_at = 0;
    if (!reached) return true;
    if (!failed && !a.equal(expected)) return std::printf("%s %s: allocation %ld failed and nothing was said\n", isa, name, n), false;
  }
}

}  // namespace

int main() {
  int checked = 0, broken = 0;
  for (const char* isa : {"avx512", "avx2", "baseline"}) {
    const InstructionSet* set = instruction_set(isa);
    if (!set) continue;
    for (Table<Kernel> table : {set->kernels(), set->halves()})
      for (int i = 0; i < table.size; i++, checked++) {
        const Kernel& kernel = table.first[i];
        broken += !holds(isa, kernel.name, [&](const Sizes& s, int threads, Arrays& a) { recurrence(kernel, s, threads, a); });
      }
    for (int i = 0; i < set->followers().size; i++, checked++) {
      const Follower& one = set->followers().first[i];
      broken += !holds(isa, one.name, [&](const Sizes& s, int threads, Arrays& a) { follower(one, s, threads, a); });
    }
  }
  std::printf("%d kernels checked, %d broken\n", checked, broken);
  return broken > 0 || checked == 0;
}
