// Depthwise convolution, forward and input gradient: each element written gathers what it needs, so
// no two items write the same one.
//
// An item is a group of lanes, some rows and some frames. Rows are read where they lie if
// readable_in_place(); else the frames that the frame being written needs are held as a ring
// over T, packed by Reader, and each is read from memory once.
#include "depthwise_conv3d.h"

#include <type_traits>

#include "../workspace.h"
#include "depthwise_conv3d_epilogue.h"
#include "depthwise_conv3d_lanes.h"
#include "depthwise_conv3d_plan.h"
#include "depthwise_conv3d_prefetch.h"
#include "depthwise_conv3d_reader.h"
#include "depthwise_conv3d_row.h"
#include "depthwise_conv3d_split.h"
#include "stream.h"
#include "vmf/isa.h"

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
        share(transposed ? 1 : s.multiplier),
        in_place(readable_in_place(s, w, columns) && repeat == 1 && !columns_collide(s) &&
                 !lines_collide(s, t, h, w) && (share == 1 || s.kernel[1] * s.kernel[2] > 1)),
        along_t(in_place && s.kernel[1] * s.kernel[2] == 1),
        fetch_ahead(activation_bytes(s) >= prefetch_pays_from()),
        streams(in_place && activation_bytes(s) >= streaming_pays_from() &&
                channels * storage_bytes(s.dtype) % kStreamBytes == 0) {
    const int64_t element = in_place ? storage_bytes(s.dtype) : arithmetic_bytes(s.dtype);
    const int64_t column_bytes = ceil_div(kBlock, in_place ? share : 1) * element;
    split = Split(w.to > 0 ? s.batch : 0, channels, s.channels_last, t, h,
                  repeat * t.span(1) * columns.width * column_bytes, repeat, work(s), in_place);
  }

  Axis t, h, w;
  Columns columns;
  int64_t channels;  // written
  int64_t repeat;    // channels read for one written: input gradient with a multiplier
  int64_t share;     // channels written that read the same one: forward with a multiplier
  bool in_place;     // rows are read where they lie
  bool along_t;      // ... and columns share nothing: the kernel is one tap high and wide
  bool fetch_ahead;  // memory is asked for: the next frame, or along T what comes next in it
  bool streams;      // results may be stored around the caches
  Split split;
};

// Of tensors of T and rows of Held: T where they lie, or packed ones of the arithmetic type.
template <typename T, typename Held>
class Gatherer {
 public:
  using Real = Arithmetic<T>;

  Gatherer(const Shape& shape, const GatherPlan& plan, const T* from, const T* weight,
           const DepthwiseConv3dEpilogue& epilogue, T* to)
      : shape_(shape),
        plan_(plan),
        from_(from),
        weight_(weight),
        bias_(static_cast<const T*>(epilogue.bias)),
        to_(to),
        from_strides_(activation_strides(plan.channels * plan.repeat / plan.share, plan.t.from,
                                         plan.h.from, plan.w.from, shape.channels_last)),
        to_strides_(activation_strides(plan.channels, plan.t.to, plan.h.to, plan.w.to,
                                       shape.channels_last)),
        frames_(plan.t.span(1)),
        row_size_(plan.columns.width * kCount),
        frame_size_(plan.h.span(plan.split.h_size()) * row_size_),
        reader_(from, from_strides_, shape.channels_last, plan.w.from, plan.columns.left,
                plan.columns.width, plan.split.group_lanes() / kCount),
        vectors_(plan.split.group_lanes() / kCount),
        writers_(plan.split.group_lanes() / kCount),
        epilogue_(epilogue, to, to_strides_, shape.channels_last, plan.channels, plan.w.to,
                  plan.split.group_lanes() / kCount),
        kernels_(plan.columns.phases),
        rows_(plan.split.h_size() * plan.columns.phases),
        taps_(plan.split.h_size() * plan.repeat * volume(shape.kernel)),
        next_from_(false, from, from_strides_, shape.channels_last,
                   plan.channels * plan.repeat / plan.share, plan.w.from, plan.split.group_lanes()),
        next_to_(true, to, to_strides_, shape.channels_last, plan.channels, plan.w.to,
                 plan.split.group_lanes()) {
    const int64_t count = plan.split.group_lanes() / kCount;
    const int64_t ring = plan.in_place ? 0 : plan.repeat * frames_ * frame_size_;
    weights_size_ = shape.kernel[0] * shape.kernel[1] * plan.columns.taps * kCount;
    part_size_ = ring + plan.repeat * weights_size_ + kCount;
    const int64_t buffer = plan.split.h_size() * plan.w.to * kCount + kCount;
    const int64_t buffers = epilogue_.needs_buffer() ? 2 : 1;
    parts_ = static_cast<Real*>(
        workspace((count * part_size_ + buffers * buffer) * static_cast<int64_t>(sizeof(Real))));
    buffer_ = parts_ + count * part_size_;
    streams_ = kStreams<T> && plan.streams && !epilogue_.any() &&
               reinterpret_cast<uintptr_t>(to) % kStreamBytes == 0;
    residual_buffer_ = buffer_ + (buffers - 1) * buffer;
    for (int64_t p = 0; p < plan.columns.phases; ++p) {
      const Phase& phase = plan.columns.phase[p];
      kernels_[p] = RowKernels<Held>(phase.chunk, phase.advance, phase.count,
                                     plan.in_place && plan.share > 1, streams_, plan.fetch_ahead);
      tiles_ += kernels_[p].tiles;
    }
  }

