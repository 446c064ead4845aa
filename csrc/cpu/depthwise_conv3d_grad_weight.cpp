// Depthwise convolution, gradients of weight and bias, in one pass over both tensors.
//
// An item sums over some rows and frames of some samples for a group of lanes, and writes its sums
// to its own place in the scratch; `finish` adds the items up in the order of their numbers. Which
// items there are follows from the shape alone, so neither threads nor their order change a bit.
//
// Sums are short: registers hold those of a few rows, these are added up over a frame, frames over
// an item, and `finish` adds the items. A single chain over a million positions would lose digits.
//
// Rows are read where they lie if readable_in_place(); else the frame of the gradient and a ring of
// frames of the input are packed by Readers.
#include <type_traits>

#include "../workspace.h"
#include "depthwise_conv3d.h"
#include "depthwise_conv3d_lanes.h"
#include "depthwise_conv3d_plan.h"
#include "depthwise_conv3d_prefetch.h"
#include "depthwise_conv3d_reader.h"
#include "depthwise_conv3d_sums.h"
#include "depthwise_conv3d_sums_plan.h"
#include "vmf/isa.h"

namespace vmf {
namespace VMF_ISA {
namespace {

template <typename Real>
void add_vectors(const Real* from, int64_t size, Real* to) {
  for (int64_t i = 0; i < size; i += kLanes<Real>) store(to + i, load(to + i) + load(from + i));
}

// Of tensors of T and rows of Held: T where they lie, or packed ones of the arithmetic type.
template <typename T, typename Held>
class Summer {
 public:
  using Real = Arithmetic<T>;

  Summer(const Shape& shape, const SumsPlan& plan, const T* grad, const T* input, Real* scratch)
      : shape_(shape),
        plan_(plan),
        grad_(grad),
        input_(input),
        scratch_(scratch),
        grad_strides_(activation_strides(plan.channels, plan.t.to, plan.h.to, plan.w.to,
                                         shape.channels_last)),
        input_strides_(activation_strides(shape.channels, plan.t.from, plan.h.from, plan.w.from,
                                          shape.channels_last)),
        grad_reader_(grad, grad_strides_, shape.channels_last, plan.w.to, 0, plan.w.to,
                     plan.split.group_lanes() / kCount),
        input_reader_(input, input_strides_, shape.channels_last, plan.w.from, plan.columns.left,
                      plan.columns.width, plan.split.group_lanes() / kCount),
        next_grad_(false, grad, grad_strides_, shape.channels_last, plan.channels, plan.w.to,
                   plan.split.group_lanes()),
        next_input_(false, input, input_strides_, shape.channels_last, shape.channels, plan.w.from,
                    plan.split.group_lanes()),
        frames_(plan.t.span(1)),
        row_size_(plan.columns.width * kCount),
        frame_size_(plan.h.span(plan.split.h_size()) * row_size_),
        vectors_(plan.split.group_lanes() / kCount),
        runs_(plan.split.h_size()),
        kernel_rows_(shape.kernel[0] * shape.kernel[1] * plan.split.h_size()),
        kernels_(find_sum_kernels<Held>(plan.taps, plan.columns.phase[0].advance,
                                        plan.in_place && shape.multiplier > 1)) {
    const int64_t count = plan.in_place ? 0 : plan.split.group_lanes() / kCount;
    ring_size_ = frames_ * frame_size_;
    part_size_ = ring_size_ + plan.split.h_size() * plan.w.to * kCount;
    const int64_t sums = vector_sums<Real>(shape);
    parts_ = static_cast<Real*>(
        workspace((count * part_size_ + kTogether * sums) * static_cast<int64_t>(sizeof(Real))));
    frame_sums_ = parts_ + count * part_size_;
  }

  // Item `index`, and if it is not `last`, the next one comes next.
  void run(int64_t index, bool last) {
    Real* sums = scratch_ + index * item_sums(shape_, plan_);
    fill_zero(sums, item_sums(shape_, plan_) / kCount);
    const Split& split = plan_.split;
    const Range bunches = split.bunches(index);
    for (int64_t bunch = bunches.begin; bunch < bunches.end; ++bunch) {
      Item next{};
      if (bunch + 1 < bunches.end) {
        next = split.item(index, bunch + 1);
      } else if (!last) {
        next = split.item(index + 1, split.bunches(index + 1).begin);
      }
      add(split.item(index, bunch), next, sums);
    }
  }

 private:
  static constexpr int kCount = kLanes<Real>;
  // Vectors of rows read in place that take turns at each run, while the cache lines that they
  // share are in the first-level cache.
  static constexpr int kTogether =
      static_cast<int>(larger(1, 256 / (kCount * static_cast<int64_t>(sizeof(Held)))));

