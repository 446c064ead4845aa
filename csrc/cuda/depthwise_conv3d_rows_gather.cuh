// Forward and transposed with channels last, as depthwise_conv3d_gather.cuh for contiguous tensors.
#pragma once

#include "cuda/depthwise_conv3d_rows.cuh"

namespace vmf::cuda {

// A thread's weights in shared memory, `pitch` floats from one tap to the next.
struct SharedWeights {
  const float* weight;
  int pitch;

  __device__ float2 operator[](int tap) const {
    return *reinterpret_cast<const float2*>(weight + tap * pitch);
  }
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
  static __device__ void add(const float (&x)[kReadColumns][kPair], int y, SharedWeights weights,
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

  static __device__ void add(const float (&x)[kReadColumns][kPair], int y, SharedWeights weights,
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
  // Whether there is a form for one filter a channel, whose pairs lie beside each other: kSimple.
  static constexpr bool kHasSimple = kTaps <= 27 && Body::kFlipsFrames;
  static constexpr int kMostPairs = 16;
  // A tap's weights are followed by two floats, so that those who write taps below each other do
  // not all meet in one bank.
  static constexpr int kPad = 2;
  // Of a block, in floats: one filter a channel, and what all its repeats together may take.
  static constexpr int kOneFilter = kTaps * (kPair * kMostPairs + kPad);
  static constexpr int kWeights = kOneFilter < 6144 ? 6144 : kOneFilter;

  template <bool kSimple>
  struct Shared {  // little, since the first-level cache has the rest
    alignas(16) float weight[kSimple ? kOneFilter : kWeights];
    float2 bias[kMostPairs];
  };
};

// Blocks that a multiprocessor should have room for.
template <class Body, bool kSimple>
constexpr int kRowBlocks = kSimple && Body::kT <= 3 ? 4 : 2;

// A block's weights: [repeat][tap][channel].
template <class Body>
__device__ void read_weights(const RowGatherShape& s, int first_channel, int channels, int pitch,
                             float* to) {
  constexpr int taps = RowGather<Body>::kTaps;
  const bool flip = s.flipped && Body::kFlipsFrames;
  for (int repeat = 0; repeat < s.pairing.repeats; ++repeat) {
    for (int i = static_cast<int>(threadIdx.x); i < channels * taps; i += kThreads) {
      const int tap = i % taps, channel = i / taps;
      const int filter = (first_channel + channel) * s.pairing.repeats + repeat;
      if (filter >= s.weight_channels) continue;
      const int x = tap % Body::kW, y = tap / Body::kW % Body::kH, t = tap / Body::kW / Body::kH;
      const int to_t = s.flipped ? Body::kT - 1 - t : t;
      const int to_y = flip ? Body::kH - 1 - y : y, to_x = flip ? Body::kW - 1 - x : x;
      const int to_tap = (to_t * Body::kH + to_y) * Body::kW + to_x;
      to[(repeat * taps + to_tap) * pitch + channel] =
          load(s.weight, int64_t{filter} * taps + tap, s.dtype);
    }
  }
}

template <class Body, class Bits, bool kSimple>
__global__ void __launch_bounds__(kThreads, kRowBlocks<Body, kSimple>)
    gather_rows(RowGatherShape s) {
  constexpr int KT = Body::kT, taps = RowGather<Body>::kTaps;
  auto& shared = shared_memory<typename RowGather<Body>::template Shared<kSimple>>();
  const ItemTiling& tiling = s.tiling;
  int block = static_cast<int>(blockIdx.x);
  const int pair_tile = tiling.pair_tiles.take(block);
  const int block_channels = tiling.pairs * kPair;
  const int pitch =
      kSimple ? RowGather<Body>::kOneFilter / taps : block_channels + RowGather<Body>::kPad;
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

  const int64_t index = int64_t{block} * tiling.items + lane.item;
  if (lane.item >= tiling.items || index >= tiling.count) return;
  if (lane.channel >= s.result.channels) return;
  const Item item(tiling, static_cast<int>(index));
  if (item.row >= s.steps) return;

  const SharedWeights first_weights{shared.weight + lane.pair * kPair, pitch};
  SharedWeights weights = first_weights;
  const int64_t channel = s.pairing.source(lane.channel);
  const int apart = static_cast<int>(s.pairing.source(lane.channel + 1) - channel);

  const int row = item.row * Body::kRowStep + s.start[0];
  const int column = item.column * Body::kColumnStep + s.start[1];
  const unsigned inside = columns_inside<Body::kReadColumns>(column, s.source.size[2]);
  // Where the pair of the first column of row 0 of frame 0 lies; it need not be there.
  const Bits* const from = static_cast<const Bits*>(s.from) + item.sample * s.source.sample +
                           row * s.source.row + int64_t{column} * s.source.channels + channel;
  const int first_row = Body::kResultRows * item.row + s.result_start[0];
  const int to_column = Body::kResultColumns * item.column + s.result_start[1];
  const unsigned to_inside = columns_inside<Body::kResultColumns>(to_column, s.result.size[2]);
  Bits* to = static_cast<Bits*>(s.to) + item.sample * s.result.sample + item.time * s.result.frame +
             first_row * s.result.row + int64_t{to_column} * s.result.channels + lane.channel;

  const int begin = item.time - s.padding[0];
  const int end = min(item.time + tiling.time, s.result.size[0]) - s.padding[0] + KT - 1;
  Two<Bits> two[Body::kReadColumns] = {};
  bool there = false;  // what was read
  const auto read = [&](int f, int repeat, int y) {
    there = 0 <= f && f < min(end, s.source.size[0]) && 0 <= row + y && row + y < s.source.size[1];
    if (!there) return;
    read_row(from + f * s.source.frame + y * s.source.row + repeat, s.source.channels,
             kSimple || s.beside, apart, inside, two);
  };
  read(begin, 0, 0);
  const float2 bias = shared.bias[lane.pair];
  float sum[KT][Body::kResults][kPair];
#pragma unroll
  for (int k = 0; k < KT; ++k) {
#pragma unroll
    for (int r = 0; r < Body::kResults; ++r) sum[k][r][0] = bias.x, sum[k][r][1] = bias.y;
  }
  const int repeats = kSimple ? 1 : s.pairing.repeats;
  for (int f = begin; f < end; ++f) {
    for (int repeat = 0; repeat < repeats; ++repeat) {
      // Where repeats follow, a loop takes fewer registers.
#pragma unroll(kSimple ? Body::kReadRows : 1)
      for (int y = 0; y < Body::kReadRows; ++y) {
        const bool use = there;
        float x[Body::kReadColumns][kPair];
        widen_row(two, s.dtype, x);
        const bool last_y = y + 1 == Body::kReadRows, last = last_y && repeat + 1 == repeats;
        read(last ? f + 1 : f, last ? 0 : repeat + last_y, last_y ? 0 : y + 1);  // ahead of its use
        if (use) Body::add(x, y, weights, sum);
      }
      if constexpr (!kSimple) weights.weight += taps * pitch;
    }
    if constexpr (!kSimple) weights = first_weights;
    if (f - begin >= KT - 1) {
#pragma unroll
      for (int y = 0; y < Body::kResultRows; ++y) {
        const bool row_inside =
            Body::kResultRows == 1 || (first_row + y >= 0 && first_row + y < s.result.size[1]);
        const unsigned write = row_inside ? to_inside : 0;
        Bits* at = to + y * s.result.row;
#pragma unroll
        for (int x = 0; x < Body::kResultColumns; ++x) {
          const float (&result)[kPair] = sum[KT - 1][y * Body::kResultColumns + x];
          const Two<Bits> both = narrow<Bits>(result[0], result[1], s.dtype);
          if (write >> x & 1) *reinterpret_cast<Two<Bits>*>(at) = both;
          at += s.result.channels;
        }
      }
      to += s.result.frame;
    }
#pragma unroll
    for (int k = KT - 1; k >= 0; --k) {
#pragma unroll
      for (int r = 0; r < Body::kResults; ++r) {
        sum[k][r][0] = k > 0 ? sum[k - 1][r][0] : bias.x;
        sum[k][r][1] = k > 0 ? sum[k - 1][r][1] : bias.y;
      }
    }
  }
}

}  // namespace vmf::cuda
