// Cells in which each unit goes its own way: their arithmetic, and the one pass through time that serves them all.
//
// A cell has `blocks` numbers of a unit that were projected from the input, `params` numbers that belong to the unit, and
// `fields` of state. It puts out its state, unless it `speaks` for itself, with one number. `forward` turns the state of before
// into that of after; `backward` turns the gradient of the state after (`d`) into that of before, with the gradients of what was
// projected and of the unit's own numbers. Gates are computed anew there: reading them would take longer.
#pragma once

#include "following.hpp"
#include "recurrence.hpp"

namespace RECURRA_ISA {

using recurra::Following;

// h' = a h + b of factors and terms that are given.
struct Linear {
  static constexpr int blocks = 2, params = 0, fields = 1;
  static constexpr bool speaks = false;

  static RECURRA_INLINE vf forward(const vf* u, const vf*, vf* s) { return s[0] = u[0] * s[0] + u[1]; }
  static RECURRA_INLINE void backward(const vf* u, const vf*, const vf* before, const vf*, vf, vf* d, vf* du, vf*) {
    du[0] = d[0] * before[0], du[1] = d[0];
    d[0] = d[0] * u[0];
  }
};

// The same of complex numbers, their real parts before their imaginary ones.
struct ComplexLinear {
  static constexpr int blocks = 4, params = 0, fields = 2;
  static constexpr bool speaks = false;

  static RECURRA_INLINE vf forward(const vf* u, const vf*, vf* s) {
    vf re = u[0] * s[0] - u[1] * s[1] + u[2];
    s[1] = u[0] * s[1] + u[1] * s[0] + u[3];
    return s[0] = re;
  }
  static RECURRA_INLINE void backward(const vf* u, const vf*, const vf* before, const vf*, vf, vf* d, vf* du, vf*) {
    du[0] = d[0] * before[0] + d[1] * before[1], du[1] = d[1] * before[0] - d[0] * before[1];
    du[2] = d[0], du[3] = d[1];
    vf re = d[0] * u[0] + d[1] * u[1];
    d[1] = d[1] * u[0] - d[0] * u[1];
    d[0] = re;
  }
};

// Of a factor and a gain that are the unit's own: params are the parts of the factor, and the gain.
struct Lru {
  static constexpr int blocks = 2, params = 3, fields = 2;
  static constexpr bool speaks = false;

  static RECURRA_INLINE vf forward(const vf* u, const vf* p, vf* s) {
    vf re = p[0] * s[0] - p[1] * s[1] + p[2] * u[0];
    s[1] = p[0] * s[1] + p[1] * s[0] + p[2] * u[1];
    return s[0] = re;
  }
  static RECURRA_INLINE void backward(const vf* u, const vf* p, const vf* before, const vf*, vf, vf* d, vf* du, vf* dp) {
    dp[0] = d[0] * before[0] + d[1] * before[1], dp[1] = d[1] * before[0] - d[0] * before[1];
    dp[2] = d[0] * u[0] + d[1] * u[1];
    du[0] = d[0] * p[2], du[1] = d[1] * p[2];
    vf re = d[0] * p[0] + d[1] * p[1];
    d[1] = d[1] * p[0] - d[0] * p[1];
    d[0] = re;
  }
};

// The candidate of a minimal cell, by the value itself as its slope is: a + 1/2 above 0, where it is 1/2 and more.
struct Positive {
  static RECURRA_INLINE vf of(vf a) { return a >= all(0.0f) ? a + all(0.5f) : sigmoid(a); }
  static RECURRA_INLINE vf slope(vf n) { return n >= all(0.5f) ? all(1.0f) : n * (all(1.0f) - n); }
};

template <class Candidate>
struct MinGru {
  static constexpr int blocks = 2, params = 0, fields = 1;
  static constexpr bool speaks = false;

  static RECURRA_INLINE vf forward(const vf* u, const vf*, vf* s) {
    vf z = sigmoid(u[0]);
    return s[0] = (all(1.0f) - z) * s[0] + z * Candidate::of(u[1]);  // a candidate may be infinite
  }
  static RECURRA_INLINE void backward(const vf* u, const vf*, const vf* before, const vf*, vf, vf* d, vf* du, vf*) {
    vf z = sigmoid(u[0]), n = Candidate::of(u[1]), one = all(1.0f);
    du[0] = d[0] * (n - before[0]) * z * (one - z), du[1] = d[0] * z * Candidate::slope(n);
    d[0] = d[0] * (one - z);
  }
};

template <class Candidate>
struct MinLstm {
  static constexpr int blocks = 3, params = 0, fields = 1;
  static constexpr bool speaks = false;