  // Item `index`, and if it is not `last`, the next one comes next.
  void run(int64_t index, bool last) {
    const Item item = item_at(index), next_item = last ? Item() : item_at(index + 1);
    if (item.lanes.begin != first_lane_) start(item.lanes);
    const Range held = plan_.h.sources(item.h);
    int64_t next = 0;  // frame to be read
    for (int64_t t = item.t.begin; t < item.t.end; ++t) {
      if (!plan_.in_place) {
        const Range frames = plan_.t.sources({t, t + 1});
        for (int64_t f = larger(next, frames.begin); f < frames.end; ++f) {
          reader_.read(f, held, parts_ + frame(0, f), part_size_, frames_ * frame_size_);
        }
        next = larger(next, frames.end);
      }
      if (!plan_.fetch_ahead || plan_.along_t) {
        // Both stay stopped.
      } else if (t + 1 < item.t.end) {
        prefetch(t + 1, item, t, item);
      } else if (!last && next_item.lanes.begin == item.lanes.begin) {
        prefetch(next_item.t.begin, next_item, t, item);
      } else {
        next_from_.stop();
        next_to_.stop();
      }
      write(t, item.h, held);
    }
    if (streams_) finish_streams();
  }

 private:
  static constexpr int kCount = kLanes<Real>;

  // What is held for a vector of lanes: the ring as [repeat][frame % frames_][row][column][lane],
  // the weights as [repeat][kT][kH][Columns::tap][lane], the bias as [lane].
  void start(Range range) {
    first_lane_ = range.begin;
    count_ = ceil_div(range.size(), kCount);
    if (!plan_.in_place) reader_.attach(range, plan_.channels, plan_.repeat, plan_.share);
    next_from_.attach(range, plan_.repeat, plan_.share);
    next_to_.attach(range, 1, 1);
    for (int64_t i = 0; i < count_; ++i) {
      int64_t first = range.begin + i * kCount;
      // No vector reaches beyond the group: the last one overlaps the one before.
      if (plan_.in_place) first = smaller(first, range.end - kCount);
      const Lanes<Real> lanes(first, range.end, plan_.channels);
      writers_[i].attach(to_, to_strides_, shape_.channels_last, lanes);
      // Lanes that the vector before has written: those of a buffer are written twice, alike.
      const int64_t again = stores_directly() ? range.begin + i * kCount - first : 0;
      epilogue_.attach(i, lanes, static_cast<int>(again));
      Real* const bias = parts_ + (i + 1) * part_size_ - kCount;
      Real* const weight = bias - plan_.repeat * weights_size_;
      vectors_[i] = vector_at(i, lanes, weight, bias);
      for (int64_t r = 0; r < plan_.repeat; ++r) {
        read_weights(weight_, shape_, plan_.columns, lanes, plan_.repeat, r,
                     weight + r * weights_size_);
      }
      const T* biases[kCount];
      for (int lane = 0; lane < kCount; ++lane) {
        const bool any = bias_ != nullptr && lane < lanes.count;
        biases[lane] = any ? bias_ + lanes.channel[lane] : nullptr;
      }
      gather_rows(biases, 1, [&](int64_t) { return bias; });
    }
  }

