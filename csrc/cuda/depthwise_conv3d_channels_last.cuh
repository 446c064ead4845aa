// Features with channels last, (N, T, H, W, C): neighbouring lanes have neighbouring channels.
//
// A thread has an item: some neighbouring results of one row (where transposed with a stride of 2,
// of two rows), of a pair of channels. It goes through T as in depthwise_conv3d_gather.cuh, and of
// each frame reads the pairs that its results need straight from global memory: items of a block
// are neighbours, so that the first-level cache has what several of them read. What is read feeds
// all taps of a row, in T and in W, from registers.
#pragma once

#include <type_traits>

#include "cuda/depthwise_conv3d_partials.cuh"
#include "cuda/depthwise_conv3d_window.cuh"

namespace vmf::cuda {

constexpr int kPair = 2;  // channels of a thread

// A tensor (N, T, H, W, C), without its N.
struct Features {
  int size[3], channels;

  __host__ __device__ int64_t row() const { return int64_t{size[2]} * channels; }
  __host__ __device__ int64_t frame() const { return size[1] * row(); }
  __host__ __device__ int64_t sample() const { return size[0] * frame(); }
};

// How blocks divide the work: a block has `pairs` pairs of channels of `items` items at a time.
struct ItemTiling {
  int pairs, pair_tiles, items;
  int rows, row_tiles;   // items below each other, which are neighbours in a block
  int columns;           // items beside each other
  int time, time_tiles;  // frames of an item
  int64_t count;         // of all items

  __host__ __device__ int64_t rounds() const { return divide_up(count, items); }
  int64_t blocks() const { return rounds() * pair_tiles; }
};

// Where an item is.
struct Item {
  int sample, time, row, column;

  __device__ Item(const ItemTiling& tiling, int index) {
    row = index % tiling.rows;
    index /= tiling.rows;
    column = index % tiling.columns;
    index /= tiling.columns;
    row += index % tiling.row_tiles * tiling.rows;
    index /= tiling.row_tiles;
    time = index % tiling.time_tiles * tiling.time;
    sample = index / tiling.time_tiles;
  }
};

// Which of its block's items and pairs a thread has, and the first of its channels.
struct Lane {
  int item, pair, channel;

  __device__ Lane(const ItemTiling& tiling, int pair_tile) {
    item = static_cast<int>(threadIdx.x) / tiling.pairs;
    pair = static_cast<int>(threadIdx.x) % tiling.pairs;
    channel = (pair_tile * tiling.pairs + pair) * kPair;
  }
};

// One bit for each column from `first` on that is in a row of `size`.
template <int kCount>
__device__ unsigned columns_inside(int first, int size) {
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (0 <= first + i && first + i < size) bits |= 1u << i;
  }
  return bits;
}

// A pair as it lies in memory: of 16 bits each, the first in the lower half.
template <class Bits>
using Two = std::conditional_t<sizeof(Bits) == 4, uint2, uint32_t>;

__device__ inline void widen(uint2 two, DType, float (&x)[kPair]) {
  x[0] = bits_to_float(two.x);
  x[1] = bits_to_float(two.y);
}
__device__ inline void widen(uint32_t two, DType dtype, float (&x)[kPair]) {
  if (dtype == DType::bf16) {
    x[0] = bits_to_float(two << 16);
    x[1] = bits_to_float(two & 0xffff0000u);
  } else {
    x[0] = f16_to_float(static_cast<uint16_t>(two));
    x[1] = f16_to_float(static_cast<uint16_t>(two >> 16));
  }
}

template <class Bits>
__device__ Two<Bits> narrow(float first, float second, DType dtype) {
  if constexpr (sizeof(Bits) == 4) {
    return {float_to_bits(first), float_to_bits(second)};
  } else {
    return dtype == DType::bf16 ? floats_to_bf16(first, second) : floats_to_f16(first, second);
  }
}

template <class Bits>
__device__ Two<Bits> join(Bits first, Bits second) {
  if constexpr (sizeof(Bits) == 4) {
    return {first, second};
  } else {
    return first | static_cast<uint32_t>(second) << 16;
  }
}

// Reads pairs of neighbouring columns, zeros where there is no column. The first column's pair
// begins at `row`; its channels are read at once where they lie `beside` each other, else are
// `apart`.
template <class Bits, int kCount>
__device__ void read_row(const Bits* row, int channels, bool beside, int apart, unsigned inside,
                         DType dtype, float (&x)[kCount][kPair]) {
  Two<Bits> two[kCount] = {};
  if (beside) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (inside >> i & 1) two[i] = *reinterpret_cast<const Two<Bits>*>(row + i * channels);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (inside >> i & 1) two[i] = join(row[i * channels], row[i * channels + apart]);
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) widen(two[i], dtype, x[i]);
}

