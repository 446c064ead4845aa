// The geometry of a depthwise convolution, seen from the tensor that is written.
//
// Forward and input gradient are one thing here: every element of the tensor written ("to") is a
// sum over taps of weight times an element of the tensor read ("from"). Only the index rule
// differs, and `Axis` holds it. The weight gradient reads through the forward rule.
//
// A *lane* is one channel of one sample: samples do not differ in geometry, so a vector may hold
// the last channels of one and the first of the next, and only the very last vector has idle lanes.
#pragma once

#include <cstdlib>

#include "integers.h"
#include "vec.h"
#include "vmf/depthwise_conv3d.h"

namespace vmf {
namespace VMF_ISA {
namespace {

using Shape = DepthwiseConv3dShape;

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }
inline int64_t volume(const int64_t size[3]) { return size[0] * size[1] * size[2]; }

// Bytes of an element in memory, and of the type that it is computed in.
inline int64_t storage_bytes(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }
inline int64_t arithmetic_bytes(DType t) { return t == DType::f64 ? 8 : 4; }

// Of input and output together.
inline int64_t activation_bytes(const Shape& s) {
  return s.batch * s.channels * (volume(s.input) + s.multiplier * volume(s.output)) *
         storage_bytes(s.dtype);
}

// What a pass takes, in multiply-adds: to read and write an element costs as much as a dozen.
inline int64_t work(const Shape& s) {
  return s.batch * s.channels * s.multiplier * volume(s.output) * (volume(s.kernel) + 12);
}

// A bare array, not initialised: std::vector has functions that the linker could share between the
// copies of this file.
template <typename T>
class Array {
 public:
  explicit Array(int64_t size) {
    const int64_t bytes = larger(size, 1) * static_cast<int64_t>(sizeof(T));
    data_ = static_cast<T*>(std::aligned_alloc(64, static_cast<size_t>(ceil_div(bytes, 64) * 64)));
    if (data_ == nullptr) std::abort();
  }
  ~Array() { std::free(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_;
};

// Where the elements of an activation are, in elements.
struct Strides {
  int64_t n, c, t, h, w;
};

inline Strides activation_strides(int64_t channels, int64_t t, int64_t h, int64_t w,
                                  bool channels_last) {
  const int64_t inner = channels_last ? channels : 1;
  return {channels * t * h * w, channels_last ? 1 : t * h * w, h * w * inner, w * inner, inner};
}

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// One of T, H, W.
struct Axis {
  int64_t to, from;  // sizes
  int64_t kernel, stride, padding, dilation;
  bool transposed;  // the input gradient: `to` is the convolution's input

  // The index that `x` reads through tap `k`, or -1 where that is padding or falls between strides.
  int64_t source(int64_t x, int64_t k) const {
    int64_t i = transposed ? x + padding - k * dilation : x * stride - padding + k * dilation;
    if (transposed) {
      if (i < 0 || i % stride != 0) return -1;
      i /= stride;
    }
    return i >= 0 && i < from ? i : -1;
  }

  // All that the indices `x` (at least one) read.
  Range sources(Range x) const {
    const int64_t reach = (kernel - 1) * dilation;
    int64_t begin, end;
    if (transposed) {
      begin = -floor_div(-(x.begin + padding - reach), stride);
      end = floor_div(x.end - 1 + padding, stride) + 1;
    } else {
      begin = x.begin * stride - padding;
      end = (x.end - 1) * stride - padding + reach + 1;
    }
    begin = smaller(larger(begin, 0), from);
    return {begin, larger(begin, smaller(end, from))};
  }

  // Upper bound of sources(...).size() for any `count` indices in a row.
  int64_t span(int64_t count) const {
    const int64_t reach = (kernel - 1) * dilation;
    const int64_t size =
        transposed ? (count - 1 + reach) / stride + 1 : (count - 1) * stride + reach + 1;
    return smaller(size, from);
  }
};

inline Axis make_axis(const Shape& s, int axis, bool transposed) {
  return {transposed ? s.input[axis] : s.output[axis],
          transposed ? s.output[axis] : s.input[axis],
          s.kernel[axis],
          s.stride[axis],
          s.padding[axis],
          s.dilation[axis],
          transposed};
}

// Columns first, first + step, ... of a row written: those that use the same taps. The forward rule
// has one phase; the input gradient one per residue of the stride.
struct Phase {
  int64_t first, step, count;
  int64_t taps_begin, taps_end;  // in Columns::tap
  int64_t advance;               // of the column read, from one column written to the next
  int chunk;                     // taps in a run that the row kernel takes at once; divides them
};

// How rows of W are read. A row of `from` is held with `left` zeros before it, `width` in all.
class Columns {
 public:
  explicit Columns(const Axis& axis)
      : tap(axis.kernel), offset(axis.kernel), phase(axis.transposed ? axis.stride : 1) {
    phases = smaller(axis.transposed ? axis.stride : 1, axis.to);
    int64_t low = 0, high = axis.from;
    for (int64_t p = 0; p < phases; ++p) {
      Phase& f = phase[p];
      f.first = p;
      f.step = phases;
      f.count = ceil_div(axis.to - p, f.step);
      f.advance = axis.transposed ? 1 : axis.stride;
      f.taps_begin = taps;
      for (int64_t i = 0; i < axis.kernel; ++i) {
        const int64_t k = axis.transposed ? axis.kernel - 1 - i : i;
        int64_t at = axis.transposed ? p + axis.padding - k * axis.dilation
                                     : k * axis.dilation - axis.padding;
        if (axis.transposed) {
          if (at % axis.stride != 0) continue;
          at /= axis.stride;
        }
        // A tap that reads only padding is left out.
        if (at + (f.count - 1) * f.advance < 0 || at >= axis.from) continue;
        tap[taps] = k;
        offset[taps++] = at;
        low = smaller(low, at);
        high = larger(high, at + (f.count - 1) * f.advance + 1);
      }
      f.taps_end = taps;
      f.chunk = chunk_size(f);
    }
    left = -low;
    width = left + high;
  }

  // Whether rows of `from` can be read where they lie: padding is then under some taps of a run of
  // the row's first and last results only, which the row and sum kernels leave out.
  bool readable_in_place(const Axis& axis) const {
    for (int64_t p = 0; p < phases; ++p) {
      const Phase& f = phase[p];
      for (int64_t i = f.taps_begin; i < f.taps_end; i += f.chunk) {
        const int64_t last = offset[i] + (f.count - 1) * f.advance;
        if (offset[i] < 1 - f.chunk || last >= axis.from) return false;
      }
    }
    return true;
  }

  int64_t phases;
  int64_t taps = 0;  // over all phases
  Array<int64_t> tap, offset;
  Array<Phase> phase;
  int64_t left, width;

 private:
  // Neighbouring columns under neighbouring taps are shared in registers; else taps go one by one.
  int chunk_size(const Phase& f) const {
    const int64_t count = f.taps_end - f.taps_begin;
    for (int64_t i = f.taps_begin + 1; i < f.taps_end; ++i) {
      if (offset[i] != offset[i - 1] + 1) return 1;
    }
    static const int sizes[] = {7, 5, 4, 3, 2};
    for (int size : sizes) {
      const bool built = f.advance == 1 || (f.advance == 2 && size % 2 == 1);
      if (built && count > 0 && count % size == 0) return size;
    }
    return 1;
  }
};

// Whether columns lie so far apart that they share few sets of the first-level cache, which holds
// 4 KiB in each way, and are too many for those.
inline bool columns_collide(const Shape& s) {
  const int64_t column_bytes = s.channels * storage_bytes(s.dtype);
  return column_bytes % 1024 == 0 && s.input[2] > 8 && s.kernel[1] * s.kernel[2] > 1;
}

// Whether rows of these bytes an element may be read where they lie: 16-bit ones if that is quick.
constexpr bool readable(int64_t element_bytes) { return kWidens || element_bytes > 2; }

// Whether rows can be read where they lie in an activation with the channels of the input: whole
// vectors of lanes lie there, and padding is under taps that the row and sum kernels look at.
inline bool readable_in_place(const Shape& s, const Axis& w, const Columns& columns) {
  return s.channels_last && s.multiplier == 1 && readable(storage_bytes(s.dtype)) &&
         s.channels >= VMF_VECTOR_BYTES / arithmetic_bytes(s.dtype) &&
         columns.readable_in_place(w) && !columns_collide(s);
}

// Which taps along T of frame `t` are not padding, and the frame under the first of them. Frames
// with the same taps read frames that are as far apart.
struct FrameTaps {
  FrameTaps() = default;
  FrameTaps(const Axis& axis, int64_t t) {
    for (int64_t k = 0; k < axis.kernel; ++k) {
      const int64_t from = axis.source(t, k);
      if (from < 0) continue;
      if (count++ == 0) {
        begin = k;
        first = from;
      }
      last = k;
    }
  }

  bool same(const FrameTaps& other) const {
    return begin == other.begin && last == other.last && count == other.count;
  }

  int64_t begin = -1, last = -1, count = 0, first = 0;
};

// Calls function(a value of the storage type, one of the type that rows are held in).
template <typename Function>
inline void with_rows(DType dtype, bool in_place, const Function& function) {
  with_storage(dtype, [&](auto storage) {
    if constexpr (readable(sizeof(storage))) {
      if (in_place) return function(storage, storage);
    }
    function(storage, Arithmetic<decltype(storage)>());
  });
}

// Lanes come in blocks of a cache line of floats, whatever the instruction set.
constexpr int64_t kBlock = 16;

// An item is a group of lanes, some rows and some frames of the tensor written. What they need from
// the tensor read is held in cache while the item moves along T.
struct Item {
  Range lanes, h, t;
};

// How the work is cut into items. Samples come in bunches whose lanes fill blocks well; the blocks
// of a bunch are cut into groups.
class Split {
 public:
  Split() = default;

  // `row_bytes` is what a row takes in cache for a block, over all frames held; `work` what
  // it all takes. With `whole_vectors` no group has fewer lanes than a vector, nor lanes of
  // two samples. With `shared_bunches` an item may go over several bunches.
  Split(int64_t batch, int64_t channels, bool channels_last, const Axis& t, const Axis& h,
        int64_t row_bytes, int64_t work, bool whole_vectors, bool shared_bunches = false)
      : batch_(batch), channels_(channels), h_(h.to), t_(t.to), whole_(whole_vectors) {
    if (batch * channels * h.to * t.to == 0) return;
    bunch_ = whole_vectors ? 1 : choose_bunch(channels_last);
    blocks_ = whole_vectors ? larger(1, channels / kBlock) : ceil_div(bunch_ * channels, kBlock);
    bunches_ = ceil_div(batch, bunch_);

    // What is held should leave room in the second-level cache for what is written. It is as wide
    // as the tensor, where neighbouring lanes are neighbours in memory, and some rows high, as
    // borders are read twice. Frames that share nothing that is read need not be narrow: forward
    // takes the rows of one after the other, in the order of memory, and borders are still in
    // cache.
    const bool frames_apart = whole_vectors && t.kernel == 1;
    const int64_t kCache = (whole_vectors ? 256 : 384) << 10, kRows = frames_apart ? 1 : 8;
    group_size_ = channels_last ? blocks_ : 1;
    h_size_ = h_;
    t_size_ = t_;
    while (group_size_ > kWide && h.span(smaller(h_, kRows)) * row_bytes * group_size_ > kCache) {
      group_size_ = ceil_div(group_size_, 2);
    }
    for (int64_t n = 2; h_size_ > 1 && h.span(h_size_) * row_bytes * group_size_ > kCache; ++n) {
      h_size_ = ceil_div(h_, n);
    }

    if (frames_apart && !shared_bunches) t_size_ = 1;  // a share of sums is longer

    // Enough items to balance many threads, none below some fifty microseconds, or two of ten.
    constexpr int64_t kItems = 32, kWork = 1 << 21, kFew = 2, kFewWork = 1 << 19;
    const int64_t wanted = larger(smaller(kItems, work / kWork), smaller(kFew, work / kFewWork));
    while (bunches_ * items_per_bunch() < wanted && split_further(t, h)) continue;

    // One item may go over several bunches where that leaves enough.
    shares_ = bunches_;
    if (shared_bunches) shares_ = smaller(bunches_, ceil_div(kItems, items_per_bunch()));
  }

  int64_t items() const { return shares_ * items_per_bunch(); }
  int64_t items_per_bunch() const { return groups() * t_parts() * h_parts(); }
  int64_t groups() const { return ceil_div(blocks_, group_size_); }
  int64_t parts() const { return t_parts() * h_parts(); }                  // of a group
  int64_t group_lanes() const { return (group_size_ + whole_) * kBlock; }  // at most
  int64_t h_size() const { return h_size_; }

  // The bunches that an item goes over.
  Range bunches(int64_t item) const {
    const int64_t share = item / items_per_bunch();
    return {share * bunches_ / shares_, (share + 1) * bunches_ / shares_};
  }

  // The number of the item of this group and part, among those of a share. Threads get neighbouring
  // items: with rows read in place those are groups of the same rows, so that threads rarely write
  // to one cache line; else frames of one group, whose start costs.
  int64_t index(int64_t group, int64_t part) const {
    return whole_ ? part * groups() + group : group * parts() + part;
  }

  Item item(int64_t index, int64_t bunch) const {
    index %= items_per_bunch();
    const int64_t group = whole_ ? index % groups() : index / parts();
    const int64_t part = whole_ ? index / groups() : index % parts();
    const int64_t h = part % h_parts(), t = part / h_parts();
    return {lanes(bunch, group),
            {h * h_size_, smaller((h + 1) * h_size_, h_)},
            {t * t_size_, smaller((t + 1) * t_size_, t_)}};
  }

  // Lanes of a group; the same ones of any bunch but the last have the same channels.
  Range lanes(int64_t bunch, int64_t group) const {
    const int64_t first = bunch * bunch_ * channels_;
    const int64_t end = smaller(batch_, (bunch + 1) * bunch_) * channels_;
    const int64_t size = group_size_ * kBlock;
    const bool last = group + 1 == groups();
    return {smaller(first + group * size, end),
            last ? end : smaller(first + (group + 1) * size, end)};
  }

 private:
  int64_t h_parts() const { return ceil_div(h_, h_size_); }
  int64_t t_parts() const { return ceil_div(t_, t_size_); }

  // Halves the items where it costs least; false if there is nothing left to halve.
  bool split_further(const Axis& t, const Axis& h) {
    const auto half = [](int64_t size) { return ceil_div(size, 2); };
    // How much more is read, or how much slower: the latter a guess.
    const auto more = [&](const Axis& axis, int64_t size) {
      return size == 1 ? 1e9
                       : 2.0 * static_cast<double>(axis.span(half(size))) /
                             static_cast<double>(larger(axis.span(size), 1));
    };
    const double narrower = group_size_ == 1 ? 1e9 : group_size_ > kWide ? 1.1 : 1.5;
    const double shorter = more(t, t_size_), lower = more(h, h_size_);
    if (group_size_ == 1 && t_size_ == 1 && h_size_ == 1) return false;
    int64_t& size = narrower <= shorter && narrower <= lower ? group_size_
                    : shorter <= lower                       ? t_size_
                                                             : h_size_;
    size = half(size);
    return true;
  }

  // The fewest samples that leave the fewest lanes idle. Channels-last memory is read fastest one
  // sample after the other: there, only where a sample alone has few lanes.
  int64_t choose_bunch(bool channels_last) const {
    const int64_t limit = (channels_last ? 4 : 32) * kBlock;
    const double gain = channels_last ? 0.1 : 0.02;
    int64_t best = 1;
    const auto idle = [&](int64_t samples) {
      const int64_t lanes = samples * channels_;
      return static_cast<double>(ceil_div(lanes, kBlock) * kBlock) / static_cast<double>(lanes);
    };
    for (int64_t samples = 2; samples <= batch_ && samples * channels_ <= limit; ++samples) {
      if (idle(samples) < idle(best) - gain) best = samples;
    }
    return best;
  }

  // Blocks, each a cache line of floats, that make memory fast when read in a run.
  static constexpr int64_t kWide = 8;

  int64_t batch_ = 0, channels_ = 0, h_ = 0, t_ = 0;
  bool whole_ = false;  // the last group of a bunch takes a block that is not full
  int64_t bunch_ = 1;   // samples
  int64_t bunches_ = 0, blocks_ = 0, shares_ = 0;
  int64_t group_size_ = 1, h_size_ = 1, t_size_ = 1;
};

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