  // Some rows of gradients, and the kernel rows that are not over padding there.
  struct Run {
    Range rows, kernel_rows;
  };

  void add(const Item& item, const Item& next_item, Real* sums) {
    if (!plan_.in_place) {
      grad_reader_.attach(item.lanes, plan_.channels, 1, 1);
      input_reader_.attach(item.lanes, plan_.channels, 1, shape_.multiplier);
    }
    attach_prefetch(item.lanes);
    const int64_t vectors = ceil_div(item.lanes.size(), kCount);
    for (int64_t i = 0; i < vectors; ++i) vectors_[i] = vector_at(i, item);
    const Range held = plan_.h.sources(item.h);
    const int64_t size = vector_sums<Real>(shape_), together = plan_.in_place ? kTogether : 1;
    int64_t next = 0;  // frame to be read
    for (int64_t t = item.t.begin; t < item.t.end; ++t) {
      if (!plan_.in_place) {
        const Range frames = plan_.t.sources({t, t + 1});
        for (int64_t f = larger(next, frames.begin); f < frames.end; ++f) {
          input_reader_.read(f, held, parts_ + f % frames_ * frame_size_, part_size_);
        }
        next = larger(next, frames.end);
        grad_reader_.read(t, item.h, parts_ + ring_size_, part_size_);
      }
      list_runs(t, item.h, held);
      prefetch(t, item, next_item, vectors * calls_);
      for (int64_t i = 0; i < vectors; i += together) {
        add_frame(i, smaller(together, vectors - i), item.h, t, sums + i * size);
      }
    }
  }

  void attach_prefetch(Range lanes) {
    next_grad_.attach(lanes, 1, 1);
    next_input_.attach(lanes, 1, shape_.multiplier);
  }

  // Starts to fetch what the next frame of the gradient will want, of `item` or of the one after
  // it, if there is one.
  void prefetch(int64_t t, const Item& item, const Item& next, int64_t calls) {
    next_grad_.stop();
    next_input_.stop();
    if (!plan_.fetch_ahead) return;
    if (t + 1 < item.t.end) {
      const int64_t now = plan_.t.sources({t, t + 1}).end,
                    then = plan_.t.sources({t + 1, t + 2}).end;
      next_grad_.start(t + 1, item.h, calls);
      if (then > now) next_input_.start(then - 1, plan_.h.sources(item.h), calls);
    } else if (next.lanes.size() > 0) {
      attach_prefetch(next.lanes);
      next_grad_.start(next.t.begin, next.h, calls);
      next_input_.start(plan_.t.sources(next.t).begin, plan_.h.sources(next.h), calls);
    }
  }

  // The rows of any vector, but for what depends on runs and taps.
  SumRows any_rows() const {
    SumRows s;
    s.advance = plan_.columns.phase[0].advance;
    s.columns = plan_.w.to;
    if (plan_.in_place) {
      s.width = plan_.w.from;
      s.input_column = input_strides_.w;
      s.input_row = plan_.h.stride * input_strides_.h;
      s.grad_row = grad_strides_.h;
      s.grad_column = grad_strides_.w;
    } else {
      s.width = plan_.columns.width;
      s.input_column = s.grad_column = kCount;
      s.input_row = plan_.h.stride * row_size_;
      s.grad_row = plan_.w.to * kCount;
    }
    return s;
  }

  // Vector `i` of an item, in any frame.
  SumVector<Held> vector_at(int64_t i, const Item& item) const {
    if constexpr (std::is_same_v<Held, T>) {
      if (plan_.in_place) {
        const int64_t lane = plan_.first_lane(item.lanes, i, kCount);
        const int64_t sample = lane / plan_.channels, channel = lane % plan_.channels;
        const Spread<Real> spread(shape_, channel);
        return {
            input_ + sample * input_strides_.n + spread.first,
            grad_ + sample * grad_strides_.n + channel + item.h.begin * grad_strides_.h,
            nullptr,
            spread.index,
        };
      }
    }
    if constexpr (std::is_same_v<Held, Real>) {
      const Real* part = parts_ + i * part_size_;
      return {part, part + ring_size_, nullptr, IndexVec<Real>{}};
    }
    __builtin_unreachable();
  }

