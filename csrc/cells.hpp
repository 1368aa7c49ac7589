// The gate arithmetic of each cell: all that tells one recurrence from another.
//
// A cell has `gates` blocks of rows in its weights and handles `vectors` vectors of units at a time. `start` puts into the
// accumulators what the recurrent product is added to; `forward` turns the sums into the new state and what backward needs
// (`saved` vectors a unit); `backward` turns the gradient of the new state into the gradient of the sums. A cell whose sums
// of input and state do not meet by addition (the candidate of a GRU) has `apart`: one more block of gradients, which stands
// for the last block on the side of the state. A cell has `params` numbers that belong to each unit, whose gradients follow those
// of the sums, and `sees_h` where its arithmetic reads the output before.
#pragma once

#include "vector.hpp"

namespace RECURRA_ISA {

// What a step knows of one vector of units. `c` is the second field of the state, where there is one.
struct Unit {
  vf h, c;
};

struct Tanh {
  static RECURRA_INLINE vf of(vf a) { return tanh(a); }
  static RECURRA_INLINE vf slope(vf h) { return all(1.0f) - h * h; }
};

struct Relu {
  static RECURRA_INLINE vf of(vf a) { return relu(a); }
  static RECURRA_INLINE vf slope(vf h) { return h > all(0.0f) ? all(1.0f) : all(0.0f); }
};

struct Logistic {
  static RECURRA_INLINE vf of(vf a) { return sigmoid(a); }
  static RECURRA_INLINE vf slope(vf h) { return h * (all(1.0f) - h); }
};

struct Identity {
  static RECURRA_INLINE vf of(vf a) { return a; }
  static RECURRA_INLINE vf slope(vf) { return all(1.0f); }
};

template <class Activation>
struct Elman {
  static constexpr int gates = 1, vectors = 2, saved = 0, fields = 1, params = 0;
  static constexpr bool apart = false, sees_h = false;

  static RECURRA_INLINE void start(vf* sum, const vf* x, const vf*) { sum[0] = x[0]; }
  static RECURRA_INLINE Unit forward(const vf* sum, const vf*, Unit, const vf*, vf*) { return {Activation::of(sum[0]), vf{}}; }
  // In: the gradient of (h, c) after the step. Out: that of the sums, and in `d` what goes straight to (h, c) before it.
  static RECURRA_INLINE void backward(vf* sum, const vf*, Unit after, Unit, const vf*, Unit& d) {
    sum[0] = d.h * Activation::slope(after.h);
    d.h = vf{};
  }
};

// Leaky units, whose activation may be infinite: of the state a share `own[0]` stays, and the rest moves to the activation.
template <class Activation>
struct Leaky {
  static constexpr int gates = 1, vectors = 2, saved = 1, fields = 1, params = 1;
  static constexpr bool apart = false, sees_h = true;

  static RECURRA_INLINE void start(vf* sum, const vf* x, const vf*) { sum[0] = x[0]; }
  static RECURRA_INLINE Unit forward(const vf* sum, const vf*, Unit before, const vf* own, vf* keep) {
    vf g = Activation::of(sum[0]);
    keep[0] = g;
    return {own[0] * before.h + (all(1.0f) - own[0]) * g, vf{}};
  }
  static RECURRA_INLINE void backward(vf* sum, const vf* kept, Unit, Unit before, const vf* own, Unit& d) {
    sum[0] = d.h * (all(1.0f) - own[0]) * Activation::slope(kept[0]);
    sum[1] = d.h * (before.h - kept[0]);
    d.h = d.h * own[0];
  }
};

// With peepholes the input and the forget gate see the cell state before, and the output gate the one after.
template <class Candidate, bool Peephole>
struct LstmOf {
  static constexpr int gates = 4, vectors = 1, saved = 4, fields = 2, params = Peephole ? 3 : 0;
  static constexpr bool apart = false, sees_h = false;