  // The shares of two gates of sums a and b, which may both be next to nothing: sigmoid(a) / (sigmoid(a) + sigmoid(b)) is
  // (1 + e^-b) / (2 + e^-a + e^-b), and above and below the largest of the powers is taken out.
  static RECURRA_INLINE void shares(vf a, vf b, vf& of_a, vf& of_b) {
    vf least = a < b ? a : b;
    least = least < all(0.0f) ? least : all(0.0f);
    vf whole = falling(least), top_a = whole + falling(least - b), top_b = whole + falling(least - a), sum = top_a + top_b;
    of_a = top_a / sum, of_b = top_b / sum;
  }
  static RECURRA_INLINE vf falling(vf x) {
    Power e = power(at_least(x, -87.0f), LOG2_E);
    return e.whole * (e.rest * e.slope + all(1.0f));
  }
  static RECURRA_INLINE vf forward(const vf* u, const vf*, vf* s) {
    vf f, i;
    shares(u[0], u[1], f, i);
    return s[0] = f * s[0] + i * Candidate::of(u[2]);
  }
  static RECURRA_INLINE void backward(const vf* u, const vf*, const vf* before, const vf*, vf, vf* d, vf* du, vf*) {
    vf f, i, n = Candidate::of(u[2]);
    shares(u[0], u[1], f, i);
    vf slope = d[0] * (before[0] - n) * f * i;
    du[0] = slope * sigmoid(-u[0]), du[1] = -slope * sigmoid(-u[1]), du[2] = d[0] * i * Candidate::slope(n);
    d[0] = d[0] * f;
  }
};

template <class Activation>
struct IndRnn {
  static constexpr int blocks = 1, params = 1, fields = 1;
  static constexpr bool speaks = false;

  static RECURRA_INLINE vf forward(const vf* u, const vf* p, vf* s) { return s[0] = Activation::of(u[0] + p[0] * s[0]); }
  static RECURRA_INLINE void backward(const vf*, const vf* p, const vf* before, const vf* after, vf, vf* d, vf* du, vf* dp) {
    du[0] = d[0] * Activation::slope(after[0]);
    dp[0] = du[0] * before[0];
    d[0] = du[0] * p[0];
  }
};

// Candidate, forget gate and, where the cell speaks for itself, output gate.
template <bool Gated>
struct Qrnn {
  static constexpr int blocks = 2 + Gated, params = 0, fields = 1;
  static constexpr bool speaks = Gated;

  static RECURRA_INLINE vf forward(const vf* u, const vf*, vf* s) {
    vf z = tanh(u[0]);
    s[0] = z + sigmoid(u[1]) * (s[0] - z);
    return Gated ? sigmoid(u[blocks - 1]) * s[0] : s[0];
  }
  static RECURRA_INLINE void backward(const vf* u, const vf*, const vf* before, const vf* after, vf dy, vf* d, vf* du, vf*) {
    vf z = tanh(u[0]), f = sigmoid(u[1]), one = all(1.0f);
    if (Gated) {
      vf o = sigmoid(u[blocks - 1]);
      du[blocks - 1] = dy * after[0] * o * (one - o);
      d[0] += dy * o;
    }
    du[0] = d[0] * (one - f) * (one - z * z), du[1] = d[0] * (before[0] - z) * f * (one - f);
    d[0] = d[0] * f;
  }
};

// Sums of the forget and of the reset gate, the candidate, and what passes by.
template <class Activation, bool Peephole>
struct Sru {
  static constexpr int blocks = 4, params = Peephole ? 2 : 0, fields = 1;
  static constexpr bool speaks = true;

  static RECURRA_INLINE vf gate(const vf* u, const vf* p, vf c, int k) { return sigmoid(Peephole ? u[k] + p[k] * c : u[k]); }
  static RECURRA_INLINE vf forward(const vf* u, const vf* p, vf* s) {
    vf f = gate(u, p, s[0], 0), r = gate(u, p, s[0], 1);
    s[0] = f * s[0] + (all(1.0f) - f) * u[2];
    return r * Activation::of(s[0]) + (all(1.0f) - r) * u[3];
  }
  static RECURRA_INLINE void backward(const vf* u, const vf* p, const vf* before, const vf* after, vf dy, vf* d, vf* du, vf* dp) {
    vf f = gate(u, p, before[0], 0), r = gate(u, p, before[0], 1), said = Activation::of(after[0]), one = all(1.0f);
    d[0] += dy * r * Activation::slope(said);
    du[0] = d[0] * (before[0] - u[2]) * f * (one - f), du[1] = dy * (said - u[3]) * r * (one - r);
    du[2] = d[0] * (one - f), du[3] = dy * (one - r);
    d[0] = d[0] * f;
    if (Peephole) {
      for (int k = 0; k < params; k++) dp[k] = du[k] * before[0], d[0] += du[k] * p[k];
    }
  }
};

// How many steps before they are read numbers are asked for. A pass is as quick as memory, and the processor does not see by
// itself where the next of so many short rows will be.
constexpr int64_t AHEAD = 2;

// Bytes of all that a pass back reads and writes: from here on no cache keeps the gradients until they are asked for.
#ifndef RECURRA_FAR
#define RECURRA_FAR (24 << 20)
#endif

template <class Cell>
struct Scan {
  static constexpr int K = Cell::blocks, F = Cell::fields, P = Cell::params, S = Cell::speaks ? 1 : F;

