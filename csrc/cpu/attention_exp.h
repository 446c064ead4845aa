// 2^t of a vector, for t <= 0 or a little above: what a softmax needs of the exponential.
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

// 2^n times a polynomial in the rest of t, which is in [-0.5, 0.5]: about 1 ulp (of float). Below
// 2^-126.5 it is 0; NaN stays NaN. t must be less than 127.
inline Vec<float> exp2(Vec<float> t) {
  // Adding this number leaves t rounded to an integer, plus 127, in the last bits.
  constexpr float kRound = 0x1.8p23f + 127;
  t = larger(splat<float>(-127.0f), t);
  const Vec<float> shifted = t + kRound;
  const Vec<float> r = t - (shifted - kRound);
  Vec<float> p = splat<float>(1.5353362e-4f);
  p = fma(p, r, splat<float>(1.3398874e-3f));
  p = fma(p, r, splat<float>(9.6184373e-3f));
  p = fma(p, r, splat<float>(5.5503324e-2f));
  p = fma(p, r, splat<float>(2.4022648e-1f));
  p = fma(p, r, splat<float>(6.9314720e-1f));
  p = fma(p, r, splat<float>(1.0f));
  return p * reinterpret_cast<Vec<float>>(reinterpret_cast<FloatBits>(shifted) << 23);
}

inline Vec<double> exp2(Vec<double> t) {
  for (int i = 0; i < kLanes<double>; ++i) t[i] = std::exp2(t[i]);
  return t;
}

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