  // Of frame `t`: its runs, and the input rows under their kernel rows.
  void list_runs(int64_t t, Range h, Range held) {
    const TapsInside taps(plan_.t, t);
    if (plan_.in_place) {
      frame_ = taps.first * input_strides_.t;
      if (taps.same(listed_) && h == listed_h_) return;
      listed_ = taps;
      listed_h_ = h;
    }
    const int64_t most = larger(1, kPositionsSummed / plan_.w.to);
    const Phase& phase = plan_.columns.phase[0];
    const int64_t tap_runs = (phase.taps_end - phase.taps_begin) / plan_.taps;
    int64_t count = 0;
    run_count_ = calls_ = 0;
    for (int64_t begin = h.begin, end; begin < h.end; begin = end) {
      const TapsInside rows(plan_.h, begin);
      for (end = begin + 1; end < smaller(begin + most, h.end); ++end) {
        if (!rows.same(TapsInside(plan_.h, end))) break;
      }
      const int64_t first = count;
      for (int64_t kt = 0; kt < shape_.kernel[0]; ++kt) {
        const int64_t from_t = plan_.t.source(t, kt);
        for (int64_t kh = 0; kh < shape_.kernel[1]; ++kh) {
          const int64_t from_h = plan_.h.source(begin, kh);
          if (from_t < 0 || from_h < 0) continue;
          kernel_rows_[count++] = {
              plan_.in_place ? (from_t - taps.first) * input_strides_.t + from_h * input_strides_.h
                             : from_t % frames_ * frame_size_ + (from_h - held.begin) * row_size_,
              (kt * shape_.kernel[1] + kh) * shape_.kernel[2] * kCount};
        }
      }
      runs_[run_count_++] = {{begin - h.begin, end - h.begin}, {first, count}};
      if (count > first)
        calls_ += tap_runs * ceil_div(count - first, rows_at_a_time(count - first));
    }
  }

  // `count` vectors from `i` on, in rows `h` of frame `t`.
  void add_frame(int64_t i, int64_t count, Range h, int64_t t, Real* sums) {
    const int64_t size = vector_sums<Real>(shape_);
    const bool few = h.size() * plan_.w.to <= kPositionsSummed;
    Real* to = few ? sums : frame_sums_;
    SumVector<Held> vectors[kTogether];
    for (int64_t v = 0; v < count; ++v) {
      vectors[v] = vectors_[i + v];
      if (plan_.in_place) vectors[v].input += frame_, vectors[v].grads += t * grad_strides_.t;
      vectors[v].sums = to + v * size;
    }
    if (!few) fill_zero(frame_sums_, count * size / kCount);
    for (int64_t r = 0; r < run_count_; ++r) add_run(runs_[r], vectors, count);
    if (!few) add_vectors(frame_sums_, count * size, sums);
  }

  void add_run(const Run& run, const SumVector<Held>* vectors, int64_t count) {
    const Columns& columns = plan_.columns;
    const Phase& phase = columns.phase[0];
    SumRows s = any_rows();
    s.grads = run.rows.begin * s.grad_row;
    s.rows = run.rows.size();
    const int64_t step = rows_at_a_time(run.kernel_rows.size());
    for (int64_t k = phase.taps_begin; k < phase.taps_end; k += plan_.taps) {
      s.left = (plan_.in_place ? 0 : columns.left) + columns.offset[k];
      s.sums = columns.tap[k] * kCount;
      for (int64_t row = run.kernel_rows.begin; row < run.kernel_rows.end; row += step) {
        const auto kernel = kernels_.kernel[smaller(step, run.kernel_rows.end - row)];
        for (int64_t v = 0; v < count; ++v) {
          if (plan_.fetch_ahead) {
            next_grad_.advance();
            next_input_.advance();
          }
          kernel(s, vectors[v], &kernel_rows_[row]);
        }
      }
    }
    const int64_t bias = volume(shape_.kernel) * kCount;
    for (int64_t v = 0; v < count; ++v) add_bias(s, vectors[v].grads, vectors[v].sums + bias);
  }

  // As many of `count` kernel rows as the kernels can take, or nearly as many each time.
  int64_t rows_at_a_time(int64_t count) const {
    return ceil_div(count, larger(1, ceil_div(count, kernels_.most)));
  }

  // In several chains of additions, since one would be waited for.
  void add_bias(const SumRows& rows, const Held* grads, Real* sum) {
    constexpr int kChains = 4;
    Vec<Real> total[kChains] = {};
    for (int64_t row = 0; row < rows.rows; ++row) {
      const Held* from = grads + rows.grads + row * rows.grad_row;
      int64_t w = 0;
      for (; w + kChains <= rows.columns; w += kChains) {
        for (int i = 0; i < kChains; ++i, from += rows.grad_column) total[i] += load(from);
      }
      for (; w < rows.columns; ++w, from += rows.grad_column) total[0] += load(from);
    }
    store(sum, load(sum) + ((total[0] + total[1]) + (total[2] + total[3])));
  }

