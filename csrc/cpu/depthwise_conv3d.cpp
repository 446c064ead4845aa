// Depthwise convolution, forward and input gradient: each element written gathers what it needs, so
// no two items write the same one.
//
// An item is a block of lanes, some rows and some frames. It holds the frames read that the frame
// being written needs as a ring over T, packed by Reader: each is read from memory once.
#include "../workspace.h"
#include "depthwise_conv3d.h"
#include "depthwise_conv3d_lanes.h"
#include "depthwise_conv3d_plan.h"
#include "depthwise_conv3d_row.h"

namespace vmf {
namespace VMF_ISA {
namespace {

struct GatherPlan {
  GatherPlan(const Shape& s, bool transposed)
      : t(make_axis(s, 0, transposed)),
        h(make_axis(s, 1, transposed)),
        w(make_axis(s, 2, transposed)),
        columns(w),
        channels(transposed ? s.channels : s.channels * s.multiplier),
        lanes(s.batch * channels),
        repeat(transposed ? s.multiplier : 1),
        share(transposed ? 1 : s.multiplier) {
    const int64_t column_bytes = kBlock * (s.dtype == DType::f64 ? 8 : 4);
    const int64_t work = s.batch * s.channels * s.multiplier * volume(s.output) * volume(s.kernel);
    split = choose_split(w.to > 0 ? ceil_div(lanes, kBlock) : 0,
                         s.channels_last ? ceil_div(channels, kBlock) : 1, t, h,
                         repeat * columns.width * column_bytes, work);
  }

  Axis t, h, w;
  Columns columns;
  int64_t channels, lanes;  // written
  int64_t repeat;           // channels read for one written: input gradient with a multiplier
  int64_t share;            // channels written that read the same one: forward with a multiplier
  Split split;
};

template <typename T>
class Gatherer {
 public:
  using Real = Arithmetic<T>;

  Gatherer(const Shape& shape, const GatherPlan& plan, const T* from, const T* weight,
           const T* bias, T* to)
      : shape_(shape),
        plan_(plan),
        from_(from),
        weight_(weight),
        bias_(bias),
        to_(to),
        from_strides_(activation_strides(plan.channels * plan.repeat / plan.share, plan.t.from,
                                         plan.h.from, plan.w.from, shape.channels_last)),
        to_strides_(activation_strides(plan.channels, plan.t.to, plan.h.to, plan.w.to,
                                       shape.channels_last)),
        frames_(plan.t.span(1)),
        row_size_(plan.columns.width * kCount),
        frame_size_(plan.h.span(plan.split.h_size) * row_size_),
        taps_(plan.repeat * volume(shape.kernel)) {
    const int64_t ring = plan.repeat * frames_ * frame_size_;
    const int64_t weights =
        plan.repeat * shape.kernel[0] * shape.kernel[1] * plan.columns.taps * kCount;
    const int64_t rows = (shape.channels_last ? 1 : plan.split.h_size) * plan.w.to * kCount;
    const int64_t part = ring + weights + kCount;
    Real* memory = static_cast<Real*>(workspace((kParts * part + rows + kCount) * sizeof(Real)));
    for (Part& p : parts_) {
      p.ring = memory;
      p.weight = p.ring + ring;
      p.bias = p.weight + weights;
      memory += part;
    }
    rows_ = memory;
  }

  void run(int64_t index) {
    const Item item = plan_.split.item(index, plan_.t, plan_.h);
    int parts = 0;
    for (; parts < kParts && item.block * kBlock + parts * kCount < plan_.lanes; ++parts) {
      start(parts_[parts], item.block * kBlock + parts * kCount);
    }
    const Range held = plan_.h.sources(item.h);
    int64_t next = 0;  // frame to be read
    for (int64_t t = item.t.begin; t < item.t.end; ++t) {
      const Range frames = plan_.t.sources({t, t + 1});
      for (int i = 0; i < parts; ++i) {
        read(parts_[i], {larger(next, frames.begin), frames.end}, held);
        write(parts_[i], t, item.h, held);
      }
      next = larger(next, frames.end);
    }
  }

 private:
  static constexpr int kCount = kLanes<Real>;
  static constexpr int kParts = static_cast<int>(kBlock) / kCount;

  // The lanes of one vector and what is held for them.
  struct Part {
    Reader<T> reader;
    Writer<T> writer;
    Real* ring;    // [repeat][frame % frames_][row][column][lane]
    Real* weight;  // [repeat][kT][kH][Columns::tap][lane]
    Real* bias;    // [lane]
  };

