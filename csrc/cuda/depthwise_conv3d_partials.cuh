// The second kernel of the weight gradient: adds up what the blocks of the first have found.
#pragma once

#include "cuda/device.cuh"

namespace vmf::cuda {

struct PartialSums {
  float* partial;     // (count, channels, taps + 1): the last one is of the bias
  int64_t count;      // blocks that have found sums of a channel
  void* grad_weight;  // (channels, taps), or null
  void* grad_bias;    // (channels), or null
  DType dtype;
  int channels;

  // The sums of one channel that one block has found.
  __device__ float* of(int64_t block, int channel, int taps) const {
    return partial + (block * channels + channel) * (taps + 1);
  }
  int64_t bytes(int taps) const { return count * channels * (taps + 1) * int64_t{sizeof(float)}; }
};

// Threads of a block that share one sum; in shared memory they then add up theirs, in order.
constexpr int kParts = 8;

template <int kTaps>
__global__ void __launch_bounds__(kThreads) add_partials(PartialSums s) {
  constexpr int sums = kThreads / kParts;
  auto& found = shared_memory<float[kParts][sums]>();
  const int column = static_cast<int>(threadIdx.x) % sums;
  const int part = static_cast<int>(threadIdx.x) / sums;
  const int64_t all = int64_t{s.channels} * (kTaps + 1);
  const int64_t i = int64_t{blockIdx.x} * sums + column;
  float sum = 0;
  if (i < all) {
#pragma unroll 8
    for (int64_t block = part; block < s.count; block += kParts) sum += s.partial[block * all + i];
  }
  found[part][column] = sum;
  __syncthreads();
  if (part > 0 || i >= all) return;
  for (int other = 1; other < kParts; ++other) sum += found[other][column];
  const int64_t channel = i / (kTaps + 1), tap = i % (kTaps + 1);
  if (tap < kTaps && s.grad_weight != nullptr) {
    store(s.grad_weight, channel * kTaps + tap, s.dtype, sum);
  } else if (tap == kTaps && s.grad_bias != nullptr) {
    store(s.grad_bias, channel, s.dtype, sum);
  }
}

template <int kTaps>
const char* launch_add_partials(const PartialSums& sums, void* stream) {
  const int64_t all = int64_t{sums.channels} * (kTaps + 1);
  return launch(&add_partials<kTaps>, divide_up(all, kThreads / kParts), sums, stream);
}

}  // namespace vmf::cuda