  const Shape& shape_;
  const SumsPlan& plan_;
  const T *grad_, *input_;
  Real* scratch_;
  Strides grad_strides_, input_strides_;
  Reader<T> grad_reader_, input_reader_;
  Prefetcher next_grad_, next_input_;
  int64_t frames_, row_size_, frame_size_;  // of the ring
  Array<SumVector<Held>> vectors_;          // of the item at hand
  Array<Run> runs_;                         // of the frame at hand
  Array<KernelRow> kernel_rows_;
  int64_t run_count_ = 0, calls_ = 0;  // of a kernel, for each vector
  SumKernels<Held> kernels_;
  TapsInside listed_;              // in place: of the frame whose rows are listed, ...
  Range listed_h_ = {-1, -1};      // ... and which rows it is of
  int64_t frame_ = 0;              // where the first frame begins that the frame at hand reads
  int64_t ring_size_, part_size_;  // what is held for a vector:
  Real* parts_;  // [frame % frames_][row][column][lane], and [row][column][lane] of the gradient
  Real* frame_sums_;  // of kTogether vectors
};

// Adds up the items and turns the sums of each lane into rows of the weight.
template <typename T>
void finish(const Shape& shape, const void* scratch, void* grad_weight, void* grad_bias) {
  using Real = Arithmetic<T>;
  constexpr int count = kLanes<Real>;
  const SumsPlan plan(shape);
  const Split& split = plan.split;
  const int64_t taps = volume(shape.kernel), size = vector_sums<Real>(shape);
  const int64_t row_size = ceil_div(taps + 1, count) * count;  // of one channel's total
  Real* total = static_cast<Real*>(workspace((plan.channels * row_size + size) * sizeof(Real)));
  Real* vector = total + plan.channels * row_size;
  fill_zero(total, plan.channels * row_size / count);
  const int64_t group = split.group_lanes() / count;  // in vectors
  for (int64_t i = 0; i < split.groups() * group; ++i) {
    const Range range = split.lanes(0, i / group);
    const int64_t begin = range.begin + i % group * count;
    if (begin >= range.end) continue;
    const Lanes<Real> lanes(plan.first_lane(range, i % group, count), range.end, plan.channels);
    const int again = static_cast<int>(begin - plan.first_lane(range, i % group, count));
    fill_zero(vector, size / count);
    for (int64_t bunch = 0; bunch < split.items(); bunch += split.items_per_bunch()) {
      for (int64_t part = 0; part < split.parts(); ++part) {
        const Real* sums = static_cast<const Real*>(scratch) + i % group * size +
                           (bunch + split.index(i / group, part)) * item_sums(shape, plan);
        add_vectors(sums, size, vector);
      }
    }
    for (int64_t k = 0; k <= taps; k += count) {
      Vec<Real> square[count];
      for (int64_t j = 0; j < count; ++j) {
        square[j] = k + j <= taps ? load(vector + (k + j) * count) : Vec<Real>{};
      }
      transpose<Real>(square);
      for (int lane = again; lane < lanes.count; ++lane) {
        Real* to = total + lanes.channel[lane] * row_size + k;
        store(to, load(to) + square[lane]);
      }
    }
  }
  for (int64_t c = 0; c < plan.channels; ++c) {
    const Real* from = total + c * row_size;
    for (int64_t k = 0; k < taps && grad_weight != nullptr; k += count) {
      store_some(static_cast<T*>(grad_weight) + c * taps + k, load(from + k), taps - k);
    }
    if (grad_bias != nullptr) {
      store_some(static_cast<T*>(grad_bias) + c, splat(from[taps]), 1);
    }
  }
}

int64_t items(const Shape& shape) { return SumsPlan(shape).split.items(); }

int64_t scratch_bytes(const Shape& shape) {
  const SumsPlan plan(shape);
  return plan.split.items() * item_sums(shape, plan) * arithmetic_bytes(shape.dtype);
}

void run(const Shape& shape, const void* grad, const void* input, void* scratch, int64_t begin,
         int64_t end) {
  if (begin >= end) return;
  const SumsPlan plan(shape);
  with_rows(shape.dtype, plan.in_place, [&](auto storage, auto held) {
    using T = decltype(storage);
    Summer<T, decltype(held)> summer(shape, plan, static_cast<const T*>(grad),
                                     static_cast<const T*>(input),
                                     static_cast<Arithmetic<T>*>(scratch));
    for (int64_t item = begin; item < end; ++item) summer.run(item, item + 1 == end);
  });
}

void finish_any(const Shape& shape, const void* scratch, void* grad_weight, void* grad_bias) {
  with_storage(shape.dtype, [&](auto storage) {
    finish<decltype(storage)>(shape, scratch, grad_weight, grad_bias);
  });
}

}  // namespace

extern const DepthwiseConv3dGradWeightKernels depthwise_conv3d_grad_weight_kernels = {
    items, scratch_bytes, run, finish_any};

}  // namespace VMF_ISA
}  // namespace vmf