  const Following& p;
  const int64_t T, H;
  const bool far;

  explicit Scan(const Following& asked)
      : p(asked), T(p.steps), H(p.units),
        far((2 * K + F + S) * p.batch * T * H * static_cast<int64_t>(sizeof(float)) >= RECURRA_FAR) {}

  // What is not read before backward, or by what comes after it.
  template <class Left>
  RECURRA_INLINE void put(float* to, vf v, Left left) const {
    far && left >= W ? store_past(to, v) : store_part(to, v, left);
  }

  // What a cell that speaks for itself remembers after each step; another puts it out.
  static int64_t saved_floats(int64_t units) { return Cell::speaks ? F * units : 0; }
  const float* after(int64_t row, int64_t t, int f) const {
    return Cell::speaks ? p.saved + ((row * T + t) * F + f) * H : p.y + ((row * T + t) * F + f) * H;
  }

  // work(unit, how many there are from there on) over a share of the units; all but the last fill a vector.
  template <class Work>
  static RECURRA_INLINE void over(int64_t begin, int64_t end, Work&& work) {
    int64_t unit = begin;
    for (; unit + W <= end; unit += W) work(unit, Int<W>{});
    if (unit < end) work(unit, end - unit);
  }

  // The same from the last unit to the first: all that backward touches comes in falling order.
  template <class Work>
  static RECURRA_INLINE void over_falling(int64_t begin, int64_t end, Work&& work) {
    int64_t unit = begin + (end - begin) / W * W;
    if (unit < end) work(unit, end - unit);
    for (; unit > begin; unit -= W) work(unit - W, Int<W>{});
  }

  void forward(int64_t row, int64_t begin, int64_t end) const {
    const int64_t length = p.length(row), bytes = (end - begin) * sizeof(float);
    for (int f = 0; f < F; f++) std::memcpy(p.last[f] + row * H + begin, p.state[f] + row * H + begin, bytes);
    for (int64_t t = 0; t < length; t++) {
      const int64_t at = row * T + t;
      over(begin, end, [&](int64_t unit, auto left) {
        if (t + AHEAD < length)
          for (int k = 0; k < K; k++) __builtin_prefetch(p.u[k] + (at + AHEAD) * p.stride[k] + unit);
        vf u[K], s[F], own[P + 1];
        for (int k = 0; k < K; k++) u[k] = load_part(p.u[k] + at * p.stride[k] + unit, left);
        for (int k = 0; k < P; k++) own[k] = load_part(p.params[k] + unit, left);
        for (int f = 0; f < F; f++) s[f] = load_part(p.last[f] + row * H + unit, left);
        vf y = Cell::forward(u, own, s);
        if (Cell::speaks) store_part(p.y + at * H + unit, y, left);
        for (int f = 0; f < F; f++) {
          store_part(p.last[f] + row * H + unit, s[f], left);
          float* to = const_cast<float*>(after(row, t, f)) + unit;
          if (!Cell::speaks) store_part(to, s[f], left);
          if (Cell::speaks && p.saved) put(to, s[f], left);
        }
      });
    }
    for (int64_t t = length; t < T; t++)
      for (int f = 0; f < S; f++) std::memset(p.y + ((row * T + t) * S + f) * H + begin, 0, bytes);
  }

  // Asks for what backward will read of a step.
  RECURRA_INLINE void soon(int64_t row, int64_t t, int64_t unit) const {
    const int64_t at = row * T + t;
    for (int k = 0; k < K; k++) __builtin_prefetch(p.u[k] + at * p.stride[k] + unit);
    for (int f = 0; f < F; f++) __builtin_prefetch(after(row, t, f) + unit);
    for (int f = 0; f < S && p.dy; f++) __builtin_prefetch(p.dy + (at * S + f) * H + unit);
  }