  // Vector `i`, not yet where its results go.
  RowVector<Held> vector_at(int64_t i, const Lanes<Real>& lanes, const Real* weight,
                            const Real* bias) const {
    if constexpr (std::is_same_v<Held, T>) {
      if (plan_.in_place) {
        const Spread<Real> spread(shape_, lanes.channel[0]);
        const T* const from = from_ + lanes.sample[0] * from_strides_.n + spread.first;
        return {from, weight, bias, nullptr, spread.index};
      }
    }
    if constexpr (std::is_same_v<Held, Real>) {
      return {parts_ + i * part_size_, weight, bias, nullptr, IndexVec<Real>{}};
    }
    __builtin_unreachable();
  }

  // Whether results are stored into the tensor as they are computed, where whole vectors of lanes
  // lie there: else an epilogue or the conversion comes between.
  bool stores_directly() const {
    return sizeof(T) == sizeof(Real) || (std::is_same_v<Held, T> && !epilogue_.any());
  }

  Item item_at(int64_t index) const {
    return plan_.split.item(index, plan_.split.bunches(index).begin);
  }

  // Starts to fetch, while frame `now` of `item` is written, what frame `t` of `next` will want.
  void prefetch(int64_t t, const Item& next, int64_t now, const Item& item) {
    const int64_t calls = item.h.size() * tiles_ * ceil_div(count_, 2);
    const Range frames = plan_.t.sources({t, t + 1});
    Range rows = plan_.h.sources(next.h);
    // Only what is not here yet: a later frame, or lower rows of the same one.
    if (frames.end == plan_.t.sources({now, now + 1}).end || frames.size() == 0) {
      rows.begin = smaller(larger(rows.begin, plan_.h.sources(item.h).end), rows.end);
    }
    next_from_.start(larger(frames.end - 1, 0), rows, calls);
    if (!streams_) next_to_.start(t, next.h, calls);
  }

  // Offset of a frame in a ring.
  int64_t frame(int64_t repeat, int64_t t) const {
    return (repeat * frames_ + t % frames_) * frame_size_;
  }

  void write(int64_t t, Range h, Range held) {
    const TapsInside taps(plan_.t, t);
    frame_ = plan_.in_place ? taps.first * from_strides_.t : 0;
    if (!plan_.in_place || !(taps.same(listed_) && h == listed_h_)) {
      listed_ = taps;
      listed_h_ = h;
      list_taps(t, h, held);
    }
    for (int64_t i = 0; i < count_;) {
      const int64_t begin = i;
      if (stores_directly()) {
        while (i < count_ && (vectors_[i].to = reinterpret_cast<char*>(
                                  writers_[i].direct(t, h.begin))) != nullptr)
          ++i;
      }
      if (i > begin) {
        convolve(begin, i, h.size(), to_strides_.w, to_strides_.h, false);
        epilogue_.finish_in_place(begin, i, &vectors_[0], h.size());
      } else {
        vectors_[i].to = reinterpret_cast<char*>(buffer_);
        convolve(i, i + 1, h.size(), kCount, plan_.w.to * kCount, true);
        epilogue_.finish_buffer(i, buffer_, residual_buffer_, t, h);
        writers_[i].write(buffer_, t, h.begin, h.size() * plan_.w.to);
        ++i;
      }
    }
  }

  void convolve(int64_t begin, int64_t end, int64_t rows, int64_t step, int64_t row_step,
                bool wide) {
    for (int64_t p = 0; p < plan_.columns.phases; ++p) {
      const Phase& phase = plan_.columns.phase[p];
      Rows<Held> job;
      job.vector = &vectors_[begin];
      job.vectors = end - begin;
      // In a tensor, rows and vectors that share cache lines take turns at a few columns; packed
      // rows are read as the runs of memory that they are.
      job.vectors_together = plan_.in_place ? 4 * 64 / VMF_VECTOR_BYTES : 1;
      job.rows_together = plan_.in_place ? rows : 1;
      job.row = &rows_[p * plan_.split.h_size()];
      job.rows = rows;
      job.taps = &taps_[0];
      job.frame = frame_;
      job.chain = chain(phase);
      job.width = plan_.in_place ? plan_.w.from : plan_.columns.width;
      job.column = plan_.in_place ? from_strides_.w : kCount;
      job.advance = phase.advance;
      job.columns = phase.count;
      job.first = phase.first * step;
      job.step = phase.step * step;
      job.row_step = row_step;
      job.wide = wide;
      job.next_from = &next_from_;
      job.next_to = &next_to_;
      if (plan_.along_t) {
        kernels_[p].along_t(job);
      } else {
        kernels_[p].run(job);
      }
    }
  }

