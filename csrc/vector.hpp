// A vector of floats, as wide as the instruction set of this compilation, and the functions of the gates on it.
//
// Only the vector extensions that GCC and Clang share are used; RECURRA_WIDTH is the number of floats, RECURRA_ISA the
// namespace, so that one source is compiled for several instruction sets side by side.
#pragma once

#include <cstdint>
#include <cstring>

#define RECURRA_INLINE inline __attribute__((always_inline))

namespace RECURRA_ISA {

constexpr int W = RECURRA_WIDTH;
typedef float vf __attribute__((vector_size(RECURRA_WIDTH * 4)));
typedef int32_t vi __attribute__((vector_size(RECURRA_WIDTH * 4)));

RECURRA_INLINE vf load(const float* p) {
  vf v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

RECURRA_INLINE void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

// The first n floats only; the others are zero, or not written.
RECURRA_INLINE vf load_part(const float* p, long n) {
  if (n >= W) return load(p);
  vf v = {};
  if (n > 0) std::memcpy(&v, p, n * sizeof(float));
  return v;
}

RECURRA_INLINE void store_part(float* p, vf v, long n) {
  if (n >= W) return store(p, v);
  if (n > 0) std::memcpy(p, &v, n * sizeof(float));
}

RECURRA_INLINE vf all(float x) { return x - vf{}; }

// Where i[k] < W the entry of a, else of b.
RECURRA_INLINE vf shuffle(vf a, vf b, vi i) {
#if defined(__clang__)
  vf out;
  for (int k = 0; k < W; k++) out[k] = i[k] < W ? a[i[k]] : b[i[k] - W];
  return out;
#else
  return __builtin_shuffle(a, b, i);
#endif
}

// A comparison with NaN is false, so NaN passes through both.
RECURRA_INLINE vf at_most(vf x, float top) { return x > all(top) ? all(top) : x; }
RECURRA_INLINE vf at_least(vf x, float bottom) { return x < all(bottom) ? all(bottom) : x; }

// x = n ln 2 + r: 2^n, and e^r - 1 by its Taylor polynomial, |r| <= ln 2 / 2. For |x| < 88.
struct Reduced {
  vf power, rest;
};

RECURRA_INLINE Reduced reduce(vf x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  vf shifted = x * all(1.44269504088896341f) + all(magic);
  vf n = shifted - all(magic);
  vf r = x - n * all(0.693359375f);
  r = r - n * all(-2.12194440e-4f);
  vf q = all(1.0f / 5040);
  q = q * r + all(1.0f / 720);
  q = q * r + all(1.0f / 120);
  q = q * r + all(1.0f / 24);
  q = q * r + all(1.0f / 6);
  q = q * r + all(0.5f);
  vi exponent = ((vi)shifted << 23) + 0x3f800000;
  return {(vf)exponent, q * r * r + r};
}

RECURRA_INLINE vf sigmoid(vf x) {
  Reduced e = reduce(-at_least(at_most(x, 87.0f), -87.0f));
  return all(1.0f) / (all(1.0f) + e.power + e.power * e.rest);
}

// Of |x|: (e^2x - 1) / (e^2x + 1), which is right near zero, or 1 - 2 / (e^2x + 1), which is right near one.
RECURRA_INLINE vf tanh(vf x) {
  const vi sign_bit = (vi)all(-0.0f);
  const vi sign = (vi)x & sign_bit;
  vf size = at_most((vf)((vi)x & ~sign_bit), 10.0f);
  Reduced e = reduce(2.0f * size);
  vf less_one = e.power * e.rest + (e.power - all(1.0f));
  vf inverse = all(1.0f) / (less_one + all(2.0f));
  vf value = size < all(0.5f) ? less_one * inverse : all(1.0f) - 2.0f * inverse;
  return (vf)((vi)value | sign);
}

RECURRA_INLINE vf relu(vf x) { return x < all(0.0f) ? all(0.0f) : x; }

}  // namespace RECURRA_ISA