  void start(Part& part, int64_t first_lane) {
    const Lanes<Real> lanes(first_lane, plan_.lanes, plan_.channels);
    part.reader = Reader<T>(from_, from_strides_, shape_.channels_last, lanes, plan_.repeat,
                            plan_.share);
    part.writer = Writer<T>(to_, to_strides_, lanes, shape_.channels_last);
    const int64_t size = shape_.kernel[0] * shape_.kernel[1] * plan_.columns.taps * kCount;
    for (int64_t i = 0; i < plan_.repeat; ++i) {
      read_weights(weight_, shape_, plan_.columns, lanes, plan_.repeat, i, part.weight + i * size);
    }
    const T* bias[kCount];
    for (int i = 0; i < kCount; ++i) {
      bias[i] = bias_ != nullptr && i < lanes.count ? bias_ + lanes.channel[i] : nullptr;
    }
    gather_rows(bias, 1, [&](int64_t) { return part.bias; });
  }

  Real* frame(const Part& part, int64_t repeat, int64_t t) const {
    return part.ring + (repeat * frames_ + t % frames_) * frame_size_;
  }

  void read(const Part& part, Range frames, Range rows) {
    for (int64_t t = frames.begin; t < frames.end; ++t) {
      for (int64_t i = 0; i < plan_.repeat; ++i) {
        part.reader.read(i, t, rows, plan_.w.from, plan_.columns.left, plan_.columns.width,
                         frame(part, i, t));
      }
    }
  }

  void write(const Part& part, int64_t t, Range rows, Range held) {
    const int64_t width = plan_.w.to;
    Real* row = rows_;
    for (int64_t h = rows.begin; h < rows.end; ++h) {
      Real* direct = part.writer.direct(t, h);
      for (int64_t p = 0; p < plan_.columns.phases; ++p) {
        const Phase& phase = plan_.columns.phase[p];
        const int64_t taps = list_taps(part, phase, t, h, held);
        const int64_t step = direct == nullptr ? kCount : to_strides_.w;
        Real* to = (direct == nullptr ? row : direct) + phase.first * step;
        find_row_kernel<Real>(phase.chunk, phase.advance, phase.count)(
            &taps_[0], plan_.repeat, taps / plan_.repeat, phase.advance, part.bias, to,
            phase.step * step, phase.count);
      }
      if (direct != nullptr) continue;
      if (shape_.channels_last) {
        part.writer.write(row, t, h, width);
      } else {
        row += width * kCount;
      }
    }
    if (!shape_.channels_last) part.writer.write(rows_, t, rows.begin, rows.size() * width);
  }

  // The taps of row (t, h) that are not padding.
  int64_t list_taps(const Part& part, const Phase& phase, int64_t t, int64_t h, Range held) {
    const Columns& columns = plan_.columns;
    int64_t count = 0;
    for (int64_t i = 0; i < plan_.repeat; ++i) {
      for (int64_t kt = 0; kt < shape_.kernel[0]; ++kt) {
        const int64_t from_t = plan_.t.source(t, kt);
        if (from_t < 0) continue;
        const Real* rows = frame(part, i, from_t) + columns.left * kCount;
        for (int64_t kh = 0; kh < shape_.kernel[1]; ++kh) {
          const int64_t from_h = plan_.h.source(h, kh);
          if (from_h < 0) continue;
          const Real* row = rows + (from_h - held.begin) * row_size_;
          const Real* weight =
              part.weight +
              ((i * shape_.kernel[0] + kt) * shape_.kernel[1] + kh) * columns.taps * kCount;
          for (int64_t k = phase.taps_begin; k < phase.taps_end; k += phase.chunk) {
            taps_[count++] = {row + columns.offset[k] * kCount, weight + k * kCount};
          }
        }
      }
    }
    return count;
  }

  const Shape& shape_;
  const GatherPlan& plan_;
  const T *from_, *weight_, *bias_;
  T* to_;
  Strides from_strides_, to_strides_;
  int64_t frames_, row_size_, frame_size_;  // of the ring
  Part parts_[kParts];
  Real* rows_;  // written before they go to the tensor, where they cannot go there directly
  Array<RowTap<Real>> taps_;
};

int64_t items(const Shape& shape, bool transposed) {
  return GatherPlan(shape, transposed).split.items();
}

void run(const Shape& shape, bool transposed, const void* from, const void* weight,
         const void* bias, void* to, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const GatherPlan plan(shape, transposed);
  with_storage(shape.dtype, [&](auto storage) {
    using T = decltype(storage);
    Gatherer<T> gatherer(shape, plan, static_cast<const T*>(from), static_cast<const T*>(weight),
                         static_cast<const T*>(bias), static_cast<T*>(to));
    for (int64_t item = begin; item < end; ++item) gatherer.run(item);
  });
}

}  // namespace

extern const DepthwiseConv3dKernels depthwise_conv3d_kernels = {items, run};

}  // namespace VMF_ISA
}  // namespace vmf
