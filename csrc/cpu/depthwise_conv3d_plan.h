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

#include "vmf/depthwise_conv3d.h"

namespace vmf {
namespace VMF_ISA {
namespace {

using Shape = DepthwiseConv3dShape;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }  // of a >= 0
inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -ceil_div(-a, b); }
inline int64_t volume(const int64_t size[3]) { return size[0] * size[1] * size[2]; }

// A malloc'd array: std::vector has functions that the linker could share between the copies of
// this file.
template <typename T>
class Array {
 public:
  explicit Array(int64_t size)
      : data_(static_cast<T*>(std::malloc(static_cast<size_t>(larger(size, 1)) * sizeof(T)))) {
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
  // `extra` more columns per phase may be asked for; those read zeros or whatever is in the row.
  Columns(const Axis& axis, int64_t extra = 0)
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
        high = larger(high, at + (f.count + extra - 1) * f.advance + 1);
      }
      f.taps_end = taps;
      f.chunk = chunk_size(f);
    }
    left = -low;
    width = left + high;
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

// An item is `kBlock` lanes, some rows and some frames of the tensor written. What they need from
// the tensor read is held in cache while the item moves along T.
constexpr int64_t kBlock = 16;

struct Item {
  int64_t block;
  Range h, t;
};

struct Split {
  int64_t blocks;
  int64_t run;  // blocks whose items for the same rows and frames follow each other
  int64_t h_size, h_parts;
  int64_t t_size, t_parts;

  int64_t items() const { return blocks * h_parts * t_parts; }

  Item item(int64_t index, const Axis& t, const Axis& h) const {
    const int64_t parts = h_parts * t_parts, first = index / (run * parts) * run;
    const int64_t length = smaller(run, blocks - first), rest = index - first * parts;
    const int64_t part = rest / length, h_part = part / t_parts, t_part = part % t_parts;
    return {first + rest % length,
            {h_part * h_size, smaller((h_part + 1) * h_size, h.to)},
            {t_part * t_size, smaller((t_part + 1) * t_size, t.to)}};
  }

  // The number of the item of `block` and `part` < h_parts * t_parts.
  int64_t index(int64_t block, int64_t part) const {
    const int64_t first = block / run * run, length = smaller(run, blocks - first);
    return first * h_parts * t_parts + part * length + block - first;
  }
};

// `row_bytes` is what a row read takes in cache, `work` the multiply-adds in all.
inline Split choose_split(int64_t blocks, int64_t run, const Axis& t, const Axis& h,
                          int64_t row_bytes, int64_t work) {
  // Held rows should leave room in a 512 KB second-level cache for what is written.
  constexpr int64_t kCache = 256 << 10;
  // Enough items to balance many threads, but none below some ten microseconds.
  constexpr int64_t kItems = 64, kWork = 1 << 19;

  Split s{blocks, run, h.to, 1, t.to, 1};
  if (blocks == 0 || h.to == 0 || t.to == 0) return {0, 1, 1, 1, 1, 1};
  const int64_t frame_bytes = row_bytes * larger(t.span(1), 1);
  while (s.h_size > 1 && h.span(s.h_size) * frame_bytes > kCache) {
    s.h_size = ceil_div(h.to, ++s.h_parts);
  }
  const int64_t wanted = smaller(kItems, work / kWork);
  while (s.items() < wanted) {
    // Split where less is read twice.
    const int64_t t_half = ceil_div(s.t_size, 2), h_half = ceil_div(s.h_size, 2);
    const bool t_cheaper =
        t.span(t_half) * h.span(s.h_size) <= h.span(h_half) * t.span(s.t_size);
    if (s.t_size > 1 && (s.h_size == 1 || t_cheaper)) {
      s.t_size = t_half;
      s.t_parts = ceil_div(t.to, t_half);
    } else if (s.h_size > 1) {
      s.h_size = h_half;
      s.h_parts = ceil_div(h.to, h_half);
    } else {
      break;
    }
  }
  s.h_parts = ceil_div(h.to, s.h_size);
  s.t_parts = ceil_div(t.to, s.t_size);
  return s;
}

}  // namespace
}  // namespace VMF_ISA
}  // namespace vmf
