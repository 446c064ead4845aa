// Forward and transposed: each result gathers what it is made of.
//
// A block takes a tile of H and W, of one volume or of several small ones, and goes through T. Each
// frame is read once, into shared memory. What it gives to the kT frames that need it is added up
// in registers: `sum[k]` belongs to the frame that sees this one through tap k.
#pragma once

#include "cuda/depthwise_conv3d_window.cuh"

namespace vmf::cuda {

struct GatherShape {
  const void* from;
  const void* weight;  // (weight_channels, kT, kH, kW)
  const void* bias;    // (to_channels), or null
  void* to;
  DType dtype;
  Volumes source, result;
  Pairing pairing;
  Divisor to_channels, weight_channels;
  bool flipped;    // taps are taken in reverse order: in T, and in H and W if Body::kFlipsFrames
  int padding[3];  // result position r is made of source positions from r * stride - padding on
  Tiling tiling;
};

// Weights lie in shared memory as [x][t][y], from one x to the next:
template <int KT, int KH>
constexpr int kWeightStep = static_cast<int>(round_up(KT * KH, 4));

// Convolution with a stride of S in H and W. A thread has kRows results, one below the other.
template <int KT, int KH, int KW, int S>
struct Convolution {
  static constexpr int kT = KT, kH = KH, kW = KW;
  static constexpr int kRows = S == 1 ? 8 : 4, kResults = kRows;
  static constexpr int kRowStep = S, kColumnStep = S;  // from a thread's first input to the next's
  static constexpr int kSteps = kRows;                 // row steps a thread
  static constexpr int kReach[2] = {KH - S, KW - S};   // inputs beyond the last step's
  static constexpr bool kFlipsFrames = true;

  static __device__ void add(const float* tile, int pitch, const float* weight,
                             float (&sum)[KT][kResults]) {
#pragma unroll
    for (int x = 0; x < KW; ++x) {
      float column[(kRows - 1) * S + KH];
#pragma unroll
      for (int y = 0; y < (kRows - 1) * S + KH; ++y) column[y] = tile[y * pitch + x];
#pragma unroll
      for (int t = 0; t < KT; ++t) {
#pragma unroll
        for (int y = 0; y < KH; ++y) {
          const float w = weight[x * kWeightStep<KT, KH> + t * KH + y];
#pragma unroll
          for (int r = 0; r < kRows; ++r) sum[t][r] += w * column[r * S + y];
        }
      }
    }
  }

  // Row and column of the first result, of those of the thread's first input before the padding;
  // and how far others are from there.
  static __device__ int row(const GatherShape&, int at) { return at; }
  static __device__ int column(const GatherShape&, int at) { return at; }
  static __device__ constexpr int down(int result) { return result; }
  static __device__ constexpr int right(int) { return 0; }
};

// Transposed convolution with a stride of 2 in H and W: with u = row + padding and u = 2 j + b,
// input row j - i meets tap 2 i + b, and columns do the same. A thread has kRows times two rows and
// two columns; its weights are flipped in T alone.
template <int KT, int KH, int KW>
struct Transposed {
  static constexpr int kT = KT, kH = KH, kW = KW;
  static constexpr int kRows = 2, kResults = 4 * kRows;
  static constexpr int kRowStep = 1, kColumnStep = 1, kSteps = kRows;
  static constexpr int kReach[2] = {(KH - 1) / 2, (KW - 1) / 2};
  static constexpr bool kFlipsFrames = false;

  static __device__ void add(const float* tile, int pitch, const float* weight,
                             float (&sum)[KT][kResults]) {
    constexpr int reach = kReach[0];
#pragma unroll
    for (int x = 0; x < KW; ++x) {
      float column[kRows + reach];
#pragma unroll
      for (int y = 0; y < kRows + reach; ++y) column[y] = tile[y * pitch + kReach[1] - x / 2];
#pragma unroll
      for (int t = 0; t < KT; ++t) {
#pragma unroll
        for (int y = 0; y < KH; ++y) {
          const float w = weight[x * kWeightStep<KT, KH> + t * KH + y];
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            sum[t][(2 * r + y % 2) * 2 + x % 2] += w * column[r + reach - y / 2];
          }
        }
      }
    }
  }

  static __device__ int row(const GatherShape& s, int at) {
    return 2 * (at + s.padding[1] / 2) - s.padding[1];
  }
  static __device__ int column(const GatherShape& s, int at) {
    return 2 * (at + s.padding[2] / 2) - s.padding[2];
  }
  static __device__ constexpr int down(int result) { return result / 2; }
  static __device__ constexpr int right(int result) { return result % 2; }
};

template <class Body>
constexpr int kTaps = Body::kT * Body::kH * Body::kW;

// Blocks that a multiprocessor should have room for: its registers are divided by that.
template <class Body>
constexpr int kBlocks = kTaps<Body> <= 27 ? 4 : 2;

// The form of a kernel: what the host plans with.
template <class Body>
struct Gather {
  static constexpr int kSlots = kTaps<Body> <= 27 ? 12 : 16;
  static constexpr int kWeight = Body::kW * kWeightStep<Body::kT, Body::kH>;
  static constexpr int kWeights = kTaps<Body> <= 27 ? 1024 : 2048;  // in shared memory, of a tile

