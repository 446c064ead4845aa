// Gradient of the weight with channels last, as depthwise_conv3d_grad_weight.cuh for contiguous
// tensors.
#pragma once

#include "cuda/depthwise_conv3d_partials.cuh"
#include "cuda/depthwise_conv3d_rows.cuh"

namespace vmf::cuda {

struct RowGradWeightShape {
  const void* grad_output;
  const void* input;
  PartialSums sums;
  Features source, result;  // input and grad_output
  Pairing pairing;
  bool beside, grad_beside;  // the channels of a pair, where they are read
  int padding[3];
  int row_groups, column_groups;  // of taps: blocks beside each other have one each
  int64_t shares;                 // blocks that divide the items between them
  ItemTiling tiling;

  int64_t blocks() const { return shares * row_groups * column_groups * tiling.pair_tiles; }
};

// Which taps one block sums up, so that a thread's sums fit into registers.
template <class Body>
struct RowGradWeight {
  static constexpr int kMostSums = 28;
  static constexpr int kColumns = Body::kT * Body::kW <= kMostSums ? Body::kW : (Body::kW + 1) / 2;
  static constexpr int kFit = kMostSums / (Body::kT * kColumns);
  static constexpr int kRows = kFit < 1 ? 1 : kFit < Body::kH ? kFit : Body::kH;
  static constexpr bool kFewResults = Body::kT > 3 || Body::kStride > 1;
  static constexpr int kResults = Body::kT > 5 ? 3 : kFewResults ? 4 : 7;  // of an item
  static constexpr int kReadColumns = (kResults - 1) * Body::kStride + kColumns;
  static constexpr int kAtOnce = 16;  // sums of a thread in shared memory

