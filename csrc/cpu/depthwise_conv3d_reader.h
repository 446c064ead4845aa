// Reads rows of an activation of either layout and any storage type into blocks in cache.
#pragma once

#include "depthwise_conv3d_lanes.h"
#include "depthwise_conv3d_plan.h"
#include "vec.h"

namespace vmf {
namespace VMF_ISA {
namespace {

// Reads a group of lanes of an activation, channels-last ones in the order of addresses: memory is
// several times as fast so.
template <typename T>
class Reader {
 public:
  using Real = Arithmetic<T>;
  static constexpr int kCount = kLanes<Real>;

  // Of an activation with rows of `columns` columns. A row goes to cache as `left` zeros, its
  // columns and zeros up to `width`. A group has at most `vectors` vectors.
  Reader(const T* data, const Strides& strides, bool channels_last, int64_t columns, int64_t left,
         int64_t width, int64_t vectors)
      : data_(data),
        strides_(strides),
        channels_last_(channels_last),
        columns_(columns),
        left_(left),
        width_(width),
        vectors_(vectors),
        windows_(channels_last ? vectors * kCount : 0) {}

  // Lanes of `channels` channels a sample; each reads channel / share of its sample, or one of the
  // `repeat` channels from channel * repeat on.
  void attach(Range lanes, int64_t channels, int64_t repeat, int64_t share) {
    count_ = ceil_div(lanes.size(), kCount);
    repeat_ = repeat;
    transposes_ = transposing_pays();
    int64_t windows = 0;
    for (int64_t i = 0; i < count_; ++i) {
      const Lanes<Real> v(lanes.begin + i * kCount, lanes.end, channels);
      int64_t channel[kCount];
      for (int lane = 0; lane < kCount; ++lane) {
        const bool any = lane < v.count;
        if (any) channel[lane] = v.channel[lane] * repeat / share;
        vectors_[i].offset[lane] =
            any ? v.sample[lane] * strides_.n + channel[lane] * strides_.c : -1;
      }
      vectors_[i].full = v.count == kCount;
      if (!channels_last_) continue;
      if (transposes_) {
        int64_t last = 0;
        for (int lane = 0; lane < v.count; ++lane) last = larger(last, channel[lane]);
        vectors_[i].end = last + ceil_div(repeat, kCount) * kCount;
      } else {
        windows = find_windows(vectors_[i], v, channel, repeat, windows);
      }
    }
  }

  // Rows `h` of frame `t` to the place of the first vector; vectors are `step` apart, the repeated
  // channels of one `repeat_step`.
  void read(int64_t t, Range h, Real* to, int64_t step, int64_t repeat_step = 0) const {
    const int64_t offset = t * strides_.t + h.begin * strides_.h;
    for (int64_t i = 0; i < count_; ++i) {
      for (int64_t r = 0; r < repeat_; ++r) {
        Real* zeros = to + i * step + r * repeat_step;
        for (int64_t row = 0; row < h.size(); ++row, zeros += width_ * kCount) {
          fill_zero(zeros, left_);
          fill_zero(zeros + (left_ + columns_) * kCount, width_ - left_ - columns_);
        }
      }
    }
    Real* first = to + left_ * kCount;
    if (channels_last_) {
      for (int64_t row = 0; row < h.size(); ++row) {
        read_channels_last(offset + row * strides_.h, first + row * width_ * kCount, step,
                           repeat_step);
      }
      return;
    }
    for (int64_t i = 0; i < count_; ++i) {
      for (int64_t r = 0; r < repeat_; ++r) {
        read_contiguous(vectors_[i], offset + r * strides_.c, h.size(),
                        first + i * step + r * repeat_step);
      }
    }
  }

 private:
  // Neighbouring channels, and which lanes take which of them.
  struct Window {
    int64_t offset;
    IndexVec<Real> index, taken;
  };

  struct Vector {
    int64_t offset[kCount];  // of each lane; -1 for an idle one
    int64_t windows_begin, windows_end;
    bool full;        // no lane is idle
    bool one_window;  // has all lanes
    bool neighbours;  // in the order of channels
    int64_t end;      // behind the channels that are loaded to be transposed
  };

  int64_t find_windows(Vector& vector, const Lanes<Real>& lanes, const int64_t* channel,
                       int64_t repeat, int64_t begin) {
    // A window is loaded whole, so it must end within the sample's channels, for each repeat.
    const int64_t channels = strides_.w - (repeat - 1);
    loaded_ = smaller(kCount, channels);
    int64_t end = begin;
    for (int i = 0; i < lanes.count;) {
      const int64_t first = smaller(channel[i], channels - loaded_), sample = lanes.sample[i];
      Window& window = windows_[end++];
      window = Window{};
      window.offset = sample * strides_.n + first;
      for (; i < lanes.count && lanes.sample[i] == sample; ++i) {
        if (channel[i] - first >= loaded_) break;
        window.index[i] = channel[i] - first;
        window.taken[i] = -1;
      }
    }
    vector.windows_begin = begin;
    vector.windows_end = end;
    vector.one_window = end - begin == 1 && vector.full && loaded_ == kCount;
    vector.neighbours = vector.one_window;
    for (int i = 0; i < lanes.count; ++i) {
      vector.neighbours = vector.neighbours && channel[i] - channel[0] == i;
    }
    return end;
  }