// A thread's weights in shared memory, `pitch` floats from one tap to the next.
template <int kTaps>
struct SharedWeights {
  const float* weight;
  int pitch;

  __device__ float2 operator[](int tap) const {
    return *reinterpret_cast<const float2*>(weight + tap * pitch);
  }
};

// The same in registers.
template <int kTaps>
struct RegisterWeights {
  float2 weight[kTaps];

  __device__ explicit RegisterWeights(const SharedWeights<kTaps>& from) {
#pragma unroll
    for (int k = 0; k < kTaps; ++k) weight[k] = from[k];
  }
  __device__ float2 operator[](int tap) const { return weight[tap]; }
};

// Convolution with a stride of S in H and W: kColumns results of one row.
template <int KT, int KH, int KW, int S>
struct RowConvolution {
  static constexpr int kT = KT, kH = KH, kW = KW, kStride = S;
  static constexpr int kColumns = S == 2 ? 4 : KT >= 7 ? 5 : 7;
  static constexpr int kResultRows = 1, kResultColumns = kColumns, kResults = kColumns;
  static constexpr int kReadRows = KH, kReadColumns = (kColumns - 1) * S + KW;
  static constexpr int kRowStep = S, kColumnStep = kColumns * S;  // from an item to the next
  static constexpr bool kFlipsFrames = true;

  // Adds what row y of the input gives.
  template <class Weights>
  static __device__ void add(const float (&x)[kReadColumns][kPair], int y, const Weights& weights,
                             float (&sum)[KT][kResults][kPair]) {
#pragma unroll
    for (int kx = 0; kx < KW; ++kx) {
#pragma unroll
      for (int t = KT - 1; t >= 0; --t) {
        const float2 w = weights[(t * KH + y) * KW + kx];
#pragma unroll
        for (int r = 0; r < kColumns; ++r) {
          sum[t][r][0] += w.x * x[r * S + kx][0];
          sum[t][r][1] += w.y * x[r * S + kx][1];
        }
      }
    }
  }
};

// Transposed convolution with a stride of 2 in H and W, as Transposed: two rows by two times
// kColumns results.
template <int KT, int KH, int KW>
struct RowTransposed {
  static constexpr int kT = KT, kH = KH, kW = KW;
  static constexpr int kColumns = KT > 3 ? 2 : 4;
  static constexpr int kResultRows = 2, kResultColumns = 2 * kColumns;
  static constexpr int kResults = kResultRows * kResultColumns;
  static constexpr int kReachH = (KH - 1) / 2, kReachW = (KW - 1) / 2;
  static constexpr int kReadRows = 1 + kReachH, kReadColumns = kColumns + kReachW;
  static constexpr int kRowStep = 1, kColumnStep = kColumns;
  static constexpr bool kFlipsFrames = false;

  template <class Weights>
  static __device__ void add(const float (&x)[kReadColumns][kPair], int y, const Weights& weights,
                             float (&sum)[KT][kResults][kPair]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int ky = 2 * (kReachH - y) + row;
      if (ky >= KH) continue;
#pragma unroll
      for (int kx = 0; kx < KW; ++kx) {
#pragma unroll
        for (int t = KT - 1; t >= 0; --t) {
          const float2 w = weights[(t * KH + ky) * KW + kx];
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            const int result = row * kResultColumns + 2 * c + kx % 2;
            sum[t][result][0] += w.x * x[c + kReachW - kx / 2][0];
            sum[t][result][1] += w.y * x[c + kReachW - kx / 2][1];
          }
        }
      }
    }
  }
};

struct RowGatherShape {
  const void* from;
  const void* weight;  // (weight_channels, kT, kH, kW)
  const void* bias;    // (channels of the result), or null
  void* to;
  DType dtype;
  Features source, result;
  Pairing pairing;
  int weight_channels;
  bool flipped;  // as in GatherShape
  bool beside;   // the channels of a pair, where they are read
  int padding[3];
  int start[2];         // the first row and column that item 0 reads
  int result_start[2];  // those that it writes; they need not be there
  int steps;            // items below each other
  ItemTiling tiling;
};

