// The gate arithmetic of each cell: all that tells one recurrence from another.
//
// A cell has `gates` blocks of rows in its weights and handles `vectors` vectors of units at a time. `start` puts into the
// accumulators what the recurrent product is added to; `forward` turns the sums into the new state and what backward needs
// (`saved` vectors a unit); `backward` turns the gradient of the new state into the gradient of the sums. A cell whose sums
// of input and state do not meet by addition (the candidate of a GRU) has `apart`: one more block of gradients, which stands
// for the last block on the side of the state.
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

template <class Activation>
struct Elman {
  static constexpr int gates = 1, vectors = 2, saved = 0, fields = 1;
  static constexpr bool apart = false;

  static RECURRA_INLINE void start(vf* sum, const vf* x, const vf*) { sum[0] = x[0]; }
  static RECURRA_INLINE Unit forward(const vf* sum, const vf*, Unit, vf*) { return {Activation::of(sum[0]), vf{}}; }
  // In: the gradient of (h, c) after the step. Out: that of the sums, and in `d` what goes straight to (h, c) before it.
  static RECURRA_INLINE void backward(vf* sum, const vf*, Unit after, Unit, Unit& d) {
    sum[0] = d.h * Activation::slope(after.h);
    d.h = vf{};
  }
};

struct Lstm {
  static constexpr int gates = 4, vectors = 1, saved = 4, fields = 2;
  static constexpr bool apart = false;

  static RECURRA_INLINE void start(vf* sum, const vf* x, const vf*) {
    for (int g = 0; g < 4; g++) sum[g] = x[g];
  }
  static RECURRA_INLINE Unit forward(const vf* sum, const vf*, Unit before, vf* keep) {
    vf i = sigmoid(sum[0]), f = sigmoid(sum[1]), g = tanh(sum[2]), o = sigmoid(sum[3]);
    vf c = f * before.c + i * g;
    keep[0] = i, keep[1] = f, keep[2] = g, keep[3] = o;
    return {o * tanh(c), c};
  }
  static RECURRA_INLINE void backward(vf* sum, const vf* kept, Unit after, Unit before, Unit& d) {
    vf i = kept[0], f = kept[1], g = kept[2], o = kept[3], one = all(1.0f), t = tanh(after.c);
    vf dc = d.c + d.h * o * (one - t * t);
    sum[0] = dc * g * i * (one - i);
    sum[1] = dc * before.c * f * (one - f);
    sum[2] = dc * i * (one - g * g);
    sum[3] = d.h * t * o * (one - o);
    d.h = vf{};
    d.c = dc * f;
  }
};

struct Gru {
  static constexpr int gates = 3, vectors = 2, saved = 4, fields = 1;
  static constexpr bool apart = true;

  static RECURRA_INLINE void start(vf* sum, const vf* x, const vf* bias) { sum[0] = x[0], sum[1] = x[1], sum[2] = bias[2]; }
  static RECURRA_INLINE Unit forward(const vf* sum, const vf* x, Unit before, vf* keep) {
    vf r = sigmoid(sum[0]), z = sigmoid(sum[1]), n = tanh(x[2] + r * sum[2]);
    keep[0] = r, keep[1] = z, keep[2] = n, keep[3] = sum[2];
    return {n + z * (before.h - n), vf{}};
  }
  static RECURRA_INLINE void backward(vf* sum, const vf* kept, Unit, Unit before, Unit& d) {
    vf r = kept[0], z = kept[1], n = kept[2], one = all(1.0f);
    vf dn = d.h * (one - z) * (one - n * n);
    sum[0] = dn * kept[3] * r * (one - r);
    sum[1] = d.h * (before.h - n) * z * (one - z);
    sum[2] = dn;
    sum[3] = dn * r;
    d.h = d.h * z;
  }
};

}  // namespace RECURRA_ISA