  // In pieces of a row: a compromise between the order of memory read and of memory written.
  void read_channels_last(int64_t offset, Real* to, int64_t step, int64_t repeat_step) const {
    constexpr int64_t kPiece = 8;
    for (int64_t w = 0; w < columns_; w += kPiece) {
      const int64_t count = smaller(kPiece, columns_ - w), at = offset + w * strides_.w;
      for (int64_t i = 0; i < count_; ++i) {
        Real* piece = to + i * step + w * kCount;
        if (transposes_) {
          read_transposed(vectors_[i], at, count, piece, repeat_step);
          continue;
        }
        for (int64_t r = 0; r < repeat_; ++r) {
          read_vector(vectors_[i], at + r, count, piece + r * repeat_step);
        }
      }
    }
  }

  // Whether repeated channels are so many that a square of them, transposed, takes fewer
  // instructions than two for each window of each repeat.
  bool transposing_pays() const {
    constexpr int kStages = kCount == 16 ? 4 : kCount == 8 ? 3 : kCount == 4 ? 2 : 1;
    return 2 * repeat_ * repeat_ >= kCount * (1 + kStages);
  }

  // The neighbouring channels of each lane.
  void read_transposed(const Vector& vector, int64_t offset, int64_t columns, Real* to,
                       int64_t repeat_step) const {
    for (int64_t w = 0; w < columns; ++w, offset += strides_.w, to += kCount) {
      // What lies behind a lane's channels is loaded with them, but not behind the tensor.
      const bool inside = offset + vector.end <= strides_.n;
      for (int64_t r = 0; r < repeat_; r += kCount) {
        const T* from = data_ + offset + r;
        const int64_t count = smaller(kCount, repeat_ - r);
        Vec<Real> square[kCount];
        if (inside && vector.full) {
#pragma GCC unroll 16
          for (int i = 0; i < kCount; ++i) square[i] = load(from + vector.offset[i]);
        } else {
          for (int i = 0; i < kCount; ++i) {
            const bool any = vector.offset[i] >= 0;
            square[i] = any ? load_some(from + vector.offset[i], count) : Vec<Real>{};
          }
        }
        transpose<Real>(square);
        for (int64_t k = 0; k < count; ++k) store(to + (r + k) * repeat_step, square[k]);
      }
    }
  }

  void read_vector(const Vector& vector, int64_t offset, int64_t columns, Real* to) const {
    if (vector.neighbours) {
      const T* from = data_ + vector.offset[0] + offset;
      for (int64_t w = 0; w < columns; ++w) store(to + w * kCount, load(from + w * strides_.w));
    } else if (vector.one_window) {
      const Window& window = windows_[vector.windows_begin];
      const IndexVec<Real> index = window.index;
      const T* from = data_ + window.offset + offset;
      for (int64_t w = 0; w < columns; ++w) {
        store(to + w * kCount, permute(load(from + w * strides_.w), index));
      }
    } else if (loaded_ == kCount) {
      read_windows(vector, offset, columns, to, [](const T* from) { return load(from); });
    } else {
      const int64_t count = loaded_;
      read_windows(vector, offset, columns, to,
                   [count](const T* from) { return load_some(from, count); });
    }
  }

  template <typename Load>
  void read_windows(const Vector& vector, int64_t offset, int64_t columns, Real* to,
                    Load load) const {
    int64_t w = 0;
    for (; w + 4 <= columns; w += 4) {
      read_columns<4>(vector, offset + w * strides_.w, to + w * kCount, load);
    }
    for (; w < columns; ++w) {
      read_columns<1>(vector, offset + w * strides_.w, to + w * kCount, load);
    }
  }

  // `Columns` columns, which share the windows' numbers in registers.
  template <int Columns, typename Load>
  void read_columns(const Vector& vector, int64_t offset, Real* to, Load load) const {
    Vec<Real> v[Columns] = {};
    for (int64_t k = vector.windows_begin; k < vector.windows_end; ++k) {
      const Window& window = windows_[k];
      const IndexVec<Real> index = window.index, taken = window.taken;
      const T* from = data_ + window.offset + offset;
#pragma GCC unroll 4
      for (int w = 0; w < Columns; ++w, from += strides_.w) {
        v[w] = taken ? permute(load(from), index) : v[w];
      }
    }
#pragma GCC unroll 4
    for (int w = 0; w < Columns; ++w) store(to + w * kCount, v[w]);
  }

  // The rows of a lane follow each other in memory: transposed as one long row.
  void read_contiguous(const Vector& vector, int64_t offset, int64_t rows, Real* to) const {
    const int64_t size = rows * columns_;
    int64_t left = columns_;  // in the row
    const auto next_place = [&] {
      if (left == 0) {
        left = columns_;
        to += (width_ - columns_) * kCount;
      }
      --left;
      to += kCount;
      return to - kCount;
    };
    const T* const from = data_ + offset;
    int64_t done = 0;
    if (vector.full) {
      for (; done + kCount <= size; done += kCount) {
        Vec<Real> square[kCount];
#pragma GCC unroll 16
        for (int i = 0; i < kCount; ++i) square[i] = load(from + vector.offset[i] + done);
        transpose<Real>(square);
#pragma GCC unroll 16
        for (int i = 0; i < kCount; ++i) store(next_place(), square[i]);
      }
    }
    const T* rest[kCount];
    for (int i = 0; i < kCount; ++i) {
      rest[i] = vector.offset[i] < 0 ? nullptr : from + vector.offset[i] + done;
    }
    gather_rows(rest, size - done, [&](int64_t) { return next_place(); });
  }

  const T* data_;
  Strides strides_;
  bool channels_last_;
  int64_t columns_, left_, width_;
  int64_t count_ = 0, repeat_ = 1;  // vectors at hand, and the channels of a lane
  bool transposes_ = false;
  Array<Vector> vectors_;
  Array<Window> windows_;
  int64_t loaded_ = 0;  // of a window
};

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
