// Between tensors of either layout and any storage type, and blocks in cache: rows of columns, a
// column being one vector of lanes in the arithmetic type.
//
// All that a layout, a storage type, a channel multiplier or a tail of channels costs is paid here,
// once per element; the kernels only ever see such blocks.
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
    for (int i = 0; i < count; ++i) {
      sample[i] = (first + i) / channels;
      channel[i] = (first + i) % channels;
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

// One vector of lanes of an activation.
template <typename T>
class Reader {
 public:
  using Real = Arithmetic<T>;
  static constexpr int kCount = kLanes<Real>;

  // Lane i reads channel channel[i] / share of its sample, or one of the `repeat` channels from
  // channel[i] * repeat on.
  Reader() = default;
  Reader(const T* data, const Strides& strides, bool channels_last, const Lanes<Real>& lanes,
         int64_t repeat, int64_t share)
      : data_(data), strides_(strides), channels_last_(channels_last) {
    int64_t channel[kCount];
    for (int i = 0; i < lanes.count; ++i) {
      channel[i] = lanes.channel[i] * repeat / share;
      rows_[i] = data + lanes.sample[i] * strides.n + channel[i] * strides.c;
    }
    for (int i = lanes.count; i < kCount; ++i) rows_[i] = nullptr;
    if (channels_last) find_windows(lanes, channel, repeat);
  }

  // Rows `h` of frame `t`, each as `left` zeros, its `columns` columns and zeros up to `width`; of
  // the repeat-th channel of each lane.
  void read(int64_t repeat, int64_t t, Range h, int64_t columns, int64_t left, int64_t width,
            Real* to) const {
    const int64_t offset = repeat * strides_.c + t * strides_.t + h.begin * strides_.h;
    for (int64_t row = 0; row < h.size(); ++row) {
      fill_zero(to + row * width * kCount, left);
      fill_zero(to + (row * width + left + columns) * kCount, width - left - columns);
    }
    Real* first = to + left * kCount;
    if (!channels_last_) {
      read_contiguous(offset, h.size(), columns, width, first);
    } else {
      for (int64_t row = 0; row < h.size(); ++row) {
        read_channels_last(offset + row * strides_.h, columns, first + row * width * kCount);
      }
    }
  }

 private:
  // A vector of neighbouring channels, and which lanes take which of them.
  struct Window {
    int64_t offset;
    IndexVec<Real> index, taken;
  };

  void find_windows(const Lanes<Real>& lanes, const int64_t* channel, int64_t repeat) {
    // A window is loaded whole, so it must end within the sample's channels, for each repeat.
    const int64_t channels = strides_.w - (repeat - 1);
    loaded_ = smaller(kCount, channels);
    for (int i = 0; i < lanes.count;) {
      const int64_t first = smaller(channel[i], channels - loaded_);
      Window& window = windows_[count_++];
      window = Window{};
      window.offset = lanes.sample[i] * strides_.n + first;
      const int begin = i;
      for (; i < lanes.count && lanes.sample[i] == lanes.sample[begin]; ++i) {
        if (channel[i] - first >= loaded_) break;
        window.index[i] = channel[i] - first;
        window.taken[i] = -1;
      }
    }
    identity_ = count_ == 1 && lanes.count == kCount && loaded_ == kCount;
    for (int i = 0; i < lanes.count; ++i) identity_ = identity_ && windows_[0].index[i] == i;
  }

  void read_channels_last(int64_t offset, int64_t columns, Real* to) const {
    if (identity_) {
      const T* from = data_ + windows_[0].offset + offset;
      for (int64_t w = 0; w < columns; ++w) store(to + w * kCount, load(from + w * strides_.w));
      return;
    }
    for (int64_t w = 0; w < columns; ++w) {
      Vec<Real> v{};
      for (int i = 0; i < count_; ++i) {
        const Vec<Real> x = load_some(data_ + windows_[i].offset + offset + w * strides_.w, loaded_);
        v = windows_[i].taken ? permute(x, windows_[i].index) : v;
      }
      store(to + w * kCount, v);
    }
  }

  // The rows of a lane follow each other in memory: transposed as one long row.
  void read_contiguous(int64_t offset, int64_t rows, int64_t columns, int64_t width,
                       Real* to) const {
    const T* at[kCount];
    for (int i = 0; i < kCount; ++i) at[i] = rows_[i] == nullptr ? nullptr : rows_[i] + offset;
    int64_t column = 0;
    gather_rows(at, rows * columns, [&](int64_t) {
      if (column == columns) {
        column = 0;
        to += width * kCount;
      }
      return to + column++ * kCount;
    });
  }

  const T* data_ = nullptr;
  Strides strides_ = {};
  bool channels_last_ = false;
  const T* rows_[kCount] = {};
  Window windows_[kCount];
  int count_ = 0;
  int64_t loaded_ = 0;
  bool identity_ = false;
};

// Writes one vector of lanes of an activation.
template <typename T>
class Writer {
 public:
  using Real = Arithmetic<T>;
  static constexpr int kCount = kLanes<Real>;

  Writer() = default;
  Writer(T* data, const Strides& strides, const Lanes<Real>& lanes, bool channels_last)
      : strides_(strides), lanes_(lanes.count), channels_last_(channels_last) {
    for (int i = 0; i < lanes.count; ++i) {
      rows_[i] = data + lanes.sample[i] * strides.n + lanes.channel[i] * strides.c;
      if (i == 0 || lanes.sample[i] != lanes.sample[i - 1]) run_begin_[runs_++] = i;
    }
    run_begin_[runs_] = lanes.count;
  }

  // Where the kernels may store whole vectors of a row themselves, strides.w apart; or null.
  Real* direct(int64_t t, int64_t h) const {
    if constexpr (sizeof(T) == sizeof(Real)) {
      if (channels_last_ && runs_ == 1 && lanes_ == kCount) {
        return rows_[0] + t * strides_.t + h * strides_.h;
      }
    }
    return nullptr;
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
    for (int64_t i = 0; i < columns; i += kCount) {
      Vec<Real> square[kCount];
      const int64_t count = smaller(kCount, columns - i);
      for (int64_t k = 0; k < kCount; ++k) {
        square[k] = k < count ? load(from + (i + k) * kCount) : Vec<Real>{};
      }
      transpose<Real>(square);
      for (int lane = 0; lane < lanes_; ++lane) {
        store_some(rows_[lane] + offset + i, square[lane], count);
      }
    }
  }

  Strides strides_ = {};
  int lanes_ = 0;
  bool channels_last_ = false;
  T* rows_[kCount] = {};
  int runs_ = 0;
  int run_begin_[kCount + 1] = {};
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