  // `sums` [params, units]: of the gradients of the row's own numbers.
  void backward(int64_t row, int64_t begin, int64_t end, float* sums) const {
    const int64_t length = p.length(row), bytes = (end - begin) * sizeof(float);
    for (int f = 0; f < F; f++) {
      float* to = p.dstate[f] + row * H + begin;
      p.dlast[f] ? std::memcpy(to, p.dlast[f] + row * H + begin, bytes) : std::memset(to, 0, bytes);
    }
    for (int k = 0; k < P; k++) std::memset(sums + k * H + begin, 0, bytes);
    for (int64_t t = length; t < T; t++)
      for (int k = 0; k < K; k++) std::memset(p.du[k] + (row * T + t) * p.stride[k] + begin, 0, bytes);
    for (int64_t t = length - 1; t >= 0; t--) {
      const int64_t at = row * T + t;
      over_falling(begin, end, [&](int64_t unit, auto left) {
        if (t >= AHEAD) soon(row, t - AHEAD, unit);
        vf u[K], own[P + 1], before[F], now[F], d[F], du[K], dp[P + 1], dy = {};
        for (int k = 0; k < K; k++) u[k] = load_part(p.u[k] + at * p.stride[k] + unit, left);
        for (int k = 0; k < P; k++) own[k] = load_part(p.params[k] + unit, left);
        for (int f = 0; f < F; f++) {
          now[f] = load_part(after(row, t, f) + unit, left);
          before[f] = load_part((t ? after(row, t - 1, f) : p.state[f] + row * H) + unit, left);
          d[f] = load_part(p.dstate[f] + row * H + unit, left);
          if (!Cell::speaks && p.dy) d[f] += load_part(p.dy + (at * F + f) * H + unit, left);
        }
        if (Cell::speaks && p.dy) dy = load_part(p.dy + at * H + unit, left);
        Cell::backward(u, own, before, now, dy, d, du, dp);
        for (int k = 0; k < K; k++) put(p.du[k] + at * p.stride[k] + unit, du[k], left);
        for (int f = 0; f < F; f++) store_part(p.dstate[f] + row * H + unit, d[f], left);
        for (int k = 0; k < P; k++) {
          float* to = sums + k * H + unit;
          store_part(to, load_part(to, left) + dp[k], left);
        }
      });
    }
  }
};

// work(row, begin, end) for all rows, those of fewer rows than threads in shares of their units. Rows and units do not see each
// other, so the bits are the same however they are shared out.
template <class Work>
void over_rows(const Following& p, Work&& work) {
  const int threads = std::max(1, p.threads);
  const int64_t parts = (threads + p.batch - 1) / p.batch, vectors = ceil_div(p.units, W);
  recurra::on_threads(threads, [&](int thread) {
    for (int64_t item = thread; item < p.batch * parts; item += threads) {
      const Share share(vectors, static_cast<int>(item % parts), static_cast<int>(parts));
      work(item / parts, share.begin * W, std::min<int64_t>(p.units, share.end * W));
    }
    settle();
  });
}

template <class Cell>
void scan_forward(const Following& p) {
  const Scan<Cell> scan(p);
  recurra::prefer_large_pages(p.y, p.batch * p.steps * Scan<Cell>::S * p.units * sizeof(float));
  over_rows(p, [&](int64_t row, int64_t begin, int64_t end) { scan.forward(row, begin, end); });
}

template <class Cell>
void scan_backward(const Following& p) {
  const Scan<Cell> scan(p);
  const int64_t own = Cell::params * p.units;
  Buffer sums(p.batch * own);
  over_rows(p, [&](int64_t row, int64_t begin, int64_t end) { scan.backward(row, begin, end, sums.at(row * own)); });
  for (int k = 0; k < Cell::params; k++) {
    std::memcpy(p.dparams[k], sums.at(k * p.units), p.units * sizeof(float));
    for (int64_t row = 1; row < p.batch; row++)
      for (int64_t unit = 0; unit < p.units; unit++) p.dparams[k][unit] += sums.at(row * own + k * p.units)[unit];
  }
}

template <class Cell>
constexpr recurra::Follower scan(const char* name) {
  constexpr recurra::Shape own{1, recurra::Side::units, recurra::Side::none};
  return {name, Cell::blocks, Cell::fields, Scan<Cell>::S, Cell::params, {own, own, own, own, own}, false,
          scan_forward<Cell>, scan_backward<Cell>, Scan<Cell>::saved_floats};
}

}  // namespace RECURRA_ISA