  static RECURRA_INLINE void start(vf* sum, const vf* x, const vf*) {
    for (int g = 0; g < 4; g++) sum[g] = x[g];
  }
  static RECURRA_INLINE Unit forward(const vf* sum, const vf*, Unit before, const vf* own, vf* keep) {
    vf i = sigmoid(Peephole ? sum[0] + own[0] * before.c : sum[0]), f = sigmoid(Peephole ? sum[1] + own[1] * before.c : sum[1]);
    vf g = Candidate::of(sum[2]), c = f * before.c + i * g, o = sigmoid(Peephole ? sum[3] + own[2] * c : sum[3]);
    keep[0] = i, keep[1] = f, keep[2] = g, keep[3] = o;
    return {o * tanh(c), c};
  }
  static RECURRA_INLINE void backward(vf* sum, const vf* kept, Unit after, Unit before, const vf* own, Unit& d) {
    vf i = kept[0], f = kept[1], g = kept[2], o = kept[3], one = all(1.0f), t = tanh(after.c);
    sum[3] = d.h * t * o * (one - o);
    vf dc = d.c + d.h * o * (one - t * t);
    if (Peephole) dc += sum[3] * own[2];
    sum[0] = dc * g * i * (one - i);
    sum[1] = dc * before.c * f * (one - f);
    sum[2] = dc * i * Candidate::slope(g);
    d.h = vf{};
    d.c = dc * f;
    if (Peephole) {
      d.c += sum[0] * own[0] + sum[1] * own[1];
      sum[4] = sum[0] * before.c, sum[5] = sum[1] * before.c, sum[6] = sum[3] * after.c;
    }
  }
};

using Lstm = LstmOf<Tanh, false>;

// The input gate is what the forget gate leaves.
struct CoupledLstm {
  static constexpr int gates = 3, vectors = 2, saved = 3, fields = 2, params = 0;
  static constexpr bool apart = false, sees_h = false;

  static RECURRA_INLINE void start(vf* sum, const vf* x, const vf*) {
    for (int g = 0; g < 3; g++) sum[g] = x[g];
  }
  static RECURRA_INLINE Unit forward(const vf* sum, const vf*, Unit before, const vf*, vf* keep) {
    vf f = sigmoid(sum[0]), g = tanh(sum[1]), o = sigmoid(sum[2]);
    vf c = g + f * (before.c - g);
    keep[0] = f, keep[1] = g, keep[2] = o;
    return {o * tanh(c), c};
  }
  static RECURRA_INLINE void backward(vf* sum, const vf* kept, Unit after, Unit before, const vf*, Unit& d) {
    vf f = kept[0], g = kept[1], o = kept[2], one = all(1.0f), t = tanh(after.c);
    vf dc = d.c + d.h * o * (one - t * t);
    sum[0] = dc * (before.c - g) * f * (one - f);
    sum[1] = dc * (one - f) * (one - g * g);
    sum[2] = d.h * t * o * (one - o);
    d.h = vf{};
    d.c = dc * f;
  }
};

struct Gru {
  static constexpr int gates = 3, vectors = 2, saved = 4, fields = 1, params = 0;
  static constexpr bool apart = true, sees_h = true;

  static RECURRA_INLINE void start(vf* sum, const vf* x, const vf* bias) { sum[0] = x[0], sum[1] = x[1], sum[2] = bias[2]; }
  static RECURRA_INLINE Unit forward(const vf* sum, const vf* x, Unit before, const vf*, vf* keep) {
    vf r = sigmoid(sum[0]), z = sigmoid(sum[1]), n = tanh(x[2] + r * sum[2]);
    keep[0] = r, keep[1] = z, keep[2] = n, keep[3] = sum[2];
    return {n + z * (before.h - n), vf{}};
  }
  static RECURRA_INLINE void backward(vf* sum, const vf* kept, Unit, Unit before, const vf*, Unit& d) {
    vf r = kept[0], z = kept[1], n = kept[2], one = all(1.0f);
    vf dn = d.h * (one - z) * (one - n * n);
    sum[0] = dn * kept[3] * r * (one - r);
    sum[1] = d.h * (before.h - n) * z * (one - z);
    sum[2] = dn;
    sum[3] = dn * r;
    d.h = d.h * z;
  }
};

// A light unit: no reset, and a candidate without a ceiling.
struct LightGru {
  static constexpr int gates = 2, vectors = 2, saved = 2, fields = 1, params = 0;
  static constexpr bool apart = false, sees_h = true;

  static RECURRA_INLINE void start(vf* sum, const vf* x, const vf*) { sum[0] = x[0], sum[1] = x[1]; }
  static RECURRA_INLINE Unit forward(const vf* sum, const vf*, Unit before, const vf*, vf* keep) {
    vf z = sigmoid(sum[0]), n = relu(sum[1]);
    keep[0] = z, keep[1] = n;
    return {z * before.h + (all(1.0f) - z) * n, vf{}};
  }
  static RECURRA_INLINE void backward(vf* sum, const vf* kept, Unit, Unit before, const vf*, Unit& d) {
    vf z = kept[0], n = kept[1], one = all(1.0f);
    sum[0] = d.h * (before.h - n) * z * (one - z);
    sum[1] = d.h * (one - z) * Relu::slope(n);
    d.h = d.h * z;
  }
};

}  // namespace RECURRA_ISA
