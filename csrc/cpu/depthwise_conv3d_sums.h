// The inner kernels of the weight gradient: some rows of one frame, for some taps.
//
// Each tap's gradient is a sum over positions of the output's gradient times the input under that
// tap. A kernel goes along the row with the sums of some kernel rows in registers, and with the
// gradients that a column of the input is under: each element is loaded once for all its taps. Rows
// are read where they lie, as in depthwise_conv3d_row.h: padding is left out.
#pragma once

#include "depthwise_conv3d_plan.h"
#include "vec.h"

namespace vmf {
namespace VMF_ISA {
namespace {

// Some rows of gradients and taps, the same for all vectors of lanes; distances are in elements.
struct SumRows {
  int64_t input_row, input_column;  // from the row under one of gradients to that under the next
  int64_t width;                    // columns of the input
  int64_t left;                     // the one under the first tap of the first gradient
  int64_t advance;                  // columns of the input, from one gradient to the next
  int64_t grads;                    // where the rows begin
  int64_t grad_row, grad_column;    // from row to row, and from column to column
  int64_t rows, columns;            // of gradients
  int64_t sums;                     // where those of the first tap are, of the first kernel row
};

template <typename T>
struct SumVector {
  const T *input, *grads;
  Arithmetic<T>* sums;            // [kernel row][column tap][lane]
  IndexVec<Arithmetic<T>> index;  // of the channels under lanes that share them
};

// A row of the kernel that is not over padding.
struct KernelRow {
  int64_t input;  // where the row under it and the first row of gradients begins
  int64_t sums;   // where its sums are
};

// Adds what some kernel rows get for some taps of theirs.
template <typename T>
using SumKernel = void (*)(const SumRows& s, const SumVector<T>& vector,
                           const KernelRow* kernel_rows);

// Positions that are summed in registers before they are added to memory: short chains lose few
// digits, and cost little to add up.
constexpr int64_t kPositionsSummed = 96;

template <typename Real, int N, int Taps>
__attribute__((always_inline)) inline void add_to_memory(const KernelRow* kernel_rows, Real* sums,
                                                         const Vec<Real> (&sum)[N][Taps]) {
  constexpr int lanes = kLanes<Real>;
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
    Real* to = sums + kernel_rows[j].sums;
#pragma GCC unroll 8
    for (int k = 0; k < Taps; ++k) store(to + k * lanes, load(to + k * lanes) + sum[j][k]);
  }
}

// How many gradients a column of the input is under, but for the newest one.
constexpr int held_before(int taps, int step) { return (taps - 1) / step; }

// Along one row of gradients: the newest one and those that still have taps over the next `Step`
// columns of the input, and the sums of N kernel rows.
template <typename T, bool Shared, int N, int Taps, int Step>
struct SumWindow {
  using Real = Arithmetic<T>;
  static constexpr int kBefore = held_before(Taps, Step);

  __attribute__((always_inline)) void step(Vec<Real> newest) {
#pragma GCC unroll 8
    for (int i = kBefore; i > 0; --i) grad[i] = grad[i - 1];
    grad[0] = newest;
  }

  // Adds the products of the gradients `from` (0 is the newest) to `to` and the next columns, those
  // of [0, width) if `Check`, where the first one is `at`.
  template <bool Check>
  __attribute__((always_inline)) void add(int from, int to, int64_t at, int64_t width) {
#pragma GCC unroll 2
    for (int c = 0; c < Step; ++c) {
      if (c + from * Step >= Taps) continue;
      if (Check && static_cast<uint64_t>(at + c) >= static_cast<uint64_t>(width)) continue;
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        Vec<Real> x = load(input[j] + offset + c * column);
        if (Shared) x = permute(x, index);
        pin(x);
#pragma GCC unroll 8
        for (int i = 0; i <= kBefore; ++i) {
          const int k = i * Step + c;
          if (i >= from && i <= to && k < Taps) sum[j][k] = fma(x, grad[i], sum[j][k]);
        }
      }
    }
    offset += Step * column;
  }

  const T* input[N];
  int64_t column, offset;
  IndexVec<Real> index;
  Vec<Real> grad[kBefore + 1], sum[N][Taps];
};

// N kernel rows and Taps neighbouring taps of each, at a distance of Step columns from one gradient
// to the next. A row has at least held_before() gradients. With `Shared` several lanes read the
// same channel.
template <typename T, bool Shared, int N, int Taps, int Step>
void sum_taps(const SumRows& s, const SumVector<T>& vector, const KernelRow* kernel_rows) {
  using Real = Arithmetic<T>;
  constexpr int kBefore = held_before(Taps, Step);
  SumWindow<T, Shared, N, Taps, Step> window;
  window.column = s.input_column;
  if (Shared) window.index = vector.index;
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
#pragma GCC unroll 8
    for (int k = 0; k < Taps; ++k) window.sum[j][k] = Vec<Real>{};
  }
  for (int64_t row = 0; row < s.rows; ++row) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      window.input[j] = vector.input + kernel_rows[j].input + row * s.input_row;
    }
    window.offset = s.left * s.input_column;