  // Runs of taps that are added up in registers: those of one channel read, or of several while
  // these are no more than kTaps, about as many as 3x3x3 has.
  int64_t chain(const Phase& phase) const {
    constexpr int64_t kTaps = 36;
    const int64_t rows = shape_.kernel[0] * shape_.kernel[1];
    const int64_t taps = rows * (phase.taps_end - phase.taps_begin);
    return larger(1, larger(taps, plan_.repeat > 1 ? kTaps : 0) / phase.chunk);
  }

  void list_taps(int64_t t, Range h, Range held) {
    int64_t count = 0;
    for (int64_t p = 0; p < plan_.columns.phases; ++p) {
      RowTaps* row = &rows_[p * plan_.split.h_size()];
      for (int64_t at = h.begin; at < h.end; ++at, ++row) {
        row->begin = count;
        for (int64_t r = 0; r < plan_.repeat; ++r) {
          count = list_taps(plan_.columns.phase[p], r, t, at, held, count);
        }
        row->count = count - row->begin;
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
        const int64_t row = plan_.in_place
                                ? from_t * from_strides_.t - frame_ + from_h * from_strides_.h
                                : frame(repeat, from_t) + (from_h - held.begin) * row_size_;
        const int64_t left = plan_.in_place ? 0 : columns.left;
        const int64_t size = plan_.in_place ? from_strides_.w : kCount;  // of a column
        const int64_t first = (kt * shape_.kernel[1] + kh) * columns.taps;
        for (int64_t k = phase.taps_begin; k < phase.taps_end; k += phase.chunk) {
          const int64_t column = left + columns.offset[k];
          taps_[count++] = {row + column * size, column,
                            repeat * weights_size_ + (first + k) * kCount};
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
  int64_t frames_, row_size_, frame_size_;  // of the rings
  int64_t weights_size_, part_size_;
  int64_t first_lane_ = -1, count_ = 0;  // the lanes at hand, and in how many vectors
  Reader<T> reader_;
  Array<RowVector<Held>> vectors_;
  Array<Writer<T>> writers_;
  Epilogue<T> epilogue_;
  Array<RowKernels<Held>> kernels_;  // [phase]
  int64_t tiles_ = 0;                // of two vectors in a row
  Array<RowTaps> rows_;              // [phase][row]
  Array<RowTap> taps_;
  TapsInside listed_;          // in place: of the frame whose taps are listed, ...
  Range listed_h_ = {-1, -1};  // ... and for which rows
  int64_t frame_ = 0;          // where the first frame begins that the frame at hand reads
  Prefetcher next_from_, next_to_;
  bool streams_;  // results are stored around the caches
  Real* parts_;   // part_size_ for each vector
  Real* buffer_;  // rows written before they go to the tensor, where they cannot go there directly
  Real* residual_buffer_;  // what is added to those
};

int64_t items(const Shape& shape, bool transposed) {
  return GatherPlan(shape, transposed).split.items();
}

void run(const Shape& shape, bool transposed, const void* from, const void* weight,
         const DepthwiseConv3dEpilogue& epilogue, void* to, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const GatherPlan plan(shape, transposed);
  with_rows(shape.dtype, plan.in_place, [&](auto storage, auto held) {
    using T = decltype(storage);
    Gatherer<T, decltype(held)> gatherer(shape, plan, static_cast<const T*>(from),
                                         static_cast<const T*>(weight), epilogue,
                                         static_cast<T*>(to));
    for (int64_t item = begin; item < end; ++item) gatherer.run(item, item + 1 == end);
  });
}

}  // namespace

extern const DepthwiseConv3dKernels depthwise_conv3d_kernels = {items, run};

}  // namespace VMF_ISA
}  // namespace vmf
