// The part of a frame that a block reads: rows and columns of a few volumes, zeros around them.
//
// A volume is one channel of one sample, (T, H, W) contiguous. The window goes through T: a thread
// fetches its elements of the next frame into registers while the block computes with the last one
// in shared memory.
#pragma once

#include "cuda/device.cuh"

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
  int rows, pitch;  // in shared memory, where a row has `pitch` elements
  int start[2];     // the first row and column that are wanted, of tile 0
  int advance[2];   // from one tile to the next
  int lead;         // columns before the first one wanted, so that groups are aligned
  int group;        // elements a load: 4 where rows are multiples of that, else 1
};

// How blocks divide the work; a tile is the part of a few volumes that a block has.
struct Tiling {
  WindowShape window;
  int volumes, groups, columns;  // of a tile; a group is the rows of one thread
  int row_tiles, column_tiles, time_tiles;
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

  __device__ Place(const Tiling& tiling, int64_t block, int64_t all_volumes) {
    column_tile = static_cast<int>(block % tiling.column_tiles);
    block /= tiling.column_tiles;
    row_tile = static_cast<int>(block % tiling.row_tiles);
    block /= tiling.row_tiles;
    time = static_cast<int>(block % tiling.time_tiles) * tiling.time;
    first = block / tiling.time_tiles * tiling.volumes;
    volumes = static_cast<int>(min(int64_t{tiling.volumes}, all_volumes - first));
    const int thread = static_cast<int>(threadIdx.x);
    volume = thread / (tiling.groups * tiling.columns);
    group = thread / tiling.columns % tiling.groups;
    column = thread % tiling.columns;
    idle = volume >= volumes;
    if (idle) volume = group = column = 0;
  }
};

// Which volumes of a tensor are read for volume v of another one: v / share * repeats + [0,
// repeats). A channel multiplier is the one in a convolution and the other in its transposed form.
struct Pairing {
  int share, repeats;

  __host__ __device__ int64_t source(int64_t v) const { return v / share * repeats; }
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
    const int groups = shape.pitch / group_;
    const int phase = static_cast<int>(first % pairing.share);
    const int first_row = row_tile * shape.advance[0] + shape.start[0];
    const int first_column = column_tile * shape.advance[1] + shape.start[1] - shape.lead;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      raw_[s] = 0;
      const int i = s * kThreads + static_cast<int>(threadIdx.x);
      const int column = first_column + i % groups * group_;
      const int row = first_row + i / groups % shape.rows;
      const int volume = i / groups / shape.rows;
      const bool inside = volume < volumes && 0 <= row && row < from.size[1] && 0 <= column &&
                          column < from.size[2];
      const int source = (phase + volume) / pairing.share * pairing.repeats;
      offset_[s] =
          inside ? static_cast<int>(source * from.volume()) + row * from.size[2] + column : -1;
    }
  }

  // Starts to read a frame; `frame` is the first element of the first volume's.
  __device__ void fetch(const void* data, int64_t frame) {
    const float* const wide = static_cast<const float*>(data) + frame;
    const uint16_t* const narrow = static_cast<const uint16_t*>(data) + frame;
    if (group_ == 4 && dtype_ == DType::f32) {
#pragma unroll
      for (int s = 0; s < kSlots / 4; ++s) {
        if (offset_[s] < 0) continue;
        read(reinterpret_cast<const uint4*>(wide + offset_[s]), raw_ + 4 * s);
      }
    } else if (group_ == 4) {
#pragma unroll
      for (int s = 0; s < kSlots / 4; ++s) {
        if (offset_[s] < 0) continue;
        read(reinterpret_cast<const uint2*>(narrow + offset_[s]), raw_ + 4 * s);
      }
    } else if (dtype_ == DType::f32) {
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        if (offset_[s] >= 0) raw_[s] = reinterpret_cast<const uint32_t*>(wide)[offset_[s]];
      }
    } else {
#pragma unroll
      for (int s = 0; s < kSlots; ++s) {
        if (offset_[s] >= 0) raw_[s] = narrow[offset_[s]];
      }
    }
  }

  // Writes what was fetched, and zeros where there was nothing, into shared memory.
  __device__ void put(float* tile) const {
    with_type(dtype_, [&](auto type) {
      if (group_ == 4) {
#pragma unroll
        for (int s = 0; s < kSlots / 4; ++s) {
          const uint32_t* const r = raw_ + 4 * s;
          float4 four;
          if constexpr (sizeof(typename decltype(type)::Bits) == 4) {
            four = {type.to_float(r[0]), type.to_float(r[1]), type.to_float(r[2]),
                    type.to_float(r[3])};
          } else {
            four = {type.to_float(r[0]), type.to_float(r[0] >> 16), type.to_float(r[1]),
                    type.to_float(r[1] >> 16)};
          }
          reinterpret_cast<float4*>(tile)[s * kThreads + threadIdx.x] = four;
        }
      } else {
#pragma unroll
        for (int s = 0; s < kSlots; ++s) {
          tile[s * kThreads + threadIdx.x] = type.to_float(raw_[s]);
        }
      }
    });
  }

 private:
  static __device__ void read(const uint4* from, uint32_t* to) {
    const uint4 four = *from;
    to[0] = four.x;
    to[1] = four.y;
    to[2] = four.z;
    to[3] = four.w;
  }
  static __device__ void read(const uint2* from, uint32_t* to) {
    const uint2 four = *from;
    to[0] = four.x;
    to[1] = four.y;
  }

  DType dtype_;
  int group_;
  int offset_[kSlots];
  uint32_t raw_[kSlots];
};

}  // namespace vmf::cuda
