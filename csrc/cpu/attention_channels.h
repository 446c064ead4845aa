// Two of the three products with vectors along the channels, straight on channels-last memory.
//
// `reduce` then needs no sums across lanes, and `outer` no transposition of what it computes. Both
// need heads that are at least a vector wide; a width that is no multiple of a vector ends in a
// vector that overlaps the one before. (The third product, `dot`, would need a sum across lanes for
// each score, so it runs on rows.)
#pragma once

#include "cpu/attention_products.h"

namespace vmf {
namespace VMF_ISA {
namespace {

template <typename T>
constexpr bool along_channels(bool channels_last, int64_t width) {
  return channels_last && width >= kLanes<Arithmetic<T>>;
}

// The first channel of vector v of a head.
template <typename Real>
inline int64_t first_channel(int64_t v, int64_t width) {
  return std::min<int64_t>(v * kLanes<Real>, width - kLanes<Real>);
}

// Of the vectors [first, first + K) of the head. At most kChain positions.
template <typename T, int G, int K>
void reduce_channels_tile(Rows<const Arithmetic<T>> a, const T* x, int64_t step, int64_t count,
                          int64_t first, int64_t width, Arithmetic<T>* sums, int64_t sums_stride) {
  using Real = Arithmetic<T>;
  const T* from[K];
  for (int k = 0; k < K; ++k) from[k] = x + first_channel<Real>(first + k, width);
  Vec<Real> total[G][K] = {};
  for (int64_t i = 0; i < count; ++i) {
    Vec<Real> value[K];
    for (int k = 0; k < K; ++k) {
      value[k] = load(from[k] + i * step);
      pin(value[k]);
    }
    for (int g = 0; g < G; ++g) {
      const Vec<Real> weight = splat<Real>(a[g][i]);
      for (int k = 0; k < K; ++k) total[g][k] = fma(weight, value[k], total[g][k]);
    }
  }
  for (int k = 0; k < K; ++k) {
    const int64_t c = first_channel<Real>(first + k, width);
    const int64_t known = (first + k) * kLanes<Real> - c;  // lanes that the vector before has
    for (int g = 0; g < G; ++g) {
      Real* to = sums + g * sums_stride + c;
      store(to, load(to) + last_lanes<Real>(total[g][k], known));
    }
  }
}

// sums[m * sums_stride + c] += sum over `count` positions of a[m] x[c]
template <typename T>
void reduce_channels(Rows<const Arithmetic<T>> a, int64_t tokens, const T* x, int64_t step,
                     int64_t width, int64_t count, Arithmetic<T>* sums, int64_t sums_stride) {
  using Real = Arithmetic<T>;
  const int64_t vectors = (width + kLanes<Real> - 1) / kLanes<Real>;
  for (int64_t i = 0; i < count; i += kChain) {
    const int64_t n = std::min(kChain, count - i);
    in_parts<kGroup>(tokens, [&](int64_t m, auto group) {
      constexpr int G = group;
      constexpr int K = std::min(4, kSums / G);
      in_parts<K>(vectors, [&](int64_t v, auto size) {
        reduce_channels_tile<T, G, size>({a[m] + i, a.stride}, x + i * step, step, n, v, width,
                                         sums + m * sums_stride, sums_stride);
      });
    });
  }
}

template <typename T, int G, int K>
void outer_channels_tile(const T* base, const Arithmetic<T>* w, int64_t step,
                         Rows<const Arithmetic<T>> a, int64_t count, int64_t first, int64_t width,
                         T* y) {
  using Real = Arithmetic<T>;
  int64_t c[K];
  Vec<Real> weight[G][K];
  for (int k = 0; k < K; ++k) {
    c[k] = first_channel<Real>(first + k, width);
    for (int g = 0; g < G; ++g) weight[g][k] = load(w + g * step + c[k]);
  }
  for (int64_t i = 0; i < count; ++i) {
    Vec<Real> sums[K] = {};
    for (int g = 0; g < G; ++g) {
      const Vec<Real> value = splat<Real>(a[g][i]);
      for (int k = 0; k < K; ++k) sums[k] = fma(value, weight[g][k], sums[k]);
    }
    if (base) {
      for (int k = 0; k < K; ++k) sums[k] += load(base + i * step + c[k]);
    }
    for (int k = 0; k < K; ++k) store(y + i * step + c[k], sums[k]);
  }
}

// How many rows of `a` one call can take: all their weights stay in registers.
constexpr int kOuterRows = 2 * kGroup;

// y[c] = base[c] + sum over m of w[m * step + c] a[m]; `base` and y, which may not overlap, have
// positions `step` apart. A null base: zeros. At most kOuterRows rows.
template <typename T>
void outer_channels(const T* base, const Arithmetic<T>* w, int64_t step, int64_t rows,
                    Rows<const Arithmetic<T>> a, int64_t width, int64_t count, T* y) {
  using Real = Arithmetic<T>;
  const int64_t vectors = (width + kLanes<Real> - 1) / kLanes<Real>;
  with_constant<kOuterRows>(rows, [&](auto group) {
    constexpr int G = group;
    constexpr int K = std::max(1, std::min(4, kSums / G));
    in_parts<K>(vectors, [&](int64_t v, auto size) {
      outer_channels_tile<T, G, size>(base, w, step, a, count, v, width, y);
    });
  });
}

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
