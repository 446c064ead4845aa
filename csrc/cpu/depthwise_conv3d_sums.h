// The inner kernel of the weight gradient: some rows of one frame, for some taps.
//
// Each tap's gradient is a sum over positions of the output's gradient times the input under that
// tap. Kernel rows are taken `Rows` at a time, `Taps` columns each: Rows * Taps sums stay in
// registers over all positions, and a tile of R gradients is loaded once for all of them. Rows are
// read where they lie, as in depthwise_conv3d_row.h: padding is left out.
#pragma once

#include "depthwise_conv3d_row.h"
#include "vec.h"

namespace vmf {
namespace VMF_ISA {
namespace {

// The rows of gradients of one vector of lanes, and the rows of the input under them; distances are
// in elements.
template <typename T>
struct Sums {
  const T* input;
  const int64_t* inputs;  // [row][kernel row]: where the row under it begins, or -1 for padding
  int64_t width, input_column;  // columns of such a row, and from one to the next
  int64_t left;                 // the column under the first tap of the first gradient
  int64_t advance;              // columns of the input, from one gradient to the next
  const T* grads;
  int64_t grad_row, grad_column;  // from row to row, and from column to column
  int64_t rows, columns;          // of gradients
  Arithmetic<T>* sums;            // [column tap][lane] of the first kernel row
  int64_t sums_row;               // from one kernel row to the next
};

template <typename T>
using SumKernel = void (*)(const Sums<T>& s);

// Rows that are summed in registers before they are added to memory: chains of some 32 positions
// lose few digits and cost little to add up.
inline int64_t rows_summed(int64_t columns) { return larger(1, 32 / columns); }

// Advance is s.advance, or 0 for any; a row has at least R gradients.
template <typename T, int Rows, int Taps, int Advance, int R>
void sum_rows(const Sums<T>& s) {
  using Real = Arithmetic<T>;
  constexpr int lanes = kLanes<Real>;
  constexpr int kStep = Advance == 0 ? 1 : Advance;  // in columns loaded
  constexpr int kColumns = (R - 1) * kStep + Taps;
  static_assert(Advance != 0 || Taps == 1, "columns are shared where their distance is known");
  const int64_t advance = Advance == 0 ? s.advance : Advance;
  const int64_t distance = s.input_column * (Advance == 0 ? advance : 1);
  const ColumnOffsets ahead(distance);
  const int64_t chunk = rows_summed(s.columns);
  for (int64_t begin = 0; begin < s.rows; begin += chunk) {
    const int64_t end = smaller(begin + chunk, s.rows);
    Vec<Real> sum[Rows][Taps];
#pragma GCC unroll 8
    for (int j = 0; j < Rows; ++j) {
#pragma GCC unroll 8
      for (int k = 0; k < Taps; ++k) sum[j][k] = Vec<Real>{};
    }
    for (int64_t row = begin; row < end; ++row) {
      int64_t again = 0;  // gradients of the tile that the one before has summed: zeroed
      for (int64_t at = 0;;) {
        Vec<Real> grad[R];
        const T* from = s.grads + row * s.grad_row + at * s.grad_column;
#pragma GCC unroll 16
        for (int i = 0; i < R; ++i, from += s.grad_column) {
          pin_address(from);
          grad[i] = load(from);
        }
        if (again > 0) {
#pragma GCC unroll 16
          for (int i = 0; i < R; ++i) grad[i] = i < again ? Vec<Real>{} : grad[i];
        }
        const int64_t left = s.left + at * advance, right = s.width - left;
#pragma GCC unroll 8
        for (int j = 0; j < Rows; ++j) {
          const int64_t input_row = s.inputs[row * Rows + j];
          if (input_row < 0) continue;
          const T* input = s.input + input_row + left * s.input_column;
#pragma GCC unroll 32
          for (int column = 0; column < kColumns; ++column) {
            const bool padding = (column < Taps - 1 && left + column < 0) ||
                                 (column > (R - 1) * kStep && column >= right);
            if (!padding) {
              Vec<Real> x = load(input + ahead[column]);
              pin(x);
#pragma GCC unroll 8
              for (int k = 0; k < Taps; ++k) {
                const int i = (column - k) / kStep;
                if (column >= k && (column - k) % kStep == 0 && i < R) {
                  sum[j][k] = fma(x, grad[i], sum[j][k]);
                }
              }
            }
            ahead.step(column, input);
          }
        }
        if (at + R >= s.columns) break;
        const int64_t next = smaller(at + R, s.columns - R);
        again = at + R - next;
        at = next;
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < Rows; ++j) {
#pragma GCC unroll 8
      for (int k = 0; k < Taps; ++k) {
        Real* to = s.sums + j * s.sums_row + k * lanes;
        store(to, load(to) + sum[j][k]);
      }
    }
  }
}

// As many gradients as leave registers for the sums and two columns.
constexpr int max_gradients(int sums) {
  return kRegisters - sums - 2 < 8 ? kRegisters - sums - 2 : 8;
}

template <typename T, int Rows, int Taps, int Advance, int R = max_gradients(Rows * Taps)>
SumKernel<T> find_gradients(int64_t tile) {
  if constexpr (R > 0) {
    return tile == R ? sum_rows<T, Rows, Taps, Advance, R>
                     : find_gradients<T, Rows, Taps, Advance, R - 1>(tile);
  } else {
    return nullptr;
  }
}

// How kernel rows and taps are taken together, and the tile.
struct SumTile {
  int rows, taps;
  int64_t columns;  // of gradients, at most those of a row
};

inline SumTile choose_sum_tile(int64_t kernel_rows, int taps, int64_t columns) {
  SumTile s{1, taps, 1};
  if (taps <= 3 && kernel_rows % 3 == 0) s.rows = 3;
  if (taps == 1 && kernel_rows % 5 == 0) s.rows = 5;
  s.columns = ceil_div(columns, ceil_div(columns, max_gradients(s.rows * taps)));
  return s;
}

template <typename T>
SumKernel<T> find_sum_kernel(const SumTile& s, int64_t advance) {
  const int64_t tile = s.columns;
  switch ((advance == 2 && s.taps > 1 ? 100 : 0) + s.rows * 10 + s.taps) {
    case 12:
      return find_gradients<T, 1, 2, 1>(tile);
    case 13:
      return find_gradients<T, 1, 3, 1>(tile);
    case 14:
      return find_gradients<T, 1, 4, 1>(tile);
    case 15:
      return find_gradients<T, 1, 5, 1>(tile);
    case 17:
      return find_gradients<T, 1, 7, 1>(tile);
    case 113:
      return find_gradients<T, 1, 3, 2>(tile);
    case 115:
      return find_gradients<T, 1, 5, 2>(tile);
    case 117:
      return find_gradients<T, 1, 7, 2>(tile);
    case 31:
      return find_gradients<T, 3, 1, 0>(tile);
    case 32:
      return find_gradients<T, 3, 2, 1>(tile);
    case 33:
      return find_gradients<T, 3, 3, 1>(tile);
    case 133:
      return find_gradients<T, 3, 3, 2>(tile);
    case 51:
      return find_gradients<T, 5, 1, 0>(tile);
    default:
      return find_gradients<T, 1, 1, 0>(tile);
  }
}

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