#pragma GCC unroll 8
    for (int i = 0; i <= kBefore; ++i) window.grad[i] = Vec<Real>{};
    const T* grads = vector.grads + s.grads + row * s.grad_row;
    int64_t at = s.left;
#pragma GCC unroll 8
    for (int i = 0; i < kBefore; ++i, at += Step, grads += s.grad_column) {
      window.step(load(grads));
      window.template add<true>(0, i, at, s.width);
    }
    // The columns between some gradient's first tap and another's last one are in the row.
    constexpr int kLast = Step > 1;
    for (int64_t q = kBefore; q < s.columns - kLast; ++q, grads += s.grad_column) {
      window.step(load(grads));
      window.template add<false>(0, kBefore, 0, 0);
    }
    at = s.left + s.columns * Step;
    if (kLast > 0 && s.columns > kBefore) {
      window.step(load(grads));
      window.template add<true>(0, kBefore, at - Step, s.width);
    }
#pragma GCC unroll 8
    for (int i = 1; i <= kBefore; ++i, at += Step) {
      window.step(Vec<Real>{});
      window.template add<true>(i, kBefore, at, s.width);
    }
  }
  add_to_memory<Real>(kernel_rows, vector.sums + s.sums, window.sum);
}

// N kernel rows and one tap of each, in chains of additions enough to keep the machine busy.
template <typename T, bool Shared, int N>
void sum_tap(const SumRows& s, const SumVector<T>& vector, const KernelRow* kernel_rows) {
  using Real = Arithmetic<T>;
  constexpr int kChains = (8 + N - 1) / N < 4 ? (8 + N - 1) / N : 4;
  // Those of the gradients that are not over padding.
  const int64_t begin = larger(0, ceil_div(-s.left, s.advance));
  const int64_t end = smaller(s.columns, floor_div(s.width - 1 - s.left, s.advance) + 1);
  const int64_t step = s.advance * s.input_column;
  Vec<Real> sum[kChains][N];
#pragma GCC unroll 8
  for (int c = 0; c < kChains; ++c) {
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) sum[c][j] = Vec<Real>{};
  }
  for (int64_t row = 0; row < s.rows; ++row) {
    const T* input[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j) {
      input[j] = vector.input + kernel_rows[j].input + row * s.input_row +
                 (s.left + begin * s.advance) * s.input_column;
    }
    const T* from = vector.grads + s.grads + row * s.grad_row + begin * s.grad_column;
    int64_t offset = 0, q = begin;
    const auto add = [&](int c) {
      Vec<Real> grad = load(from);
      pin(grad);
#pragma GCC unroll 8
      for (int j = 0; j < N; ++j) {
        Vec<Real> x = load(input[j] + offset);
        if (Shared) x = permute(x, vector.index);
        sum[c][j] = fma(x, grad, sum[c][j]);
      }
      from += s.grad_column;
      offset += step;
    };
    for (; q + kChains <= end; q += kChains) {
#pragma GCC unroll 8
      for (int c = 0; c < kChains; ++c) add(c);
    }
    for (; q < end; ++q) add(0);
  }
  Vec<Real> total[N][1];
#pragma GCC unroll 8
  for (int j = 0; j < N; ++j) {
    total[j][0] = sum[0][j];
#pragma GCC unroll 8
    for (int c = 1; c < kChains; ++c) total[j][0] += sum[c][j];
  }
  add_to_memory<Real>(kernel_rows, vector.sums + s.sums, total);
}

// Kernel rows to take at a time: additions that need not wait for each other, in registers.
constexpr int most_rows(int taps, int step, bool shared) {
  const int fit = (kRegisters - 2 - shared - held_before(taps, step)) / taps;
  const int chains = (7 + taps) / taps;
  return fit < chains ? fit : chains;
}

// The kernels for 1, 2, ... most_rows() kernel rows.
template <typename T>
struct SumKernels {
  static constexpr int kMost = most_rows(1, 1, false);
  int most = 0;
  SumKernel<T> kernel[kMost + 1] = {};

  template <bool Shared, int Taps, int Step, int N = 1>
  static constexpr SumKernels of() {
    SumKernels s;
    if constexpr (N <= most_rows(Taps, Step, Shared)) {
      s = of<Shared, Taps, Step, N + 1>();
      if (N > s.most) s.most = N;
      if constexpr (Taps == 1) {
        s.kernel[N] = sum_tap<T, Shared, N>;
      } else {
        s.kernel[N] = sum_taps<T, Shared, N, Taps, Step>;
      }
    }
    return s;
  }
};

// Whether rows of so many gradients are long enough for runs of so many taps.
inline bool suits_taps(int64_t columns, int taps, int64_t advance) {
  return taps == 1 || columns >= held_before(taps, static_cast<int>(advance));
}

template <typename T>
SumKernels<T> find_sum_kernels(int taps, int64_t advance, bool shared) {
  return with_tap_run(taps, advance, [&](auto run) {
    if constexpr (kSpreads<Arithmetic<T>>) {
      if (shared) return SumKernels<T>::template of<true, run.kTaps, run.kStep>();
    }
    return SumKernels<T>::template of<false, run.kTaps, run.kStep>();
  });
}

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