// The form of a kernel: what the host plans with.
template <class Body>
struct RowGather {
  static constexpr int kTaps = Body::kT * Body::kH * Body::kW;
  static constexpr bool kFewTaps = kTaps <= 27;
  static constexpr bool kFitsRegisters = kFewTaps && Body::kFlipsFrames;   // its weights
  static constexpr int kBlocks = kFitsRegisters && Body::kT <= 3 ? 3 : 2;  // a multiprocessor
  static constexpr int kMostPairs = 16;
  // A tap's weights are followed by two floats, so that those who write taps below each other do
  // not all meet in one bank.
  static constexpr int kPad = 2;
  // Of a block, in floats: one filter a channel, and what all its repeats together may take.
  static constexpr int kOneFilter = kTaps * (kPair * kMostPairs + kPad);
  static constexpr int kWeights = kOneFilter < 6144 ? 6144 : kOneFilter;

  template <bool kInRegisters>
  struct Shared {  // little, since the first-level cache has the rest
    alignas(16) float weight[kInRegisters ? kOneFilter : kWeights];
    float2 bias[kMostPairs];
  };
};

// A block's weights: [repeat][tap][channel].
template <class Body>
__device__ void read_weights(const RowGatherShape& s, int first_channel, int channels, int pitch,
                             float* to) {
  constexpr int taps = RowGather<Body>::kTaps;
  const int repeats = s.pairing.repeats, first = first_channel * repeats;
  for (int i = static_cast<int>(threadIdx.x); i < channels * repeats * taps; i += kThreads) {
    const int tap = i % taps, filter = i / taps;
    if (first + filter >= s.weight_channels) continue;
    const int x = tap % Body::kW, y = tap / Body::kW % Body::kH, t = tap / Body::kW / Body::kH;
    const bool flip = s.flipped && Body::kFlipsFrames;
    const int to_t = s.flipped ? Body::kT - 1 - t : t;
    const int to_y = flip ? Body::kH - 1 - y : y, to_x = flip ? Body::kW - 1 - x : x;
    const int to_tap = (to_t * Body::kH + to_y) * Body::kW + to_x;
    to[(filter % repeats * taps + to_tap) * pitch + filter / repeats] =
        load(s.weight, int64_t{first + filter} * taps + tap, s.dtype);
  }
}

