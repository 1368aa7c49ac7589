// A vector of floats, as wide as the instruction set of this compilation, and the functions of the gates on it.
//
// Only the vector extensions that GCC and Clang share are used; RECURRA_WIDTH is the number of floats, RECURRA_ISA the
// namespace, so that one source is compiled for several instruction sets side by side.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

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

// Past the caches, where memory takes a whole line at once, which then is not fetched before it is written; `settle` when all is stored.
RECURRA_INLINE void store_past(float* p, vf v) {
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(p) % sizeof v == 0) return _mm512_stream_ps(p, v);
#endif
  store(p, v);
}

RECURRA_INLINE void settle() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
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

// NaN passes through both: of a NaN and a number the x86 instructions give the second, and a comparison is false.
RECURRA_INLINE vf at_most(vf x, float top) {
#if defined(__AVX512F__)
  return _mm512_min_ps(all(top), x);
#elif defined(__AVX2__)
  return _mm256_min_ps(all(top), x);
#else
  return x > all(top) ? all(top) : x;
#endif
}

RECURRA_INLINE vf at_least(vf x, float bottom) {
#if defined(__AVX512F__)
  return _mm512_max_ps(all(bottom), x);
#elif defined(__AVX2__)
  return _mm256_max_ps(all(bottom), x);
#else
  return x < all(bottom) ? all(bottom) : x;
#endif
}

// 2^(x * factor) = whole * (1 + rest * slope): rest in [-1/2, 1/2] what is left of the exponent when it is rounded, and
// slope = (2^rest - 1) / rest by its Chebyshev interpolation, relative error 3e-8. For |x * factor| < 126.
struct Power {
  vf whole, rest, slope;
};

RECURRA_INLINE Power power(vf x, float factor) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  vf shifted = x * all(factor) + all(magic);
  vf rest = x * all(factor) - (shifted - all(magic));
  vf slope = all(1.5453163e-4f);
  slope = slope * rest + all(1.3390863e-3f);
  slope = slope * rest + all(9.618083e-3f);
  slope = slope * rest + all(5.550357e-2f);
  slope = slope * rest + all(0.2402265f);
  slope = slope * rest + all(0.6931472f);
  vi exponent = ((vi)shifted << 23) + 0x3f800000;
  return {(vf)exponent, rest, slope};
}

constexpr float LOG2_E = 1.44269504f;

RECURRA_INLINE vf sigmoid(vf x) {
  Power e = power(at_least(at_most(x, 87.0f), -87.0f), -LOG2_E);
  return all(1.0f) / (e.whole * (e.rest * e.slope + all(1.0f)) + all(1.0f));
}

// (e^2x - 1) / (e^2x + 1), the numerator without the cancellation near zero.
RECURRA_INLINE vf tanh(vf x) {
  Power e = power(at_least(at_most(x, 10.0f), -10.0f), 2 * LOG2_E);
  vf less_one = e.whole * (e.rest * e.slope) + (e.whole - all(1.0f));
  return less_one / (less_one + all(2.0f));
}

RECURRA_INLINE vf relu(vf x) { return x < all(0.0f) ? all(0.0f) : x; }

}  // namespace RECURRA_ISA
