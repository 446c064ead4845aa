// What follows the convolution while the rows written are still in cache: a residual is added and
// an activation applied, in the arithmetic type, before a 16-bit result is rounded.
#pragma once

#include "depthwise_conv3d_lanes.h"
#include "depthwise_conv3d_reader.h"
#include "depthwise_conv3d_row.h"
#include "exp.h"

namespace vmf {
namespace VMF_ISA {
namespace {

// ---- Activations of a vector; NaN stays NaN ----

template <typename V>
inline V clamp(V x, V least, V most) {
  const V y = x < least ? least : x;
  return y > most ? most : y;
}

// erfc(z) for z >= 0: Abramowitz and Stegun, 7.1.26, an error of 1.5e-7.
inline Vec<float> erfc(Vec<float> z) {
  const Vec<float> t = 1.0f / (1.0f + 0.3275911f * z);
  Vec<float> p = splat<float>(1.061405429f);
  p = fma(p, t, splat<float>(-1.453152027f));
  p = fma(p, t, splat<float>(1.421413741f));
  p = fma(p, t, splat<float>(-0.284496736f));
  p = fma(p, t, splat<float>(0.254829592f));
  return p * t * exp(-(z * z));
}

inline Vec<double> erfc(Vec<double> z) {
  for (int i = 0; i < kLanes<double>; ++i) z[i] = std::erfc(z[i]);
  return z;
}

template <Activation A, typename Real>
inline Vec<Real> activate(Vec<Real> x, Vec<Real> a1, Vec<Real> a2) {
  const Vec<Real> zero = {}, six = splat<Real>(6);
  if constexpr (A == Activation::relu) return x < zero ? zero : x;
  if constexpr (A == Activation::relu6) return clamp(x, zero, six);
  if constexpr (A == Activation::hardswish) return x * clamp(x + 3, zero, six) / 6;
  if constexpr (A == Activation::silu) return x / (1 + exp(-x));
  if constexpr (A == Activation::gelu) {
    constexpr Real kSqrtHalf = static_cast<Real>(0.70710678118654752440);
    const Vec<Real> beyond = erfc((x < zero ? -x : x) * kSqrtHalf) / 2;
    return x * (x < zero ? beyond : 1 - beyond);
  }
  if constexpr (A == Activation::dynamic_relu) {
    const Vec<Real> p = a1 * x, q = a2 * x;
    return p != p ? p : (p > q ? p : q);
  }
  return x;
}

template <typename T>
class Epilogue {
 public:
  using Real = Arithmetic<T>;
  static constexpr int kCount = kLanes<Real>;

  // Of an output `to` with `channels` channels and rows of `columns` columns, in groups of at most
  // `vectors` vectors of lanes.
  Epilogue(const DepthwiseConv3dEpilogue& epilogue, T* to, const Strides& strides,
           bool channels_last, int64_t channels, int64_t columns, int64_t vectors)
      : activation_(epilogue.activation),
        to_(to),
        residual_(static_cast<const T*>(epilogue.residual)),
        slopes_{static_cast<const T*>(epilogue.slopes[0]),
                static_cast<const T*>(epilogue.slopes[1])},
        strides_(strides),
        channels_(channels),
        columns_(columns),
        any_(residual_ != nullptr || activation_ != Activation::none),
        reader_(residual_, strides, channels_last, columns, 0, columns, 1),
        vectors_(any_ ? vectors : 0) {}

  bool any() const { return any_; }
  bool needs_buffer() const { return residual_ != nullptr; }

  // Vector `i` of the group at hand has these lanes, of which an earlier one writes the first
  // `skip`.
  void attach(int64_t i, const Lanes<Real>& lanes, int skip) {
    if (!any_) return;
    Vector& v = vectors_[i];
    v.skip = skip;
    v.lanes = lanes;
    if (activation_ != Activation::dynamic_relu) return;
    for (int s = 0; s < 2; ++s) {
      v.slope[s] = Vec<Real>{};
      const T* at[kCount];
      for (int lane = 0; lane < kCount; ++lane) {
        const int from = lane + skip;
        const bool any = from < lanes.count;
        at[lane] =
            any ? slopes_[s] + lanes.sample[from] * channels_ + lanes.channel[from] : nullptr;
      }
      gather_rows(at, 1, [&](int64_t) { return reinterpret_cast<Real*>(&v.slope[s]); });
    }
  }

  // Rows that vectors `begin` to `end` have just written into the tensor.
  template <typename Held>
  void finish_in_place(int64_t begin, int64_t end, const RowVector<Held>* vectors, int64_t rows) {
    if (!any_) return;
    if constexpr (sizeof(T) == sizeof(Real)) {
      for (int64_t i = begin; i < end; ++i) {
        Vector& v = vectors_[i];
        v.to = reinterpret_cast<T*>(vectors[i].to) + v.skip;
        v.residual = residual_ == nullptr ? nullptr : residual_ + (v.to - to_);
      }
      finish(begin, end, rows, strides_.h, strides_.w);
    }
  }

  // Rows `h` of frame `t` that vector `i` has just written into `buffer`.
  void finish_buffer(int64_t i, Real* buffer, Real* residual_buffer, int64_t t, Range h) {
    if (!any_) return;
    Vector& v = vectors_[i];
    v.to = buffer;
    v.residual = nullptr;
    if (residual_ != nullptr) {
      const int64_t first = v.lanes.sample[0] * channels_ + v.lanes.channel[0];
      reader_.attach({first, first + v.lanes.count}, channels_, 1, 1);
      reader_.read(t, h, residual_buffer, 0);
      v.residual = residual_buffer;
    }
    finish(i, i + 1, h.size(), columns_ * kCount, kCount);
  }

 private:
  struct Vector {
    Lanes<Real> lanes;
    int skip;
    Vec<Real> slope[2];
    Real* to;
    const Real* residual;  // of what is at `to`
  };

  void finish(int64_t begin, int64_t end, int64_t rows, int64_t row_step, int64_t step) {
    switch (activation_) {
      case Activation::none:
        return each<Activation::none>(begin, end, rows, row_step, step);
      case Activation::relu:
        return each<Activation::relu>(begin, end, rows, row_step, step);
      case Activation::relu6:
        return each<Activation::relu6>(begin, end, rows, row_step, step);
      case Activation::hardswish:
        return each<Activation::hardswish>(begin, end, rows, row_step, step);
      case Activation::silu:
        return each<Activation::silu>(begin, end, rows, row_step, step);
      case Activation::gelu:
        return each<Activation::gelu>(begin, end, rows, row_step, step);
      case Activation::dynamic_relu:
        return each<Activation::dynamic_relu>(begin, end, rows, row_step, step);
    }
  }

  // In the order of memory.
  template <Activation A>
  void each(int64_t begin, int64_t end, int64_t rows, int64_t row_step, int64_t step) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t w = 0; w < columns_; ++w) {
        const int64_t at = row * row_step + w * step;
        for (int64_t i = begin; i < end; ++i) {
          const Vector& v = vectors_[i];
          const int64_t n = kCount - v.skip;
          Vec<Real> x = load_some(v.to + at, n);
          if (residual_ != nullptr) x = x + load_some(v.residual + at, n);
          store_some(v.to + at, activate<A, Real>(x, v.slope[0], v.slope[1]), n);
        }
      }
    }
  }

  Activation activation_;
  T* to_;
  const T* residual_;
  const T* slopes_[2];
  Strides strides_;
  int64_t channels_, columns_;
  bool any_;
  Reader<T> reader_;  // of the residual
  Array<Vector> vectors_;
};

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
