// The part of a frame that a block reads: rows and columns of a few volumes, zeros around them.
//
// A volume is one channel of one sample, (T, H, W) contiguous. The window goes through T: a thread
// fetches its elements of the next frame into registers while the block computes with the last one
// in shared memory.
#pragma once

#include "cuda/depthwise_conv3d_pairing.cuh"

namespace vmf::cuda {

// A tensor (N, C, T, H, W), contiguous, without its N and C.
struct Volumes {
  int64_t count;
  int size[3];

  __host__ __device__ int64_t frame() const { return int64_t{size[1]} * size[2]; }
  __host__ __device__ int64_t volume() const { return size[0] * frame(); }
};

// The form of a window, and its place in a block's frame.
struct WindowShape {
  int pitch;           // elements of a row in shared memory
  Divisor rows, wide;  // rows of a volume, and groups of a row
  int start[2];        // the first row and column that are wanted, of tile 0
  int advance[2];      // from one tile to the next
  int lead;            // columns before the first one wanted, so that groups are aligned
  int group;           // elements a load: 4 or 2 where rows are multiples of that, else 1
};

// How blocks divide the work; a tile is the part of a few volumes that a block has.
struct Tiling {
  WindowShape window;
  int volumes;              // of a tile
  Divisor groups, columns;  // the same; a group is the rows of one thread
  Divisor row_tiles, column_tiles, time_tiles;
  int time;  // frames a tile
  int64_t blocks;
};

// Where a block's tile is, and a thread's part of it.
struct Place {
  int64_t first;  // volume
  int volumes;    // that there are
  int time, row_tile, column_tile;
  int volume, group, column;  // in the tile
  bool idle;                  // has nothing of its own

  __device__ Place(const Tiling& tiling, int block, int64_t all_volumes) {
    column_tile = tiling.column_tiles.take(block);
    row_tile = tiling.row_tiles.take(block);
    time = tiling.time_tiles.take(block) * tiling.time;
    first = int64_t{block} * tiling.volumes;
    volumes = static_cast<int>(min(int64_t{tiling.volumes}, all_volumes - first));
    volume = static_cast<int>(threadIdx.x);
    column = tiling.columns.take(volume);
    group = tiling.groups.take(volume);
    idle = volume >= volumes;
    if (idle) volume = group = column = 0;
  }
};

// A thread's elements of a window: at most kSlots.
template <int kSlots>
class Window {
 public:
  // Of one frame, in floats. A tap that is not there may be read: up to a group beyond.
  static constexpr int kElements = kSlots * kThreads + 4;

  // For `volumes` volumes from `first` on.
  __device__ void place(const WindowShape& shape, const Volumes& from, Pairing pairing,
                        int64_t first, int volumes, int row_tile, int column_tile, DType dtype) {
    dtype_ = dtype;
    group_ = shape.group;
    const int phase = pairing.share.rest(first);
    const int first_row = row_tile * shape.advance[0] + shape.start[0];
    const int first_column = column_tile * shape.advance[1] + shape.start[1] - shape.lead;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      raw_[s] = 0;
      offset_[s] = -1;
      if (s * group_ >= kSlots) continue;
      int volume = s * kThreads + static_cast<int>(threadIdx.x);
      const int column = first_column + shape.wide.take(volume) * group_;
      const int row = first_row + shape.rows.take(volume);
      const bool inside = volume < volumes && 0 <= row && row < from.size[1] && 0 <= column &&
                          column < from.size[2];
      if (inside) {
        offset_[s] = static_cast<int>(pairing.source(phase + volume) * from.volume()) +
                     row * from.size[2] + column;
      }
    }
  }

  // Starts to read a frame; `frame` is the first element of the first volume's.
  __device__ void fetch(const void* data, int64_t frame) {
    const auto fetch_bits = [&](const auto* bits) {
      with_group([&]<int kGroup>() { fetch_groups<kGroup>(bits + frame); });
    };
    if (dtype_ == DType::f32) {
      fetch_bits(static_cast<const uint32_t*>(data));
    } else {
      fetch_bits(static_cast<const uint16_t*>(data));
    }
  }

  // Writes what was fetched, and zeros where there was nothing, into shared memory.
  __device__ void put(float* tile) const {
    with_type(dtype_, [&](auto type) {
      with_group([&]<int kGroup>() { put_groups<kGroup>(type, tile); });
    });
  }

 private:
  // Runs f with the number of elements of a group: the same branch for all threads.
  template <class F>
  __device__ void with_group(const F& f) const {
    if (group_ == 4) {
      f.template operator()<4>();
    } else if (group_ == 2) {
      f.template operator()<2>();
    } else {
      f.template operator()<1>();
    }
  }

  template <int kGroup, class Bits>
  __device__ void fetch_groups(const Bits* frame) {
#pragma unroll
    for (int s = 0; s < kSlots / kGroup; ++s) {
      if (offset_[s] < 0) continue;
      uint32_t* const to = raw_ + kGroup * s;
      const Bits* const from = frame + offset_[s];
      if constexpr (kGroup * sizeof(Bits) == 16) {
        const uint4 four = *reinterpret_cast<const uint4*>(from);
        to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
      } else if constexpr (kGroup * sizeof(Bits) == 8) {
        const uint2 two = *reinterpret_cast<const uint2*>(from);
        to[0] = two.x, to[1] = two.y;
      } else if constexpr (kGroup * sizeof(Bits) == 4) {
        to[0] = *reinterpret_cast<const uint32_t*>(from);
      } else {
        to[0] = *from;
      }
    }
  }

  template <int kGroup, class Type>
  __device__ void put_groups(Type type, float* tile) const {
    constexpr int per_word = sizeof(typename Type::Bits) == 4 ? 1 : 2;  // elements
#pragma unroll
    for (int s = 0; s < kSlots / kGroup; ++s) {
      const auto element = [&](int i) {
        return type.to_float(raw_[kGroup * s + i / per_word] >> 16 * (i % per_word));
      };
      float* const to = tile + (s * kThreads + static_cast<int>(threadIdx.x)) * kGroup;
      if constexpr (kGroup == 4) {
        *reinterpret_cast<float4*>(to) = {element(0), element(1), element(2), element(3)};
      } else if constexpr (kGroup == 2) {
        *reinterpret_cast<float2*>(to) = {element(0), element(1)};
      } else {
        *to = element(0);
      }
    }
  }

  DType dtype_;
  int group_;
  int offset_[kSlots];
  uint32_t raw_[kSlots];
};

}  // namespace vmf::cuda
