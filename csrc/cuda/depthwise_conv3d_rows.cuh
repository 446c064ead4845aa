// Features with channels last, (N, T, H, W, C): neighbouring lanes have neighbouring channels.
//
// A thread has an item: some neighbouring results of one row (where transposed with a stride of 2,
// of two rows), of a pair of channels. It goes through T as in depthwise_conv3d_gather.cuh, and of
// each frame reads the pairs that its results need straight from global memory: items of a block
// are neighbours, so that the first-level cache has what several of them read. What is read feeds
// all taps of a row, in T and in W, from registers.
#pragma once

#include <type_traits>

#include "cuda/depthwise_conv3d_pairing.cuh"

namespace vmf::cuda {

constexpr int kPair = 2;  // channels of a thread

// A tensor (N, T, H, W, C), without its N, and how many elements are in its parts.
struct Features {
  int size[3], channels;
  int64_t row, frame, sample;
};

// How blocks divide the work: a block has `pairs` pairs of channels of `items` items at a time.
struct ItemTiling {
  Divisor pairs, pair_tiles;
  int items;
  Divisor rows, row_tiles;  // items below each other, which are neighbours in a block
  Divisor columns;          // items beside each other
  int time;                 // frames of an item
  Divisor time_tiles;
  int64_t count;  // of all items

  __host__ __device__ int64_t rounds() const { return divide_up(count, items); }
  int64_t blocks() const { return rounds() * pair_tiles; }
};

// Where an item is.
struct Item {
  int sample, time, row, column;

  __device__ Item(const ItemTiling& tiling, int index) {
    row = tiling.rows.take(index);
    column = tiling.columns.take(index);
    row += tiling.row_tiles.take(index) * tiling.rows;
    time = tiling.time_tiles.take(index) * tiling.time;
    sample = index;
  }
};

// Which of its block's items and pairs a thread has, and the first of its channels.
struct Lane {
  int item, pair, channel;

  __device__ Lane(const ItemTiling& tiling, int pair_tile) {
    item = static_cast<int>(threadIdx.x);
    pair = tiling.pairs.take(item);
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
                         Two<Bits> (&two)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    two[i] = {};
    if (inside >> i & 1) {
      two[i] = beside ? *reinterpret_cast<const Two<Bits>*>(row) : join(row[0], row[apart]);
    }
    row += channels;
  }
}

template <class Two, int kCount>
__device__ void widen_row(const Two (&two)[kCount], DType dtype, float (&x)[kCount][kPair]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) widen(two[i], dtype, x[i]);
}

}  // namespace vmf::cuda
