// The gradients of weight and bias, in one pass over the input and the output's gradient.
//
// Blocks go through T, and through samples, as in depthwise_conv3d_gather.cuh: input frames in
// shared memory, the last kT frames of the thread's own gradients in registers. Each thread adds up
// its products for every tap; then the threads of a channel add theirs, pair by pair, and a second
// kernel adds what the blocks have found, both in a fixed order.
#pragma once

#include "cuda/depthwise_conv3d_gather.cuh"
#include "cuda/depthwise_conv3d_partials.cuh"

namespace vmf::cuda {

struct GradWeightShape {
  const void* grad_output;
  const void* input;
  PartialSums sums;
  Volumes source, result;  // input and grad_output
  Pairing pairing;
  int batch;
  int padding[3];
  int samples, sample_tiles;  // of a block, in turn; a tiling is that of one sample
  Divisor tap_groups;         // blocks beside each other that have some columns of the kernel each
  Tiling tiling;

  int64_t blocks() const { return tiling.blocks * tap_groups * sample_tiles; }
};

// Columns of the kernel that one block sums up, so that a thread's sums fit into registers.
template <class Body>
constexpr int kColumnsAtOnce = kTaps<Body> <= 45           ? Body::kW
                               : Body::kT * Body::kH <= 25 ? 3
                                                           : 1;

template <class Body>
struct GradWeight {
  static constexpr int kSums = Body::kT * Body::kH * kColumnsAtOnce<Body> + 1;
  static constexpr int kAtOnce = 2 * Window<Gather<Body>::kSlots>::kElements / kThreads;

  union Shared {
    alignas(16) float tile[2][Window<Gather<Body>::kSlots>::kElements];
    float sums[kAtOnce][kThreads];
  };
};

template <class Body>
__device__ void add_products(const float* tile, int pitch,
                             const float (&grad)[Body::kT][Body::kRows],
                             float (&sum)[GradWeight<Body>::kSums]) {
  constexpr int KT = Body::kT, KH = Body::kH;
  constexpr int inputs = (Body::kRows - 1) * Body::kRowStep + KH;
#pragma unroll
  for (int x = 0; x < kColumnsAtOnce<Body>; ++x) {
    float column[inputs];
#pragma unroll
    for (int y = 0; y < inputs; ++y) column[y] = tile[y * pitch + x];
#pragma unroll
    for (int t = 0; t < KT; ++t) {
#pragma unroll
      for (int y = 0; y < KH; ++y) {
#pragma unroll
        for (int r = 0; r < Body::kRows; ++r) {
          sum[(x * KT + t) * KH + y] += grad[t][r] * column[r * Body::kRowStep + y];
        }
      }
    }
  }
}

// Adds up the sums of a volume's threads, and writes them where the second kernel reads.
template <class Body>
__device__ void write_sums(const GradWeightShape& s, const Place& at, int first_column,
                           int64_t partial, const float (&sum)[GradWeight<Body>::kSums],
                           typename GradWeight<Body>::Shared& shared) {
  constexpr int KT = Body::kT, KH = Body::kH, KW = Body::kW, taps = kTaps<Body>;
  constexpr int count = GradWeight<Body>::kSums, at_once = GradWeight<Body>::kAtOnce;
  const int thread = static_cast<int>(threadIdx.x), threads = s.tiling.groups * s.tiling.columns;
  const int local = at.group * s.tiling.columns + at.column;
  int half = 1;
  while (2 * half < threads) half *= 2;
#pragma unroll
  for (int first = 0; first < count; first += at_once) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      if (first + i < count) shared.sums[i][thread] = sum[first + i];
    }
    for (int step = half; step > 0; step /= 2) {
      __syncthreads();
      if (at.idle || local >= step || local + step >= threads) continue;
#pragma unroll
      for (int i = 0; i < at_once; ++i) {
        if (first + i < count) shared.sums[i][thread] += shared.sums[i][thread + step];
      }
    }
    if (at.idle || local > 0) continue;
    float* const to = s.sums.of(partial, static_cast<int>(at.first) + at.volume, taps);
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int k = first + i, x = first_column + k / (KT * KH);
      if (k == count - 1 && first_column == 0) to[taps] = shared.sums[i][thread];
      if (k < count - 1 && x < KW) to[k % (KT * KH) * KW + x] = shared.sums[i][thread];
    }
  }
}

