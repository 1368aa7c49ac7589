// One instruction set: compiled once for each, with RECURRA_ISA, RECURRA_WIDTH and RECURRA_SUMS set; and once more, with
// RECURRA_PAIRS, for what multiplies bfloat16, which is inference of the recurrences only.
#include "recurrence.hpp"
#if !defined(RECURRA_PAIRS)
#include "phased.hpp"
#include "scan.hpp"
#endif

namespace RECURRA_ISA {

// All problems have the same sizes. One comes after the other where there are fewer threads than problems, or where the
// weights of one are more than the cache of a core holds: then all cores share them.
template <class Recurrence, class Work, class Run>
void side_by_side(const Problem* problems, int count, Run&& run) {
  const bool fits = Recurrence::recurrent_bytes(problems[0].units) <= SHARED_BYTES / 4;
  const int threads = std::max(1, problems[0].threads), at_once = threads < count || !fits ? 1 : count;
  const int each = threads / at_once;
  for (int first = 0; first < count; first += at_once) {
    std::vector<Problem> shared(problems + first, problems + first + at_once);
    std::vector<std::unique_ptr<Recurrence>> recurrences;
    std::vector<std::unique_ptr<Work>> works;
    for (Problem& p : shared) {
      p.threads = each;
      recurrences.push_back(std::make_unique<Recurrence>(p));
      works.push_back(std::make_unique<Work>(*recurrences.back()));
    }
    recurra::on_threads(each * at_once, [&](int thread) {
      run(*recurrences[thread % at_once], *works[thread % at_once], thread / at_once);
    });
  }
}

template <class Cell, class Numbers>
void forward(const Problem* problems, int count) {
  for (int i = 0; i < count; i++) {
    const Problem& p = problems[i];
    recurra::prefer_large_pages(p.y, p.batch * p.steps * p.units * sizeof(float));
    if (p.saved)
      recurra::prefer_large_pages(p.saved, Recurrence<Cell>::saved_floats(p.batch, p.steps, p.units) * sizeof(float));
  }
  using Q = Recurrence<Cell, 4, Numbers>;
  side_by_side<Q, typename Q::Forward>(problems, count, [](Q& q, typename Q::Forward& work, int thread) { q.forward(work, thread); });
}

// Each layer goes on as soon as the one below has put out some steps. A thread takes its layers from below, so none waits for what
// nobody will do. All rows of a layer have to be one group.
template <class Cell, class Numbers>
void forward_stack(const Problem* layers, int count) {
  using Q = Recurrence<Cell, 4, Numbers>;
  const int threads = std::clamp(layers[0].threads, 1, count);
  struct alignas(64) Done {
    std::atomic<int64_t> steps{0};
  };
  std::vector<Done> done(count);
  std::vector<Problem> problems(layers, layers + count);
  std::vector<std::unique_ptr<Q>> recurrences;
  std::vector<std::unique_ptr<typename Q::Forward>> works;
  for (int i = 0; i < count; i++) {
    problems[i].threads = 1, problems[i].done = &done[i].steps, problems[i].below = i ? &done[i - 1].steps : nullptr;
    recurrences.push_back(std::make_unique<Q>(problems[i]));
    works.push_back(std::make_unique<typename Q::Forward>(*recurrences.back()));
  }
  recurra::on_threads(threads, [&](int thread) {
    for (int i = thread; i < count; i += threads) recurrences[i]->forward(*works[i], 0);
  });
}

template <class Cell, class Numbers>
std::unique_ptr<recurra::Stepper> stepper(const Problem& p) {
  return std::make_unique<Step<Cell, Numbers>>(p);
}

#if defined(RECURRA_PAIRS)

template <class Cell>
constexpr recurra::Kernel kernel(const char* name) {
  return {name, Cell::gates, Cell::fields, Cell::params, forward<Cell, Pairs>, nullptr, forward_stack<Cell, Pairs>, nullptr,
          stepper<Cell, Pairs>};
}

#else

template <class Cell, int Panel>
void backward_by(const Problem* problems, int count) {
  using Q = Recurrence<Cell, Panel>;
  side_by_side<Q, typename Q::Backward>(problems, count, [](Q& q, typename Q::Backward& work, int thread) { q.backward(work, thread); });
}

template <class Cell>
void backward(const Problem* problems, int count) {
  for (int i = 0; i < count; i++)
    recurra::prefer_large_pages(problems[i].dx, problems[i].batch * problems[i].steps * problems[i].inputs * sizeof(float));
  return problems[0].units <= 2 * W ? backward_by<Cell, 2>(problems, count) : backward_by<Cell, 4>(problems, count);
}

template <class Cell>
constexpr recurra::Kernel kernel(const char* name) {
  return {name, Cell::gates, Cell::fields, Cell::params, forward<Cell, Floats>, backward<Cell>, forward_stack<Cell, Floats>,
          Recurrence<Cell>::saved_floats, stepper<Cell, Floats>};
}

#endif

recurra::Table<recurra::Kernel> kernels() {
  static const recurra::Kernel all[] = {
      kernel<Elman<Tanh>>("elman-tanh"),
      kernel<Elman<Relu>>("elman-relu"),
      kernel<Elman<Logistic>>("elman-logistic"),
      kernel<Leaky<Tanh>>("leaky-tanh"),
      kernel<Leaky<Relu>>("leaky-relu"),
      kernel<Lstm>("lstm"),
      kernel<LstmOf<Logistic, false>>("lstm-sigmoid"),
      kernel<LstmOf<Tanh, true>>("lstm-peephole"),
      kernel<CoupledLstm>("lstm-coupled"),
      kernel<Gru>("gru"),
      kernel<LightGru>("ligru"),
  };
  return {all, std::size(all)};
}

#if !defined(RECURRA_PAIRS)

int64_t sweep(const recurra::Sweep& p) {
  std::atomic<int64_t> turned{0};
  recurra::on_threads(p.threads, [&](int thread) {
    int64_t mine = 0;
    for (int64_t row = thread; row < p.rows; row += p.threads) {
      float *state = p.states + row * p.units, *field = p.fields + row * p.units;
      for (int64_t k = 0; k < p.units; k++) {
        const int64_t unit = p.order[k];
        if (!(state[unit] * field[unit] < -p.tiny)) continue;  // a field that is no number turns nothing
        const float* weight = p.weights + unit * p.units;
        const float change = -2 * state[unit];
        for (int64_t i = 0; i < p.units; i++) field[i] += change * weight[i];
        state[unit] = -state[unit];
        mine++;
      }
    }
    turned += mine;
  });
  return turned;
}

recurra::Table<recurra::Follower> followers() {
  static const recurra::Follower all[] = {
      scan<Linear>("linear"),
      scan<ComplexLinear>("linear-complex"),
      scan<Lru>("lru"),
      scan<MinGru<Identity>>("mingru-identity"),
      scan<MinGru<Positive>>("mingru-positive"),
      scan<MinLstm<Identity>>("minlstm-identity"),
      scan<MinLstm<Positive>>("minlstm-positive"),
      scan<IndRnn<Tanh>>("indrnn-tanh"),
      scan<IndRnn<Relu>>("indrnn-relu"),
      scan<IndRnn<Logistic>>("indrnn-logistic"),
      scan<IndRnn<Identity>>("indrnn-identity"),
      scan<Qrnn<false>>("qrnn-f"),
      scan<Qrnn<true>>("qrnn-fo"),
      scan<Sru<Tanh, false>>("sru-tanh"),
      scan<Sru<Relu, false>>("sru-relu"),
      scan<Sru<Logistic, false>>("sru-logistic"),
      scan<Sru<Identity, false>>("sru-identity"),
      scan<Sru<Tanh, true>>("sru-peephole-tanh"),
      scan<Sru<Relu, true>>("sru-peephole-relu"),
      scan<Sru<Logistic, true>>("sru-peephole-logistic"),
      scan<Sru<Identity, true>>("sru-peephole-identity"),
      phased<ResetBefore>("gru-before"),
      phased<MinimalGated>("mgu"),
      phased<ProjectedLstm>("lstm-projected"),
      phased<NormedLstm<false>>("lstm-normed-sums"),
      phased<NormedLstm<true>>("lstm-normed-gates"),
      phased<NormedGru>("gru-normed"),
  };
  return {all, std::size(all)};
}

#endif

}  // namespace RECURRA_ISA
