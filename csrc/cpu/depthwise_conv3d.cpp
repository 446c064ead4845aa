// Depthwise convolution, forward and input gradient: each element written gathers what it needs, so
// no two items write the same one.
//
// An item is a block of lanes, some rows and some frames. It holds the frames read that the frame
// being written needs as a ring over T, packed by Reader: each is read from memory once.
#include "depthwise_conv3d.h"

#include "../workspace.h"
#include "depthwise_conv3d_lanes.h"
#include "depthwise_conv3d_plan.h"
#include "depthwise_conv3d_prefetch.h"
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
        repeat(transposed ? s.multiplier : 1),
        share(transposed ? 1 : s.multiplier) {
    const int64_t column_bytes = kBlock * (s.dtype == DType::f64 ? 8 : 4);
    const int64_t work = s.batch * s.channels * s.multiplier * volume(s.output) * volume(s.kernel);
    split = Split(w.to > 0 ? s.batch : 0, channels, s.channels_last, t, h,
                  repeat * t.span(1) * columns.width * column_bytes, work);
  }

  Axis t, h, w;
  Columns columns;
  int64_t channels;  // written
  int64_t repeat;    // channels read for one written: input gradient with a multiplier
  int64_t share;     // channels written that read the same one: forward with a multiplier
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
        weight_(weight),
        bias_(bias),
        to_(to),
        from_strides_(activation_strides(plan.channels * plan.repeat / plan.share, plan.t.from,
                                         plan.h.from, plan.w.from, shape.channels_last)),
        to_strides_(activation_strides(plan.channels, plan.t.to, plan.h.to, plan.w.to,
                                       shape.channels_last)),
        frames_(plan.t.span(1)),
        row_size_(plan.columns.width * kCount),
        frame_size_(plan.h.span(plan.split.h_size()) * row_size_),
        chunk_(shape.channels_last ? smaller(kChunk, plan.split.h_size()) : plan.split.h_size()),
        reader_(from, from_strides_, shape.channels_last, plan.w.from, plan.columns.left,
                plan.columns.width, plan.split.group_size() * kParts),
        parts_(plan.split.group_size() * kParts),
        kernels_(plan.columns.phases),
        lists_(chunk_ * plan.columns.phases),
        taps_(chunk_ * plan.repeat * volume(shape.kernel)),
        next_from_(from, from_strides_, shape.channels_last,
                   plan.channels * plan.repeat / plan.share, plan.w.from,
                   plan.split.group_size() * kBlock),
        next_to_(to, to_strides_, shape.channels_last, plan.channels, plan.w.to,
                 plan.split.group_size() * kBlock) {
    const int64_t ring = plan.repeat * frames_ * frame_size_;
    const int64_t weights =
        plan.repeat * shape.kernel[0] * shape.kernel[1] * plan.columns.taps * kCount;
    const int64_t rows = (shape.channels_last ? 1 : plan.split.h_size()) * plan.w.to * kCount;
    const int64_t count = plan.split.group_size() * kParts;
    part_size_ = ring + weights + kCount;
    memory_ = static_cast<Real*>(workspace((count * part_size_ + rows + kCount) * sizeof(Real)));
    for (int64_t i = 0; i < count; ++i) {
      parts_[i].ring = memory_ + i * part_size_;
      parts_[i].weight = parts_[i].ring + ring;
      parts_[i].bias = parts_[i].weight + weights;
    }
    rows_ = memory_ + count * part_size_;
    for (int64_t p = 0; p < plan.columns.phases; ++p) {
      const Phase& phase = plan.columns.phase[p];
      kernels_[p] = find_row_kernel<Real>(phase.chunk, phase.advance, phase.count);
    }
  }

  void run(int64_t index) {
    const Item item = plan_.split.item(index, plan_.split.bunches(index).begin);
    if (item.lanes.begin != first_lane_) start(item.lanes);
    const Range held = plan_.h.sources(item.h);
    int64_t next = 0;  // frame to be read
    for (int64_t t = item.t.begin; t < item.t.end; ++t) {
      const Range frames = plan_.t.sources({t, t + 1});
      for (int64_t f = larger(next, frames.begin); f < frames.end; ++f) {
        for (int64_t r = 0; r < plan_.repeat; ++r) {
          reader_.read(r, f, held, memory_ + frame(r, f), part_size_);
        }
      }
      next = larger(next, frames.end);
      prefetch(t, item, held);
      for (int64_t h = item.h.begin; h < item.h.end; h += chunk_) {
        prefetch_written(t, h, item);
        write(t, {h, smaller(h + chunk_, item.h.end)}, held);
      }
    }
  }

 private:
  static constexpr int kCount = kLanes<Real>;
  static constexpr int kParts = static_cast<int>(kBlock) / kCount;
  // Rows written for one vector of lanes before the next one's turn: what they read stays in the
  // first-level cache.
  static constexpr int64_t kChunk = 4;

  // The lanes of one vector and what is held for them.
  struct Part {
    Real* ring;    // [repeat][frame % frames_][row][column][lane]
    Real* weight;  // [repeat][kT][kH][Columns::tap][lane]
    Real* bias;    // [lane]
    Writer<T> writer;
  };

  // The taps of a row that are not padding.
  struct List {
    int64_t begin, count;  // in taps_; count for each repeat
  };

  void start(Range lanes_range) {
    first_lane_ = lanes_range.begin;
    count_ = ceil_div(lanes_range.size(), kCount);
    reader_.attach(lanes_range, plan_.channels, plan_.repeat, plan_.share);
    next_from_.attach(lanes_range, plan_.repeat, plan_.share);
    next_to_.attach(lanes_range, 1, 1);
    const int64_t weights = shape_.kernel[0] * shape_.kernel[1] * plan_.columns.taps * kCount;
    for (int64_t i = 0; i < count_; ++i) {
      Part& part = parts_[i];
      const Lanes<Real> lanes(lanes_range.begin + i * kCount, lanes_range.end, plan_.channels);
      part.writer.attach(to_, to_strides_, shape_.channels_last, lanes);
      for (int64_t r = 0; r < plan_.repeat; ++r) {
        read_weights(weight_, shape_, plan_.columns, lanes, plan_.repeat, r,
                     part.weight + r * weights);
      }
      const T* bias[kCount];
      for (int lane = 0; lane < kCount; ++lane) {
        const bool any = bias_ != nullptr && lane < lanes.count;
        bias[lane] = any ? bias_ + lanes.channel[lane] : nullptr;
      }
      gather_rows(bias, 1, [&](int64_t) { return part.bias; });
    }
  }

  // Starts to fetch the frame that the next one written will want.
  void prefetch(int64_t t, const Item& item, Range held) {
    next_from_.stop();
    if (t + 1 >= item.t.end) return;
    const int64_t now = plan_.t.sources({t, t + 1}).end, then = plan_.t.sources({t + 1, t + 2}).end;
    if (then > now) next_from_.start(then - 1, held, item.h.size() * count_);
  }

  // Starts to fetch the rows that are written after those from `h` on.
  void prefetch_written(int64_t t, int64_t h, const Item& item) {
    h += chunk_;
    if (h >= item.h.end) {
      h = item.h.begin;
      ++t;
    }
    next_to_.stop();
    if (t < item.t.end) next_to_.start(t, {h, smaller(h + chunk_, item.h.end)}, chunk_ * count_);
  }

  // Offset of a frame in a ring.
  int64_t frame(int64_t repeat, int64_t t) const {
    return (repeat * frames_ + t % frames_) * frame_size_;
  }

  void write(int64_t t, Range rows, Range held) {
    list_taps(t, rows, held);
    for (int64_t i = 0; i < count_; ++i) {
      const Part& part = parts_[i];
      const List* list = &lists_[0];
      Real* buffer = rows_;
      for (int64_t h = rows.begin; h < rows.end; ++h) {
        next_from_.advance();
        next_to_.template advance<true>();
        Real* direct = part.writer.direct(t, h);
        Real* row = direct == nullptr ? buffer : direct;
        const int64_t step = direct == nullptr ? kCount : to_strides_.w;
        for (int64_t p = 0; p < plan_.columns.phases; ++p, ++list) {
          const Phase& phase = plan_.columns.phase[p];
          kernels_[p](&taps_[list->begin], plan_.repeat, list->count, phase.advance, part.ring,
                      part.weight, part.bias, row + phase.first * step, phase.step * step,
                      phase.count);
        }
        if (!shape_.channels_last) {
          buffer += plan_.w.to * kCount;
        } else if (direct == nullptr) {
          part.writer.write(buffer, t, h, plan_.w.to);
        }
      }
      if (!shape_.channels_last) part.writer.write(rows_, t, rows.begin, rows.size() * plan_.w.to);
    }
  }

  void list_taps(int64_t t, Range rows, Range held) {
    int64_t count = 0, list = 0;
    for (int64_t h = rows.begin; h < rows.end; ++h) {
      for (int64_t p = 0; p < plan_.columns.phases; ++p) {
        const int64_t begin = count;
        for (int64_t r = 0; r < plan_.repeat; ++r) {
          count = list_taps(plan_.columns.phase[p], r, t, h, held, count);
        }
        lists_[list++] = {begin, (count - begin) / plan_.repeat};
      }
    }
  }

  int64_t list_taps(const Phase& phase, int64_t repeat, int64_t t, int64_t h, Range held,
                    int64_t count) {
    const Columns& columns = plan_.columns;
    for (int64_t kt = 0; kt < shape_.kernel[0]; ++kt) {
      const int64_t from_t = plan_.t.source(t, kt);
      if (from_t < 0) continue;
      for (int64_t kh = 0; kh < shape_.kernel[1]; ++kh) {
        const int64_t from_h = plan_.h.source(h, kh);
        if (from_h < 0) continue;
        const int64_t row = frame(repeat, from_t) + (from_h - held.begin) * row_size_;
        const int64_t first =
            ((repeat * shape_.kernel[0] + kt) * shape_.kernel[1] + kh) * columns.taps;
        for (int64_t k = phase.taps_begin; k < phase.taps_end; k += phase.chunk) {
          taps_[count++] = {row + (columns.left + columns.offset[k]) * kCount,
                            (first + k) * kCount};
        }
      }
    }
    return count;
  }

  const Shape& shape_;
  const GatherPlan& plan_;
  const T *weight_, *bias_;
  T* to_;
  Strides from_strides_, to_strides_;
  int64_t frames_, row_size_, frame_size_;  // of the rings
  int64_t chunk_;                           // rows written together
  int64_t first_lane_ = -1, count_ = 0;     // the lanes at hand, and in how many vectors
  Reader<T> reader_;
  Array<Part> parts_;
  Array<RowKernel<Real>> kernels_;  // [phase]
  Array<List> lists_;               // [row][phase]
  Array<RowTap> taps_;
  Prefetcher<T> next_from_, next_to_;
  Real* memory_;  // of parts_, part_size_ each; the ring comes first
  int64_t part_size_;
  Real* rows_;  // written before they go to the tensor, where they cannot go there directly
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
