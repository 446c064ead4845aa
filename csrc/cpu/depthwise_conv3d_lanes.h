// Between tensors of either layout and any storage type, and blocks in cache: rows of columns, a
// column being one vector of lanes in the arithmetic type.
//
// All that a layout, a storage type, a channel multiplier or a tail of channels costs is paid here,
// once per element, but for rows that are read where they lie.
#pragma once

#include "depthwise_conv3d_plan.h"
#include "vec.h"

namespace vmf {
namespace VMF_ISA {
namespace {

// The lanes of one vector: from lane `first` on of samples * channels = `total`.
template <typename Real>
struct Lanes {
  static constexpr int kCount = kLanes<Real>;
  int count = 0;  // that exist
  int64_t sample[kCount], channel[kCount];

  Lanes() = default;
  Lanes(int64_t first, int64_t total, int64_t channels)
      : count(static_cast<int>(larger(0, smaller(kCount, total - first)))) {
    int64_t n = first / channels, c = first % channels;
    for (int i = 0; i < count; ++i) {
      sample[i] = n;
      channel[i] = c;
      if (++c == channels) {
        c = 0;
        ++n;
      }
    }
  }
};

template <typename Real>
inline void fill_zero(Real* to, int64_t columns) {
  for (int64_t i = 0; i < columns; ++i) store(to + i * kLanes<Real>, Vec<Real>{});
}

// Reads n neighbouring elements of each lane; element i of all lanes goes to place(i), which is
// called in order. A null row is an idle lane and reads as zeros.
template <typename T, typename Place>
inline void gather_rows(const T* const* rows, int64_t n, Place place) {
  using Real = Arithmetic<T>;
  constexpr int lanes = kLanes<Real>;
  for (int64_t i = 0; i < n; i += lanes) {
    Vec<Real> square[lanes];
    const int64_t count = smaller(lanes, n - i);
    for (int lane = 0; lane < lanes; ++lane) {
      square[lane] = rows[lane] == nullptr ? Vec<Real>{} : load_some(rows[lane] + i, count);
    }
    transpose<Real>(square);
    for (int64_t k = 0; k < count; ++k) store(place(i + k), square[k]);
  }
}

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
      if (!channels_last_) continue;
      if (transposes()) {
        vectors_[i].whole = v.count == kCount;
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
    for (int64_t i = 0; i < count_ * repeat_; ++i) {
      for (int64_t row = 0; row < h.size(); ++row) {
        Real* zeros = to + i / repeat_ * step + i % repeat_ * repeat_step + row * width_ * kCount;
        fill_zero(zeros, left_);
        fill_zero(zeros + (left_ + columns_) * kCount, width_ - left_ - columns_);
      }
    }
    Real* first = to + left_ * kCount;
    if (channels_last_) {
      for (int64_t row = 0; row < h.size(); ++row) {
        read_channels_last(offset + row * strides_.h, first + row * width_ * kCount, step,
                           repeat_step);
      }
    } else {
      for (int64_t i = 0; i < count_ * repeat_; ++i) {
        read_contiguous(vectors_[i / repeat_], offset + i % repeat_ * strides_.c, h.size(),
                        first + i / repeat_ * step + i % repeat_ * repeat_step);
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
    bool whole;       // has all lanes, and where nothing is transposed they are neighbours
    bool one_window;  // has all lanes
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
    vector.one_window = end - begin == 1 && lanes.count == kCount && loaded_ == kCount;
    vector.whole = vector.one_window;
    for (int i = 0; i < lanes.count; ++i) {
      vector.whole = vector.whole && channel[i] - channel[0] == i;
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
        if (transposes()) {
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
  bool transposes() const {
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
        if (inside && vector.whole) {
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
    if (vector.whole) {
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
    if (vector.offset[kCount - 1] >= 0) {  // no lane is idle
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
  Array<Vector> vectors_;
  Array<Window> windows_;
  int64_t loaded_ = 0;  // of a window
};

// Writes one vector of lanes of an activation.
template <typename T>
class Writer {
 public:
  using Real = Arithmetic<T>;
  static constexpr int kCount = kLanes<Real>;

  // To be called before anything else.
  void attach(T* data, const Strides& strides, bool channels_last, const Lanes<Real>& lanes) {
    strides_ = strides;
    channels_last_ = channels_last;
    lanes_ = lanes.count;
    runs_ = 0;
    for (int i = 0; i < lanes.count; ++i) {
      rows_[i] = data + lanes.sample[i] * strides.n + lanes.channel[i] * strides.c;
      if (i == 0 || lanes.sample[i] != lanes.sample[i - 1]) run_begin_[runs_++] = i;
    }
    run_begin_[runs_] = lanes.count;
  }

  // Where the kernels may store whole vectors of a row themselves, strides.w apart; or null.
  T* direct(int64_t t, int64_t h) const {
    const bool whole = channels_last_ && runs_ == 1 && lanes_ == kCount;
    return whole ? rows_[0] + t * strides_.t + h * strides_.h : nullptr;
  }

  // `columns` columns, which may be whole rows, from row `h` on. A vector may be read behind them.
  void write(const Real* from, int64_t t, int64_t h, int64_t columns) const {
    const int64_t offset = t * strides_.t + h * strides_.h;
    if (!channels_last_) return write_contiguous(from, offset, columns);
    for (int run = 0; run < runs_; ++run) {
      const int lane = run_begin_[run], count = run_begin_[run + 1] - lane;
      T* to = rows_[lane] + offset;
      for (int64_t w = 0; w < columns; ++w) {
        store_some(to + w * strides_.w, load(from + w * kCount + lane), count);
      }
    }
  }

 private:
  void write_contiguous(const Real* from, int64_t offset, int64_t columns) const {
    Vec<Real> square[kCount];
    if (lanes_ == kCount && columns >= kCount) {
      for (int64_t at = 0;;) {
#pragma GCC unroll 16
        for (int i = 0; i < kCount; ++i) square[i] = load(from + (at + i) * kCount);
        transpose<Real>(square);
#pragma GCC unroll 16
        for (int i = 0; i < kCount; ++i) store(rows_[i] + offset + at, square[i]);
        if (at + kCount >= columns) return;
        at = smaller(at + kCount, columns - kCount);  // the last square overlaps
      }
    }
    for (int64_t at = 0; at < columns; at += kCount) {
      const int64_t count = smaller(kCount, columns - at);
      for (int64_t i = 0; i < kCount; ++i) {
        square[i] = i < count ? load(from + (at + i) * kCount) : Vec<Real>{};
      }
      transpose<Real>(square);
      for (int i = 0; i < lanes_; ++i) store_some(rows_[i] + offset + at, square[i], count);
    }
  }

  Strides strides_;
  bool channels_last_;
  int lanes_, runs_;
  T* rows_[kCount];
  int run_begin_[kCount + 1];
};

// The weights of each lane's channel, as [row of taps][column tap][lane], the column taps in the
// order of Columns::tap; of the repeat-th of `repeats` channels.
template <typename T>
void read_weights(const T* weight, const Shape& s, const Columns& columns,
                  const Lanes<Arithmetic<T>>& lanes, int64_t repeats, int64_t repeat,
                  Arithmetic<T>* to) {
  using Real = Arithmetic<T>;
  constexpr int count = kLanes<Real>;
  const int64_t taps = volume(s.kernel), width = s.kernel[2];
  const T* rows[count];
  for (int i = 0; i < count; ++i) {
    rows[i] = i < lanes.count ? weight + (lanes.channel[i] * repeats + repeat) * taps : nullptr;
  }
  Array<int64_t> position(width);
  for (int64_t k = 0; k < width; ++k) position[k] = -1;
  for (int64_t i = 0; i < columns.taps; ++i) position[columns.tap[i]] = i;
  alignas(64) Real unused[count];
  int64_t k = 0;
  gather_rows(rows, taps, [&](int64_t) {
    if (k == width) {
      k = 0;
      to += columns.taps * count;
    }
    const int64_t i = position[k++];
    return i < 0 ? unused : to + i * count;
  });
}

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
