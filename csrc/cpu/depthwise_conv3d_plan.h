// The geometry of a depthwise convolution, seen from the tensor that is written.
//
// Forward and input gradient are one thing here: every element of the tensor written ("to") is a
// sum over taps of weight times an element of the tensor read ("from"). Only the index rule
// differs, and `Axis` holds it. The weight gradient reads through the forward rule.
//
// A *lane* is one channel of one sample: samples do not differ in geometry, so a vector may hold
// the last channels of one and the first of the next, and only the very last vector has idle lanes.
#pragma once

#include "../workspace.h"
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

// A bare array, not initialised, on the thread's stack of them (workspace.h): std::vector has
// functions that the linker could share between the copies of this file.
template <typename T>
class Array {
 public:
  explicit Array(int64_t size)
      : data_(static_cast<T*>(take(larger(size, 1) * static_cast<int64_t>(sizeof(T))))) {}
  ~Array() { give_back(data_); }
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

// A run of taps that a kernel is built for, at a distance of kStep columns from one result or
// gradient to the next; a single tap is taken at any distance.
template <int Taps, int Step>
struct TapRun {
  static constexpr int kTaps = Taps, kStep = Step;
};

// Calls function(the TapRun of `taps` taps), which Phase::chunk is.
template <typename Function>
inline auto with_tap_run(int taps, int64_t advance, const Function& function) {
  switch (advance == 2 ? 10 + taps : taps) {
    case 2:
      return function(TapRun<2, 1>());
    case 3:
      return function(TapRun<3, 1>());
    case 4:
      return function(TapRun<4, 1>());
    case 5:
      return function(TapRun<5, 1>());
    case 7:
      return function(TapRun<7, 1>());
    case 13:
      return function(TapRun<3, 2>());
    case 15:
      return function(TapRun<5, 2>());
    case 17:
      return function(TapRun<7, 2>());
    default:
      return function(TapRun<1, 1>());
  }
}

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

// How many columns the first-level cache holds, where they lie so far apart that they share few of
// its sets: it has 4 KiB in each of 12 ways (Zen 5). Of others, as many as anyone asks for.
inline int64_t columns_cached(const Shape& s) {
  const int64_t column_bytes = s.channels * storage_bytes(s.dtype);
  const int64_t apart = smaller(column_bytes & -column_bytes, 4096);
  return apart < 256 ? INT32_MAX : 12 * 4096 / apart;
}

// Whether a row's columns are too many for that.
inline bool columns_collide(const Shape& s) {
  return columns_cached(s) <= 48 && s.input[2] > 8 && s.kernel[1] * s.kernel[2] > 1;
}

// The same of the columns that eight results of a row read, where a vector is less than a line, so
// that the next vector wants them again. Measured on Zen 5: with half as many again as fit, packed
// rows are 1.1 to 1.5 times as fast, unless much of them is padding.
inline bool lines_collide(const Shape& s, const Axis& t, const Axis& h, const Axis& w) {
  const int64_t columns = t.span(1) * h.span(1) * w.span(8);
  return VMF_VECTOR_BYTES < 64 && 2 * columns > 3 * columns_cached(s) && 3 * w.from >= 5 * w.kernel;
}

// Whether rows of these bytes an element may be read where they lie: 16-bit ones if that is quick.
constexpr bool readable(int64_t element_bytes) { return kWidens || element_bytes > 2; }

// Whether channels can be spread over the lanes that read them as they are loaded.
template <typename Real>
constexpr bool kSpreads = kPermutes && sizeof(Real) == 4;

// Whether rows can be read where they lie in an activation with the channels of the input: whole
// vectors of lanes lie there, and padding is under taps that the row and sum kernels look at.
inline bool readable_in_place(const Shape& s, const Axis& w, const Columns& columns) {
  const bool spreads = s.dtype == DType::f64 ? kSpreads<double> : kSpreads<float>;
  return s.channels_last && (s.multiplier == 1 || spreads) && readable(storage_bytes(s.dtype)) &&
         s.channels >= VMF_VECTOR_BYTES / arithmetic_bytes(s.dtype) && columns.readable_in_place(w);
}

// The vector of input channels under a vector of output channels, the first of which is `channel`:
// where it begins, and which of them is under which lane.
template <typename Real>
struct Spread {
  Spread(const Shape& s, int64_t channel)
      : first(smaller(channel / s.multiplier, s.channels - kLanes<Real>)), index{} {
    if (s.multiplier == 1) return;
    int64_t at = channel / s.multiplier - first, left = s.multiplier - channel % s.multiplier;
    for (int i = 0; i < kLanes<Real>; ++i) {
      index[i] = at;
      if (--left > 0) continue;
      ++at;
      left = s.multiplier;
    }
  }

  int64_t first;
  IndexVec<Real> index;
};

// Which taps of index `x` of an axis are not padding, and what is under the first of them. Indices
// with the same taps read what is as far apart.
struct TapsInside {
  TapsInside() = default;
  TapsInside(const Axis& axis, int64_t x) {
    for (int64_t k = 0; k < axis.kernel; ++k) {
      const int64_t from = axis.source(x, k);
      if (from < 0) continue;
      if (count++ == 0) {
        begin = k;
        first = from;
      }
      last = k;
    }
  }

  bool same(const TapsInside& other) const {
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

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
