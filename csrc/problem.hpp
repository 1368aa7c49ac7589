// What a recurrence is asked to do, as plain pointers and sizes; and the threads that do it.
#pragma once

#include <atomic>
#include <cstdint>

namespace recurra {

constexpr int MOST_OWN = 3;
constexpr int64_t MOST_STACKED_ROWS = 7;  // which are one group, whatever the sizes: layers of so few may run side by side

// Float32 everywhere, each array contiguous. Null where it says so.
//
//   x [batch, steps, inputs]   y [batch, steps, units]   h0, c0, h_last, c_last [batch, units]
//   w_ih [gates * units, inputs]   w_hh [gates * units, units]   b_ih, b_hh [gates * units]
//   lengths [batch], or null for full rows; reverse: each row is read from its own end to its start
//   saved: what backward needs, of `saved_floats` floats; null in inference
//   own: what belongs to each unit, as many arrays [units] as the cell has parameters besides these
struct Problem {
  int64_t batch, steps, inputs, units;
  int32_t reverse, threads;
  const int64_t* lengths;
  const float *x, *h0, *c0, *w_ih, *w_hh, *b_ih, *b_hh, *own[MOST_OWN];
  float *y, *h_last, *c_last, *saved;
  // backward only: gradients that come in (dc_last null without c), and those that go out
  const float *dy, *dh_last, *dc_last;
  float *dx, *dh0, *dc0, *dw_ih, *dw_hh, *db_ih, *db_hh, *down[MOST_OWN];
  // of a layer among others that run at the same time, else null: how many steps the one below has put out, and this one
  const std::atomic<int64_t>* below;
  std::atomic<int64_t>* done;
};

// One sweep over the units of a binary Hopfield network, `rows` states at once, each unit of +1 or -1 that its field
// contradicts by more than `tiny` turned over as its turn comes.
//
//   weights [units, units], symmetric   order [units]: whose turn it is   states, fields [rows, units], changed in place
struct Sweep {
  int64_t rows, units;
  int32_t threads;
  float tiny;
  const float* weights;
  const int64_t* order;
  float *states, *fields;
};

// Waits a moment for the others and then sleeps: with other work on the machine a spinning thread only keeps the core from
// the one that it waits for.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait();

 private:
  void sleep(int round);
  void wake();

  const int threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> round_{0};
  std::atomic<int> sleepers_{0};
};

// Waits until that many steps are done.
void wait_for(const std::atomic<int64_t>& done, int64_t steps);

}  // namespace recurra
