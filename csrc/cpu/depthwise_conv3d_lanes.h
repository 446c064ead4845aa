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