template <class Body>
__global__ void __launch_bounds__(kThreads, kBlocks<Body>) grad_weight(GradWeightShape s) {
  constexpr int KT = Body::kT, rows = Body::kRows;
  auto& shared = shared_memory<typename GradWeight<Body>::Shared>();
  const Tiling& tiling = s.tiling;
  int block = static_cast<int>(blockIdx.x);
  const int first_column = s.tap_groups.take(block) * kColumnsAtOnce<Body>;
  const int blocks = static_cast<int>(tiling.blocks), sample_tile = block / blocks;
  const Place at(tiling, block - sample_tile * blocks, s.sums.channels);

  Window<Gather<Body>::kSlots> window;
  window.place(tiling.window, s.source, s.pairing, at.first, at.volumes, at.row_tile,
               at.column_tile, s.sums.dtype);
  const int tile_offset =
      (at.volume * tiling.window.rows + at.group * Body::kSteps * Body::kRowStep) *
          tiling.window.pitch +
      at.column * Body::kColumnStep + tiling.window.lead + first_column;
  const int row = (at.row_tile * tiling.groups + at.group) * rows;
  const int column = at.column_tile * tiling.columns + at.column;
  unsigned inside = 0;  // a bit for each of the thread's rows that there are
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    if (row + r < s.result.size[1]) inside |= 1u << r;
  }
  if (at.idle || column >= s.result.size[2]) inside = 0;
  const int time_end = min(at.time + tiling.time, s.result.size[0]);
  const int begin = max(at.time - s.padding[0], 0);
  const int end = min(time_end - s.padding[0] + KT - 1, s.source.size[0]);
  const int64_t from_frame = s.source.frame(), grads_frame = s.result.frame();

  float sum[GradWeight<Body>::kSums] = {};
  int buffer = 0;
  const int last_sample = min((sample_tile + 1) * s.samples, s.batch);
  for (int sample = sample_tile * s.samples; sample < last_sample; ++sample) {
    const int64_t v = int64_t{sample} * s.sums.channels + at.first;
    int64_t from = s.pairing.source(v) * s.source.volume() + begin * from_frame;
    int64_t grads = (v + at.volume) * s.result.volume() + at.time * grads_frame +
                    int64_t{row} * s.result.size[2] + column;
    float grad[KT][rows] = {}, fresh[rows];
    const auto read_grads = [&](bool there) {  // of the next frame, ahead of their use
      with_type(s.sums.dtype, [&](auto type) {
        const auto* at = static_cast<const typename decltype(type)::Bits*>(s.grad_output) + grads;
#pragma unroll
        for (int r = 0; r < rows; ++r) {
          fresh[r] = there && (inside >> r & 1) ? type.to_float(*at) : 0;
          at += s.result.size[2];
        }
      });
      grads += grads_frame;
    };
    if (begin < end) window.fetch(s.input, from);
    read_grads(at.time < time_end);
    for (int f = at.time - s.padding[0]; f < time_end - s.padding[0] + KT - 1; ++f) {
      if (begin <= f && f < end) {
        window.put(shared.tile[buffer]);
        __syncthreads();
        from += from_frame;
        if (f + 1 < end) window.fetch(s.input, from);
      }
#pragma unroll
      for (int r = 0; r < rows; ++r) {
#pragma unroll
        for (int k = KT - 1; k > 0; --k) grad[k][r] = grad[k - 1][r];
        grad[0][r] = fresh[r];
        sum[GradWeight<Body>::kSums - 1] += fresh[r];
      }
      read_grads(f + s.padding[0] + 1 < time_end);
      if (begin <= f && f < end) {
        add_products<Body>(shared.tile[buffer] + tile_offset, tiling.window.pitch, grad, sum);
        buffer = 1 - buffer;
      }
    }
  }
  const int64_t in_sample =
      (int64_t{at.time / tiling.time} * tiling.row_tiles + at.row_tile) * tiling.column_tiles +
      at.column_tile;
  const int64_t tiles = int64_t{tiling.time_tiles} * tiling.row_tiles * tiling.column_tiles;
  write_sums<Body>(s, at, first_column, sample_tile * tiles + in_sample, sum, shared);
}

}  // namespace vmf::cuda
