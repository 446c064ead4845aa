// Exponentials of vectors: 2^t as a softmax needs it, e^x as activations do.
#pragma once

#include <cmath>

#include "cpu/vec.h"

namespace vmf {
namespace VMF_ISA {
namespace {

constexpr double kLog2e = 1.4426950408889634;  // scores in units of log 2 are this times larger

// The larger of both, `b` where either is NaN: one instruction on x86.
inline Vec<float> larger(Vec<float> a, Vec<float> b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec<float>>(_mm512_maskz_max_ps(0xffff, a, b));
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__x86_64__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

inline Vec<double> larger(Vec<double> a, Vec<double> b) { return a > b ? a : b; }

// Adding this number leaves a float below 2^7 rounded to an integer n; the last bits are n + 127.
constexpr float kRound = 0x1.8p23f + 127;

// 2^(n + r) for n as above and r in [-0.5, 0.5], about 1 ulp; 0 for n = -127.
inline Vec<float> exp2_of_parts(Vec<float> n, Vec<float> r) {
  Vec<float> p = splat<float>(1.5353362e-4f);
  p = fma(p, r, splat<float>(1.3398874e-3f));
  p = fma(p, r, splat<float>(9.6184373e-3f));
  p = fma(p, r, splat<float>(5.5503324e-2f));
  p = fma(p, r, splat<float>(2.4022648e-1f));
  p = fma(p, r, splat<float>(6.9314720e-1f));
  p = fma(p, r, splat<float>(1.0f));
  return p * reinterpret_cast<Vec<float>>(reinterpret_cast<FloatBits>(n) << 23);
}

// About 1 ulp (of float). Below 2^-126.5 it is 0; NaN stays NaN. t must be less than 127.
inline Vec<float> exp2(Vec<float> t) {
  t = larger(splat<float>(-127.0f), t);
  const Vec<float> n = t + kRound;
  return exp2_of_parts(n, t - (n - kRound));
}

inline Vec<double> exp2(Vec<double> t) {
  for (int i = 0; i < kLanes<double>; ++i) t[i] = std::exp2(t[i]);
  return t;
}

// About 1 ulp (of float) where e^x is a normal number; as at -88 below, as at 88 above. NaN stays.
inline Vec<float> exp(Vec<float> x) {
  constexpr float kHigh = static_cast<float>(kLog2e), kLow = static_cast<float>(kLog2e - kHigh);
  const Vec<float> most = splat<float>(88.0f);
  x = larger(splat<float>(-88.0f), x > most ? most : x);
  const Vec<float> n = x * kHigh + kRound;
  // The rest of the product, with the digits that a float of it would lose.
  const Vec<float> r = fma(x, splat<float>(kLow), fma(x, splat<float>(kHigh), kRound - n));
  return exp2_of_parts(n, r);
}

inline Vec<double> exp(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
