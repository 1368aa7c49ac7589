// The kernels as plain functions, the instruction sets to choose from, and the threads.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "following.hpp"
#include "problem.hpp"

namespace recurra {

// One step over `batch` rows: x [batch, inputs], the others [batch, units]; c null where the state has none.
struct Stepper {
  virtual ~Stepper() = default;
  virtual void step(int64_t batch, const float* x, const float* h, const float* c, float* h_out, float* c_out) = 0;
};

// Without backward and what it needs where products are of bfloat16.
struct Kernel {
  const char* name;
  int gates, fields, params;  // blocks of rows of the weights; fields of the state; parameters of each unit
  // Of one problem, or of several side by side: each then has its share of the threads.
  void (*forward)(const Problem* problems, int count);
  void (*backward)(const Problem* problems, int count);
  // Of layers on top of each other in inference, the first lowest, and each reading what the one below puts out.
  void (*forward_stack)(const Problem* layers, int count);
  int64_t (*saved_floats)(int64_t batch, int64_t steps, int64_t units);
  std::unique_ptr<Stepper> (*stepper)(const Problem&);  // of the sizes, threads and weights of a problem

  // `units`, rounded up to what fills the vectors of every instruction set: a compiled graph may hold how much `saved` takes,
  // and be loaded on another machine.
  static int64_t widest(int64_t units) { return (units + 31) / 32 * 32; }
};

// Working memory is kept from call to call: fresh pages cost more than the work of a small problem.
struct Block {
  void* start = nullptr;
  size_t bytes = 0;
};
Block take_block(size_t bytes);  // throws std::bad_alloc
void give_block(Block block) noexcept;
void give_blocks_back() noexcept;  // of the calling thread, to the C library

// Whether tiles of bfloat16 are multiplied here: the compiler and the processor know how, and the system lets this process have them.
// RECURRA_TILES=0 does without.
bool has_tiles();

// Asks for large pages for a large array that is about to be written: above 32 MiB the C library takes fresh pages at every
// call, and getting them one by one took 7 % of the time of training.
void prefer_large_pages(const void* start, size_t bytes);

// How many threads to use where so many are wished for: one while other work takes the cores from this process, since a
// thread that is set aside holds up all the others. The results have the same bits either way.
int threads_now(int wished);

// To be called once: from then on a forked child is known for one, and has one thread.
void watch_for_forks();

// Runs work(0) to work(threads - 1) side by side, in the OpenMP pool that torch has already started.
void on_threads(int threads, const std::function<void(int)>& work);

// Kernels by their places, which are the same in every instruction set.
template <class Kernel>
struct Table {
  const Kernel* first;
  int size;
};

// The name of an instruction set, and the kernels compiled for it; null for a name that this machine does not run.
struct InstructionSet {
  const char* name;
  bool (*runs_here)();
  Table<Kernel> (*kernels)();
  Table<Kernel> (*halves)();  // the same with products of bfloat16; none where the processor has no instructions for them
  Table<Follower> (*followers)();
  int64_t (*sweep)(const Sweep&);  // how many units were turned over
};

const InstructionSet* instruction_set(const char* name);  // null: the best that runs here

}  // namespace recurra