// Weights in registers are for one filter a channel, whose pairs lie beside each other.
template <class Body, class Bits, bool kInRegisters>
__global__ void __launch_bounds__(kThreads, RowGather<Body>::kBlocks)
    gather_rows(RowGatherShape s) {
  constexpr int KT = Body::kT, taps = RowGather<Body>::kTaps;
  auto& shared = shared_memory<typename RowGather<Body>::template Shared<kInRegisters>>();
  const ItemTiling& tiling = s.tiling;
  const int pair_tile = static_cast<int>(blockIdx.x % tiling.pair_tiles);
  const int64_t block = blockIdx.x / tiling.pair_tiles;
  const int block_channels = tiling.pairs * kPair;
  const int pitch = block_channels + RowGather<Body>::kPad;
  read_weights<Body>(s, pair_tile * block_channels, block_channels, pitch, shared.weight);
  const Lane lane(tiling, pair_tile);
  if (lane.item == 0 && lane.channel < s.result.channels) {
    shared.bias[lane.pair] = {};
    if (s.bias != nullptr) {
      shared.bias[lane.pair] = {load(s.bias, lane.channel, s.dtype),
                                load(s.bias, lane.channel + 1, s.dtype)};
    }
  }
  __syncthreads();

  const int64_t index = block * tiling.items + lane.item;
  if (lane.item >= tiling.items || index >= tiling.count) return;
  if (lane.channel >= s.result.channels) return;
  const Item item(tiling, static_cast<int>(index));
  if (item.row >= s.steps) return;

  using Shared = SharedWeights<taps>;
  const Shared first_weights{shared.weight + lane.pair * kPair, pitch};
  using Weights = std::conditional_t<kInRegisters, RegisterWeights<taps>, Shared>;
  Weights weights(first_weights);
  const int64_t channel = s.pairing.source(lane.channel);
  const int apart = static_cast<int>(s.pairing.source(lane.channel + 1) - channel);

  const int row = item.row * Body::kRowStep + s.start[0];
  const int column = item.column * Body::kColumnStep + s.start[1];
  const unsigned inside = columns_inside<Body::kReadColumns>(column, s.source.size[2]);
  // Where the pair of the first column of row 0 of frame 0 lies; it need not be there.
  const int64_t source = item.sample * s.source.sample() + row * s.source.row() +
                         int64_t{column} * s.source.channels + channel;
  const int to_column = Body::kResultColumns * item.column + s.result_start[1];
  const unsigned to_inside = columns_inside<Body::kResultColumns>(to_column, s.result.size[2]);
  Bits* const to = static_cast<Bits*>(s.to) + item.sample * s.result.sample() +
                   int64_t{to_column} * s.result.channels + lane.channel;

  const int time_end = min(item.time + tiling.time, s.result.size[0]);
  float sum[KT][Body::kResults][kPair] = {};
  for (int f = item.time - s.padding[0]; f < time_end - s.padding[0] + KT - 1; ++f) {
    if (0 <= f && f < s.source.size[0]) {
      const Bits* const frame = static_cast<const Bits*>(s.from) + source + f * s.source.frame();
      for (int repeat = 0; repeat < (kInRegisters ? 1 : s.pairing.repeats); ++repeat) {
        // Weights in registers have numbers that must be known; else a loop takes fewer registers.
#pragma unroll(kInRegisters ? Body::kReadRows : 1)
        for (int y = 0; y < Body::kReadRows; ++y) {
          if (row + y < 0 || row + y >= s.source.size[1]) continue;
          float x[Body::kReadColumns][kPair];
          read_row(frame + y * s.source.row() + repeat, s.source.channels, kInRegisters || s.beside,
                   apart, inside, s.dtype, x);
          Body::add(x, y, weights, sum);
        }
        if constexpr (!kInRegisters) weights.weight += taps * pitch;
      }
      if constexpr (!kInRegisters) weights = first_weights;
    }
    const int time = f + s.padding[0] - (KT - 1);
    if (time >= item.time) {
      const float2 bias = shared.bias[lane.pair];
#pragma unroll
      for (int y = 0; y < Body::kResultRows; ++y) {
        const int result_row = Body::kResultRows * item.row + s.result_start[0] + y;
        if (Body::kResultRows > 1 && (result_row < 0 || result_row >= s.result.size[1])) continue;
        Bits* const at = to + time * s.result.frame() + result_row * s.result.row();
#pragma unroll
        for (int x = 0; x < Body::kResultColumns; ++x) {
          const float (&result)[kPair] = sum[KT - 1][y * Body::kResultColumns + x];
          if (to_inside >> x & 1) {
            *reinterpret_cast<Two<Bits>*>(at + x * s.result.channels) =
                narrow<Bits>(result[0] + bias.x, result[1] + bias.y, s.dtype);
          }
        }
      }
    }
#pragma unroll
    for (int k = KT - 1; k >= 0; --k) {
#pragma unroll
      for (int r = 0; r < Body::kResults; ++r) {
#pragma unroll
        for (int v = 0; v < kPair; ++v) sum[k][r][v] = k > 0 ? sum[k - 1][r][v] : 0;
      }
    }
  }
}

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
    const Bits* const from = static_cast<const Bits*>(s.input) + item.sample * s.source.sample() +
                             row * s.source.row() + int64_t{column} * s.source.channels + channel;
    const Bits* const grads = static_cast<const Bits*>(s.grad_output) +
                              item.sample * s.result.sample() + item.row * s.result.row() +
                              int64_t{item.column} * results * s.result.channels + lane.channel;
    const int time_end = min(item.time + tiling.time, s.result.size[0]);
    float grad[KT][results][kPair] = {};
    for (int f = item.time - s.padding[0]; f < time_end - s.padding[0] + KT - 1; ++f) {
      const int time = f + s.padding[0];
#pragma unroll
      for (int k = KT - 1; k > 0; --k) {
#pragma unroll
        for (int r = 0; r < results; ++r) {
#pragma unroll
          for (int v = 0; v < kPair; ++v) grad[k][r][v] = grad[k - 1][r][v];
        }
      }
      read_row(grads + time * s.result.frame(), s.result.channels, kBeside || s.grad_beside, 1,
               time < time_end ? grad_inside : 0, dtype, grad[0]);
#pragma unroll
      for (int r = 0; r < results; ++r) {
        sum_bias[0] += grad[0][r][0];
        sum_bias[1] += grad[0][r][1];
      }
      if (f < 0 || f >= s.source.size[0]) continue;
#pragma unroll
      for (int y = 0; y < rows; ++y) {
        if (first_y + y >= KH || row + y < 0 || row + y >= s.source.size[1]) continue;
        float x[Form::kReadColumns][kPair];
        read_row(from + f * s.source.frame() + y * s.source.row(), s.source.channels,
                 kBeside || s.beside, apart, inside, dtype, x);
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
