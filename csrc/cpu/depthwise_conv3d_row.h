// The inner kernel of forward and input gradient: one row written.
//
// A row of the result is a sum of 1D convolutions, one per (kT, kH) tap that is not padding. Which
// they are is a list made by the caller, so the kernel knows neither T nor H, neither borders nor
// dilation: it keeps a tile of R results in registers and runs down the list.
#pragma once

#include "depthwise_conv3d_plan.h"
#include "vec.h"

namespace vmf {
namespace VMF_ISA {
namespace {

struct RowTap {
  int64_t from;    // the column under the first tap of the first result, in what is held
  int64_t weight;  // the first tap of the run, in the weights
};

// Writes `columns` >= R results, `step` elements apart: the bias plus `groups` sums of `count` taps
// each; shorter chains lose fewer digits. The column read moves on by Advance from one result to
// the next; by `advance` where Advance is 0.
template <typename Real>
using RowKernel = void (*)(const RowTap* taps, int64_t groups, int64_t count, int64_t advance,
                           const Real* held, const Real* weights, const Real* bias, Real* to,
                           int64_t step, int64_t columns);

template <typename Real, int Taps, int Advance, int R>
void convolve_row(const RowTap* taps, int64_t groups, int64_t count, int64_t advance,
                  const Real* held, const Real* weights, const Real* bias, Real* to, int64_t step,
                  int64_t columns) {
  constexpr int lanes = kLanes<Real>;
  constexpr int kStep = Advance == 0 ? 1 : Advance;  // in columns loaded
  constexpr int kColumns = (R - 1) * kStep + Taps;
  static_assert(Advance != 0 || Taps == 1, "columns are shared where their distance is known");
  if (Advance != 0) advance = Advance;
  for (int64_t first = 0;;) {
    for (int64_t group = 0; group < groups; ++group) {
      Vec<Real> sum[R] = {};
      for (int64_t i = group * count; i < (group + 1) * count; ++i) {
        const Real* from = held + taps[i].from + first * advance * lanes;
        Vec<Real> weight[Taps];
#pragma GCC unroll 8
        for (int k = 0; k < Taps; ++k) weight[k] = load(weights + taps[i].weight + k * lanes);
#pragma GCC unroll 64
        for (int column = 0; column < kColumns; ++column) {
          Vec<Real> x = load(from);
          pin(x);
          from += (Advance == 0 ? advance : 1) * lanes;
          if (Advance == 0) pin_address(from);
#pragma GCC unroll 8
          for (int k = 0; k < Taps; ++k) {
            const int r = (column - k) / kStep;
            if (column >= k && (column - k) % kStep == 0 && r < R) {
              sum[r] = fma(x, weight[k], sum[r]);
            }
          }
        }
      }
      Real* at = to + first * step;
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r, at += step) {
        pin_address(at);
        store(at, load(group == 0 ? bias : at) + sum[r]);
      }
    }
    if (first + R >= columns) return;
    // The last tile overlaps the one before: tiles are near equal, so by few columns.
    first = smaller(first + R, columns - R);
  }
}

// As many results as leave registers for the weights of a run and two columns.
constexpr int max_tile(int taps) { return kRegisters - taps - 2 < 16 ? kRegisters - taps - 2 : 16; }

template <typename Real, int Taps, int Advance, int R = max_tile(Taps)>
RowKernel<Real> find_tile(int64_t tile) {
  if constexpr (R > 0) {
    return tile == R ? convolve_row<Real, Taps, Advance, R>
                     : find_tile<Real, Taps, Advance, R - 1>(tile);
  } else {
    return nullptr;
  }
}

// The kernel for rows of `columns` results (at least one) that takes `taps` taps at once.
template <typename Real>
RowKernel<Real> find_row_kernel(int taps, int64_t advance, int64_t columns) {
  const int64_t tiles = ceil_div(columns, max_tile(taps));
  const int64_t tile = ceil_div(columns, tiles);
  switch (advance == 2 ? 10 + taps : taps) {
    case 2:
      return find_tile<Real, 2, 1>(tile);
    case 3:
      return find_tile<Real, 3, 1>(tile);
    case 4:
      return find_tile<Real, 4, 1>(tile);
    case 5:
      return find_tile<Real, 5, 1>(tile);
    case 7:
      return find_tile<Real, 7, 1>(tile);
    case 13:
      return find_tile<Real, 3, 2>(tile);
    case 15:
      return find_tile<Real, 5, 2>(tile);
    case 17:
      return find_tile<Real, 7, 2>(tile);
    default:
      return find_tile<Real, 1, 0>(tile);
  }
}

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
