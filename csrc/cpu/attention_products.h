// The three products of few-token attention, on rows of positions.
//
// A row is one channel, or the scores of one token, at the positions of a block: whole vectors.
// Weights are what the tokens have for one head: w[c * step + m] for channel c and token m. All
// tiles keep their sums in registers: tokens are taken in groups of at most kGroup.
//
//   dot     scores[m] = sum over c of w[c][m] x[c]
//   outer   y[c] = base[c] + sum over m of w[c][m] a[m]
//   reduce  sums[m][c] += sum over positions of a[m] x[c]
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/vec.h"

namespace vmf {
namespace VMF_ISA {
namespace {

// Longest sum in one float: a longer one is made of such sums.
constexpr int64_t kChain = 128;

// Sums in registers: three quarters of the registers, the others for operands.
constexpr int kSums = kRegisters * 3 / 4;
constexpr int kGroup = 6;

// Rows of `stride` elements.
template <typename Real>
struct Rows {
  Real* data;
  int64_t stride;
  Real* operator[](int64_t row) const { return data + row * stride; }
  Rows from(int64_t row) const { return {(*this)[row], stride}; }
  operator Rows<const Real>() const { return {data, stride}; }
};

// Calls f with `count`, of 1 to Max, as a constant.
template <int Max, typename Function>
inline void with_constant(int64_t count, const Function& f) {
  if constexpr (Max > 1) {
    if (count < Max) return with_constant<Max - 1>(count, f);
  }
  f(std::integral_constant<int, Max>());
}

// Calls f(first, size as a constant) for parts of [0, count) of at most Max, of nearly one size.
template <int Max, typename Function>
inline void in_parts(int64_t count, const Function& f) {
  for (int64_t first = 0, parts = (count + Max - 1) / Max; parts > 0; --parts) {
    const int64_t size = (count - first + parts - 1) / parts;
    with_constant<Max>(size, [&](auto constant) { f(first, constant); });
    first += size;
  }
}

// Calls f(first, size as a constant) for parts of [0, count) of Max, the last one shorter.
template <int Max, typename Function>
inline void in_blocks(int64_t count, const Function& f) {
  int64_t first = 0;
  for (; first + Max <= count; first += Max) f(first, std::integral_constant<int, Max>());
  if constexpr (Max > 1) {
    if (first < count) {
      with_constant<Max - 1>(count - first, [&](auto constant) { f(first, constant); });
    }
  }
}

template <typename Real, int G, int V>
void dot_tile(Rows<const Real> x, const Real* w, int64_t step, int64_t width, Rows<Real> scores) {
  constexpr int lanes = kLanes<Real>;
  for (int64_t c = 0; c < width; c += kChain) {
    const int64_t end = std::min(width, c + kChain);
    Vec<Real> sums[G][V] = {};
    const Real *row = x[c], *weights = w + c * step;
    for (int64_t k = c; k < end; ++k, row += x.stride, weights += step) {
      Vec<Real> value[V];
      for (int v = 0; v < V; ++v) {
        value[v] = load(row + v * lanes);
        pin(value[v]);
      }
      for (int g = 0; g < G; ++g) {
        const Vec<Real> weight = splat<Real>(weights[g]);
        for (int v = 0; v < V; ++v) sums[g][v] = fma(weight, value[v], sums[g][v]);
      }
    }
    for (int g = 0; g < G; ++g) {
      for (int v = 0; v < V; ++v) {
        Real* to = scores[g] + v * lanes;
        store(to, c == 0 ? sums[g][v] : load(to) + sums[g][v]);
      }
    }
  }
}

template <typename Real>
void dot(Rows<const Real> x, int64_t width, const Real* w, int64_t step, int64_t tokens,
         Rows<Real> scores, int64_t vectors) {
  constexpr int lanes = kLanes<Real>;
  in_parts<kGroup>(tokens, [&](int64_t m, auto group) {
    constexpr int G = group;
    constexpr int V = std::min(4, kSums / G);
    in_blocks<V>(vectors, [&](int64_t i, auto count) {
      dot_tile<Real, G, count>({x.data + i * lanes, x.stride}, w + m, step, width,
                               {scores[m] + i * lanes, scores.stride});
    });
  });
}

// `base` may be y itself; null: zeros.
template <typename Real, int G, int V>
void outer_tile(const Real* base, int64_t base_stride, const Real* w, int64_t step, int64_t width,
                Rows<const Real> a, Rows<Real> y) {
  constexpr int lanes = kLanes<Real>;
  Vec<Real> value[G][V];
  for (int g = 0; g < G; ++g) {
    for (int v = 0; v < V; ++v) value[g][v] = load(a[g] + v * lanes);
  }
  Real* to = y.data;
  for (int64_t c = 0; c < width; ++c, w += step, to += y.stride) {
    Vec<Real> sums[V] = {};
    for (int g = 0; g < G; ++g) {
      const Vec<Real> weight = splat<Real>(w[g]);
      for (int v = 0; v < V; ++v) sums[v] = fma(weight, value[g][v], sums[v]);
    }
    if (base) {  // last: it is large, and so would be the rounding of each sum with it
      for (int v = 0; v < V; ++v) sums[v] += load(base + v * lanes);
      base += base_stride;
    }
    for (int v = 0; v < V; ++v) store(to + v * lanes, sums[v]);
  }
}

template <typename Real>
void outer(Rows<const Real> base, const Real* w, int64_t step, int64_t tokens, Rows<const Real> a,
           int64_t width, Rows<Real> y, int64_t vectors) {
  constexpr int lanes = kLanes<Real>;
  constexpr int kMost = 2 * kGroup;
  in_parts<kMost>(tokens, [&](int64_t m, auto group) {
    constexpr int G = group;
    constexpr int V = std::max(1, std::min(4, kSums / G));
    const Rows<const Real> from = m == 0 ? base : Rows<const Real>(y);
    in_blocks<V>(vectors, [&](int64_t i, auto count) {
      outer_tile<Real, G, count>(from.data ? from.data + i * lanes : nullptr, from.stride, w + m,
                                 step, width, {a[m] + i * lanes, a.stride},
                                 {y.data + i * lanes, y.stride});
    });
  });
}

// Adds the lanes of each of the `lanes` vectors: lane i of the result is the sum of vector i.
template <typename Real, int Size = kLanes<Real> / 2>
inline Vec<Real> add_lanes(Vec<Real>* v) {
  if constexpr (Size > 0) {
    constexpr int lanes = kLanes<Real>;
    for (int i = 0; i < Size; ++i) {
      swap_blocks<Size, IndexVec<Real>>(v[i], v[i + Size], typename MakeSequence<lanes>::Type());
      v[i] += v[i + Size];
    }
    return add_lanes<Real, Size / 2>(v);
  } else {
    return v[0];
  }
}

// sums[g * sums_stride + k]; at most kChain vectors.
template <typename Real, int G, int K>
void reduce_tile(Rows<const Real> a, Rows<const Real> x, int64_t vectors, Real* sums,
                 int64_t sums_stride) {
  constexpr int lanes = kLanes<Real>, padded = (G * K + lanes - 1) / lanes * lanes;
  Vec<Real> total[padded];
#pragma GCC unroll 64
  for (int i = 0; i < padded; ++i) total[i] = Vec<Real>{};
  for (int64_t i = 0; i < vectors * lanes; i += lanes) {
    Vec<Real> value[K];
    for (int k = 0; k < K; ++k) {
      value[k] = load(x[k] + i);
      pin(value[k]);
    }
    for (int g = 0; g < G; ++g) {
      const Vec<Real> weight = load(a[g] + i);
      for (int k = 0; k < K; ++k) total[g * K + k] = fma(weight, value[k], total[g * K + k]);
    }
  }
  Real added[padded];
  for (int i = 0; i < padded; i += lanes) store(added + i, add_lanes<Real>(total + i));
  for (int g = 0; g < G; ++g) {
    for (int k = 0; k < K; ++k) sums[g * sums_stride + k] += added[g * K + k];
  }
}

template <typename Real>
void reduce(Rows<const Real> a, int64_t tokens, Rows<const Real> x, int64_t width, int64_t vectors,
            Real* sums, int64_t sums_stride) {
  in_parts<kGroup>(tokens, [&](int64_t m, auto group) {
    constexpr int G = group;
    constexpr int K = std::min(8, kSums / G);
    in_blocks<K>(width, [&](int64_t c, auto count) {
      reduce_tile<Real, G, count>(a.from(m), x.from(c), vectors, sums + m * sums_stride + c,
                                  sums_stride);
    });
  });
}

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
