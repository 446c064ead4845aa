// The inner kernel of the weight gradient: some rows of one frame, for some taps.
//
// Each tap's gradient is a sum over positions of the output's gradient times the input under that
// tap. Kernel rows are taken `Rows` at a time, `Taps` columns each: Rows * Taps sums stay in
// registers over all positions, and a tile of R gradients is loaded once for all of them.
#pragma once

#include "depthwise_conv3d_plan.h"
#include "vec.h"

namespace vmf {
namespace VMF_ISA {
namespace {

// Adds to sums[kernel row * sums_step + column tap * lanes + lane]. held + inputs[row * Rows + i]
// is the row of the input that row `row` of the gradient meets under the i-th kernel row, from the
// column under the first tap of the first gradient; `grads` has `tiles` tiles of R columns a row.
template <typename Real>
using SumKernel = void (*)(const int64_t* inputs, const Real* held, const Real* grads, int64_t rows,
                           int64_t tiles, int64_t advance, Real* sums, int64_t sums_step);

// Rows that are summed in registers before they are added to memory: chains of some 32 positions
// lose few digits and cost little to add up.
inline int64_t rows_summed(int64_t columns) { return larger(1, 32 / columns); }

template <typename Real, int Rows, int Taps, int Advance, int R>
void sum_rows(const int64_t* inputs, const Real* held, const Real* grads, int64_t rows,
              int64_t tiles, int64_t advance, Real* sums, int64_t sums_step) {
  constexpr int lanes = kLanes<Real>;
  constexpr int kStep = Advance == 0 ? 1 : Advance;  // in columns loaded
  constexpr int kColumns = (R - 1) * kStep + Taps;
  if (Advance != 0) advance = Advance;
  const int64_t chunk = rows_summed(tiles * R);
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t end = smaller(begin + chunk, rows);
    Vec<Real> sum[Rows][Taps] = {};
    for (int64_t row = begin; row < end; ++row, inputs += Rows) {
      for (int64_t tile = 0; tile < tiles; ++tile, grads += R * lanes) {
        Vec<Real> grad[R];
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i) grad[i] = load(grads + i * lanes);
#pragma GCC unroll 8
        for (int j = 0; j < Rows; ++j) {
          const Real* input = held + inputs[j] + tile * R * advance * lanes;
#pragma GCC unroll 32
          for (int column = 0; column < kColumns; ++column) {
            Vec<Real> x = load(input);
            pin(x);
            input += (Advance == 0 ? advance : 1) * lanes;
            if (Advance == 0) pin_address(input);
#pragma GCC unroll 8
            for (int k = 0; k < Taps; ++k) {
              const int i = (column - k) / kStep;
              if (column >= k && (column - k) % kStep == 0 && i < R) {
                sum[j][k] = fma(x, grad[i], sum[j][k]);
              }
            }
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < Rows; ++j) {
#pragma GCC unroll 8
      for (int k = 0; k < Taps; ++k) {
        Real* to = sums + j * sums_step + k * lanes;
        store(to, load(to) + sum[j][k]);
      }
    }
  }
}

// As many gradients as leave registers for the sums and two columns.
constexpr int max_gradients(int sums) {
  return kRegisters - sums - 2 < 8 ? kRegisters - sums - 2 : 8;
}

template <typename Real, int Rows, int Taps, int Advance, int R = max_gradients(Rows * Taps)>
SumKernel<Real> find_gradients(int64_t tile) {
  if constexpr (R > 0) {
    return tile == R ? sum_rows<Real, Rows, Taps, Advance, R>
                     : find_gradients<Real, Rows, Taps, Advance, R - 1>(tile);
  } else {
    return nullptr;
  }
}

// How kernel rows and taps are taken together, and the tile.
struct SumTile {
  int rows, taps;
  int64_t columns, tiles;  // of gradients; tiles * columns may exceed the row
};

inline SumTile choose_sum_tile(int64_t kernel_rows, int taps, int64_t columns) {
  SumTile s{1, taps, 1, columns};
  if (taps <= 3 && kernel_rows % 3 == 0) s.rows = 3;
  if (taps == 1 && kernel_rows % 5 == 0) s.rows = 5;
  s.tiles = ceil_div(columns, max_gradients(s.rows * taps));
  s.columns = ceil_div(columns, s.tiles);
  return s;
}

template <typename Real>
SumKernel<Real> find_sum_kernel(const SumTile& s, int64_t advance) {
  const int64_t tile = s.columns;
  switch ((advance == 2 && s.taps > 1 ? 100 : 0) + s.rows * 10 + s.taps) {
    case 12:
      return find_gradients<Real, 1, 2, 1>(tile);
    case 13:
      return find_gradients<Real, 1, 3, 1>(tile);
    case 14:
      return find_gradients<Real, 1, 4, 1>(tile);
    case 15:
      return find_gradients<Real, 1, 5, 1>(tile);
    case 17:
      return find_gradients<Real, 1, 7, 1>(tile);
    case 113:
      return find_gradients<Real, 1, 3, 2>(tile);
    case 115:
      return find_gradients<Real, 1, 5, 2>(tile);
    case 117:
      return find_gradients<Real, 1, 7, 2>(tile);
    case 31:
      return find_gradients<Real, 3, 1, 0>(tile);
    case 32:
      return find_gradients<Real, 3, 2, 1>(tile);
    case 33:
      return find_gradients<Real, 3, 3, 1>(tile);
    case 133:
      return find_gradients<Real, 3, 3, 2>(tile);
    case 51:
      return find_gradients<Real, 5, 1, 0>(tile);
    default:
      return find_gradients<Real, 1, 1, 0>(tile);
  }
}

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