  struct Shared {
    float sums[kAtOnce][kThreads];
  };
};

// kBeside: whether both `beside` and `grad_beside` hold.
template <class Body, class Bits, bool kBeside>
__global__ void __launch_bounds__(kThreads, kBeside ? 3 : 2)
    grad_weight_rows(RowGradWeightShape s) {
  using Form = RowGradWeight<Body>;
  constexpr int KT = Body::kT, KH = Body::kH, KW = Body::kW;
  constexpr int rows = Form::kRows, columns = Form::kColumns, results = Form::kResults;
  constexpr bool kAhead =
      sizeof(Bits) == 2;  // rows are read ahead of their use: registers allow it
  auto& shared = shared_memory<typename Form::Shared>();
  const ItemTiling& tiling = s.tiling;
  int64_t block = blockIdx.x;
  const int pair_tile = static_cast<int>(block % tiling.pair_tiles);
  block /= tiling.pair_tiles;
  const int first_x = static_cast<int>(block % s.column_groups) * columns;
  block /= s.column_groups;
  const int first_y = static_cast<int>(block % s.row_groups) * rows;
  const int64_t share = block / s.row_groups;
  const Lane lane(tiling, pair_tile);
  const bool idle = lane.item >= tiling.items || lane.channel >= s.result.channels;
  const DType dtype = s.sums.dtype;
  const int64_t channel = s.pairing.source(lane.channel);
  const int apart = static_cast<int>(s.pairing.source(lane.channel + 1) - channel);

  float sum[KT][rows][columns][kPair] = {};
  float sum_bias[kPair] = {};
  for (int64_t i = share * tiling.items + lane.item; !idle && i < tiling.count;
       i += s.shares * tiling.items) {
    const Item item(tiling, static_cast<int>(i));
    if (item.row >= s.result.size[1]) continue;
    const int row = item.row * Body::kStride - s.padding[1] + first_y;
    const int column = item.column * results * Body::kStride - s.padding[2] + first_x;
    const unsigned inside = columns_inside<Form::kReadColumns>(column, s.source.size[2]);
    const unsigned grad_inside = columns_inside<results>(item.column * results, s.result.size[2]);
    const Bits* const from = static_cast<const Bits*>(s.input) + item.sample * s.source.sample +
                             row * s.source.row + int64_t{column} * s.source.channels + channel;
    const Bits* const grads = static_cast<const Bits*>(s.grad_output) +
                              item.sample * s.result.sample + item.row * s.result.row +
                              int64_t{item.column} * results * s.result.channels + lane.channel;
    const int time_end = min(item.time + tiling.time, s.result.size[0]);
    const int begin = item.time - s.padding[0], end = time_end - s.padding[0] + KT - 1;
    Two<Bits> two[Form::kReadColumns] = {}, two_grads[results];
    bool there = false;  // a row that was read
    const auto read = [&](int f, int y) {
      there = 0 <= f && f < min(end, s.source.size[0]) && first_y + y < KH && 0 <= row + y &&
              row + y < s.source.size[1];
      if (!there) return;
      read_row(from + f * s.source.frame + y * s.source.row, s.source.channels, kBeside || s.beside,
               apart, inside, two);
    };
    if (kAhead) read(begin, 0);
    float grad[KT][results][kPair] = {};
    for (int f = begin; f < end; ++f) {
#pragma unroll
      for (int k = KT - 1; k > 0; --k) {
#pragma unroll
        for (int r = 0; r < results; ++r) {
#pragma unroll
          for (int v = 0; v < kPair; ++v) grad[k][r][v] = grad[k - 1][r][v];
        }
      }
      const int time = f + s.padding[0];
      read_row(grads + time * s.result.frame, s.result.channels, kBeside || s.grad_beside, 1,
               time < time_end ? grad_inside : 0, two_grads);
      widen_row(two_grads, dtype, grad[0]);
#pragma unroll
      for (int r = 0; r < results; ++r) {
        sum_bias[0] += grad[0][r][0];
        sum_bias[1] += grad[0][r][1];
      }
#pragma unroll
      for (int y = 0; y < rows; ++y) {
        if (!kAhead) read(f, y);
        const bool use = there;
        float x[Form::kReadColumns][kPair];
        widen_row(two, dtype, x);
        if (kAhead) read(y + 1 < rows ? f : f + 1, y + 1 < rows ? y + 1 : 0);
        if (!use) continue;
#pragma unroll
        for (int k = 0; k < KT; ++k) {
#pragma unroll
          for (int kx = 0; kx < columns; ++kx) {
#pragma unroll
            for (int r = 0; r < results; ++r) {
#pragma unroll
              for (int v = 0; v < kPair; ++v) {
                sum[k][y][kx][v] += grad[k][r][v] * x[r * Body::kStride + kx][v];
              }
            }
          }
        }
      }
    }
  }

  // The sums of a pair's threads, pair by pair.
  constexpr int taps = KT * KH * KW, count = (KT * rows * columns + 1) * kPair;
  const int thread = static_cast<int>(threadIdx.x);
  int half = 1;
  while (2 * half < tiling.items) half *= 2;
#pragma unroll
  for (int first = 0; first < count; first += Form::kAtOnce) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Form::kAtOnce; ++i) {
      const int tap = (first + i) / kPair, v = (first + i) % kPair;
      if (tap < KT * rows * columns) {
        shared.sums[i][thread] = sum[tap / columns / rows][tap / columns % rows][tap % columns][v];
      } else if (first + i < count) {
        shared.sums[i][thread] = sum_bias[v];
      }
    }
    for (int step = half; step > 0; step /= 2) {
      __syncthreads();
      if (idle || lane.item >= step || lane.item + step >= tiling.items) continue;
#pragma unroll
      for (int i = 0; i < Form::kAtOnce; ++i) {
        if (first + i < count) {
          shared.sums[i][thread] += shared.sums[i][thread + step * tiling.pairs];
        }
      }
    }
    if (idle || lane.item > 0) continue;
#pragma unroll
    for (int i = 0; i < Form::kAtOnce; ++i) {
      const int tap = (first + i) / kPair, v = (first + i) % kPair;
      const int k = tap / columns / rows, y = first_y + tap / columns % rows,
                x = first_x + tap % columns;
      float* const to = s.sums.of(share, lane.channel + v, taps);
      if (tap < KT * rows * columns) {
        if (y < KH && x < KW) to[(k * KH + y) * KW + x] = shared.sums[i][thread];
      } else if (first + i < count && first_y == 0 && first_x == 0) {
        to[taps] = shared.sums[i][thread];
      }
    }
  }
}

}  // namespace vmf::cuda