  struct Shared {
    alignas(16) float tile[2][Window<kSlots>::kElements];
    alignas(16) float weight[kWeights];
  };
};

// Weights of the tile's volumes: [volume][repeat][x][t][y].
template <class Body>
__device__ void gather_weights(const GatherShape& s, int64_t first, float* to) {
  constexpr int taps = kTaps<Body>;
  const int count = s.tiling.volumes * s.pairing.repeats * taps;
  const int first_channel = s.weight_channels.rest(first * s.pairing.repeats);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const int tap = i % taps, filter = i / taps;
    const int x = tap % Body::kW, y = tap / Body::kW % Body::kH, t = tap / Body::kW / Body::kH;
    const int64_t channel = s.weight_channels.rest(int64_t{first_channel} + filter);
    const bool flip = s.flipped && Body::kFlipsFrames;
    const int to_t = s.flipped ? Body::kT - 1 - t : t;
    const int to_y = flip ? Body::kH - 1 - y : y, to_x = flip ? Body::kW - 1 - x : x;
    to[filter * Gather<Body>::kWeight + to_x * kWeightStep<Body::kT, Body::kH> + to_t * Body::kH +
       to_y] = load(s.weight, channel * taps + tap, s.dtype);
  }
}

template <class Body>
__global__ void __launch_bounds__(kThreads, kBlocks<Body>) gather(GatherShape s) {
  constexpr int KT = Body::kT;
  auto& shared = shared_memory<typename Gather<Body>::Shared>();
  const Tiling& tiling = s.tiling;
  const Place at(tiling, static_cast<int>(blockIdx.x), s.result.count);
  gather_weights<Body>(s, at.first, shared.weight);

  Window<Gather<Body>::kSlots> window;
  window.place(tiling.window, s.source, s.pairing, at.first, at.volumes, at.row_tile,
               at.column_tile, s.dtype);
  const int tile_offset =
      (at.volume * tiling.window.rows + at.group * Body::kSteps * Body::kRowStep) *
          tiling.window.pitch +
      at.column * Body::kColumnStep + tiling.window.lead;
  const float* const weight = shared.weight + at.volume * s.pairing.repeats * Gather<Body>::kWeight;

  const int64_t v = at.first + at.volume;
  const float bias =
      s.bias == nullptr || at.idle ? 0 : load(s.bias, s.to_channels.rest(v), s.dtype);
  const int row = Body::row(s, (at.row_tile * tiling.groups + at.group) * Body::kSteps);
  const int column = Body::column(s, at.column_tile * tiling.columns + at.column);
  unsigned inside = 0;  // a bit for each of the thread's results that there are
#pragma unroll
  for (int r = 0; r < Body::kResults; ++r) {
    const int y = row + Body::down(r), x = column + Body::right(r);
    if (0 <= y && y < s.result.size[1] && 0 <= x && x < s.result.size[2]) inside |= 1u << r;
  }
  if (at.idle) inside = 0;
  const int64_t to_frame = s.result.frame(), from_frame = s.source.frame();
  int64_t to =
      v * s.result.volume() + at.time * to_frame + int64_t{row} * s.result.size[2] + column;

  const int time_end = min(at.time + tiling.time, s.result.size[0]);
  const int begin = max(at.time - s.padding[0], 0);
  const int end = min(time_end - s.padding[0] + KT - 1, s.source.size[0]);  // of the frames to read
  int64_t from = s.pairing.source(at.first) * s.source.volume() + begin * from_frame;
  if (begin < end) window.fetch(s.from, from);
  float sum[KT][Body::kResults];
#pragma unroll
  for (int k = 0; k < KT; ++k) {
#pragma unroll
    for (int r = 0; r < Body::kResults; ++r) sum[k][r] = bias;
  }
  int buffer = 0;
  for (int f = at.time - s.padding[0]; f < time_end - s.padding[0] + KT - 1; ++f) {
    if (begin <= f && f < end) {
      for (int repeat = 0; repeat < s.pairing.repeats; ++repeat) {
        window.put(shared.tile[buffer]);
        __syncthreads();
        const bool more = repeat + 1 < s.pairing.repeats;
        if (more || f + 1 < end) {
          window.fetch(s.from, from + (more ? (repeat + 1) * s.source.volume() : from_frame));
        }
        Body::add(shared.tile[buffer] + tile_offset, tiling.window.pitch,
                  weight + repeat * Gather<Body>::kWeight, sum);
        buffer = 1 - buffer;
      }
      from += from_frame;
    }
    if (f + s.padding[0] - (KT - 1) >= at.time) {
      with_type(s.dtype, [&](auto type) {
        auto* result = static_cast<typename decltype(type)::Bits*>(s.to) + to;
#pragma unroll
        for (int r = 0; r < Body::kResults; ++r) {
          if (r > 0 && Body::right(r) == 0) result += s.result.size[2];
          if (inside >> r & 1) result[Body::right(r)] = type.from_float(sum[KT - 1][r]);
        }
      });
      to += to_frame;
    }
#pragma unroll
    for (int k = KT - 1; k >= 0; --k) {
#pragma unroll
      for (int r = 0; r < Body::kResults; ++r) sum[k][r] = k > 0 ? sum[k - 1][r] : bias;
    }
  }
}

}  // namespace vmf::cuda
