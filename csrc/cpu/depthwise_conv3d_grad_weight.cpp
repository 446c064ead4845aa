// Depthwise convolution, gradients of weight and bias, in one pass over both tensors.
//
// An item sums over some rows and frames of some samples for a block of lanes, and writes its sums
// to its own place in the scratch; `finish` adds the items up in the order of their numbers. Which
// items there are follows from the shape alone, so neither threads nor their order change a bit.
//
// Sums are short: registers hold those of a few rows, these are added up over a frame, frames over
// an item, and `finish` adds the items. A single chain over a million positions would lose digits.
#include "../workspace.h"
#include "depthwise_conv3d.h"
#include "depthwise_conv3d_lanes.h"
#include "depthwise_conv3d_plan.h"
#include "depthwise_conv3d_prefetch.h"
#include "depthwise_conv3d_sums.h"
#include "vmf/isa.h"

namespace vmf {
namespace VMF_ISA {
namespace {

struct SumsPlan {
  explicit SumsPlan(const Shape& s)
      : t(make_axis(s, 0, false)),
        h(make_axis(s, 1, false)),
        w(make_axis(s, 2, false)),
        plain(w),
        tile(choose_sum_tile(s.kernel[0] * s.kernel[1], w.to > 0 ? plain.phase[0].chunk : 1,
                             larger(w.to, 1))),
        columns(w, tile.tiles * tile.columns - w.to),
        channels(s.channels * s.multiplier),
        split(w.to > 0 ? s.batch : 0, channels, s.channels_last, t, h,
              (t.span(1) * columns.width + tile.tiles * tile.columns) * kBlock *
                  (s.dtype == DType::f64 ? 8 : 4),
              work(s), false, true),
        fetch_ahead(activation_bytes(s) >= prefetch_pays_from()) {}

  Axis t, h, w;
  Columns plain;  // as the row is
  SumTile tile;
  Columns columns;  // with the gradient's row filled up to whole tiles
  int64_t channels;
  Split split;
  bool fetch_ahead;  // the next frames are asked for while these are summed
};

template <typename Real>
void add_vectors(const Real* from, int64_t size, Real* to) {
  for (int64_t i = 0; i < size; i += kLanes<Real>) store(to + i, load(to + i) + load(from + i));
}

// A vector's sums are [tap, then the bias][lane], an item's those of the vectors of a group.
template <typename Real>
int64_t vector_sums(const Shape& s) {
  return (volume(s.kernel) + 1) * kLanes<Real>;
}

int64_t item_sums(const Shape& s, const SumsPlan& plan) {
  return (volume(s.kernel) + 1) * kBlock * plan.split.group_size();
}

template <typename T>
class Summer {
 public:
  using Real = Arithmetic<T>;

  Summer(const Shape& shape, const SumsPlan& plan, const T* grad, const T* input, Real* scratch)
      : shape_(shape),
        plan_(plan),
        scratch_(scratch),
        grad_columns_(plan.tile.tiles * plan.tile.columns),
        grad_(
            grad,
            activation_strides(plan.channels, plan.t.to, plan.h.to, plan.w.to, shape.channels_last),
            shape.channels_last, plan.w.to, 0, grad_columns_, plan.split.group_size() * kParts),
        input_(input,
               activation_strides(shape.channels, plan.t.from, plan.h.from, plan.w.from,
                                  shape.channels_last),
               shape.channels_last, plan.w.from, plan.columns.left, plan.columns.width,
               plan.split.group_size() * kParts),
        next_grad_(
            false, grad,
            activation_strides(plan.channels, plan.t.to, plan.h.to, plan.w.to, shape.channels_last),
            shape.channels_last, plan.channels, plan.w.to, plan.split.group_size() * kBlock),
        next_input_(false, input,
                    activation_strides(shape.channels, plan.t.from, plan.h.from, plan.w.from,
                                       shape.channels_last),
                    shape.channels_last, shape.channels, plan.w.from,
                    plan.split.group_size() * kBlock),
        frames_(plan.t.span(1)),
        row_size_(plan.columns.width * kCount),
        frame_size_(plan.h.span(plan.split.h_size()) * row_size_),
        zeros_(frames_ * frame_size_),
        inputs_(shape.kernel[0] * shape.kernel[1] * plan.split.h_size()),
        any_(shape.kernel[0] * shape.kernel[1]) {
    const int64_t count = plan.split.group_size() * kParts;
    part_size_ = zeros_ + row_size_ + plan.split.h_size() * grad_columns_ * kCount;
    const int64_t sums = vector_sums<Real>(shape);
    ring_ = static_cast<Real*>(workspace((count * part_size_ + sums) * sizeof(Real)));
    grads_ = ring_ + zeros_ + row_size_;
    frame_sums_ = ring_ + count * part_size_;
    for (int64_t i = 0; i < count; ++i) {
      fill_zero(ring_ + i * part_size_ + zeros_, plan.columns.width);
    }
  }

  void run(int64_t index) {
    Real* sums = scratch_ + index * item_sums(shape_, plan_);
    fill_zero(sums, item_sums(shape_, plan_) / kCount);
    const Range bunches = plan_.split.bunches(index);
    for (int64_t bunch = bunches.begin; bunch < bunches.end; ++bunch) {
      add(plan_.split.item(index, bunch), sums);
    }
  }

 private:
  static constexpr int kCount = kLanes<Real>;
  static constexpr int kParts = static_cast<int>(kBlock) / kCount;

  void add(const Item& item, Real* sums) {
    grad_.attach(item.lanes, plan_.channels, 1, 1);
    input_.attach(item.lanes, plan_.channels, 1, shape_.multiplier);
    next_grad_.attach(item.lanes, 1, 1);
    next_input_.attach(item.lanes, 1, shape_.multiplier);
    const int64_t vectors = ceil_div(item.lanes.size(), kCount);
    const Range held = plan_.h.sources(item.h);
    const int64_t size = vector_sums<Real>(shape_);
    int64_t next = 0;  // frame to be read
    for (int64_t t = item.t.begin; t < item.t.end; ++t) {
      const Range frames = plan_.t.sources({t, t + 1});
      for (int64_t f = larger(next, frames.begin); f < frames.end; ++f) {
        input_.read(0, f, held, ring_ + f % frames_ * frame_size_, part_size_);
      }
      next = larger(next, frames.end);
      grad_.read(0, t, item.h, grads_, part_size_);
      list_inputs(t, item.h, held);
      prefetch(t, item, held, vectors * shape_.kernel[0] * shape_.kernel[1] / plan_.tile.rows);
      for (int64_t i = 0; i < vectors; ++i) {
        add_frame(ring_ + i * part_size_, grads_ + i * part_size_, item.h.size(), sums + i * size);
      }
    }
  }

  // Starts to fetch what the next frame of the gradient will want.
  void prefetch(int64_t t, const Item& item, Range held, int64_t calls) {
    next_grad_.stop();
    next_input_.stop();
    if (!plan_.fetch_ahead || t + 1 >= item.t.end) return;
    const int64_t now = plan_.t.sources({t, t + 1}).end, then = plan_.t.sources({t + 1, t + 2}).end;
    next_grad_.start(t + 1, item.h, calls);
    if (then > now) next_input_.start(then - 1, held, calls);
  }

  // The input rows under each kernel row, and whether a run of kernel rows meets any.
  void list_inputs(int64_t t, Range h, Range held) {
    const int64_t kernel_rows = shape_.kernel[0] * shape_.kernel[1];
    int64_t count = 0;
    for (int64_t first = 0; first < kernel_rows; first += plan_.tile.rows) {
      any_[first] = false;
      for (int64_t y = h.begin; y < h.end; ++y) {
        for (int64_t row = first; row < first + plan_.tile.rows; ++row) {
          const int64_t from_t = plan_.t.source(t, row / shape_.kernel[1]);
          const int64_t from_h = plan_.h.source(y, row % shape_.kernel[1]);
          const bool padding = from_t < 0 || from_h < 0;
          inputs_[count++] =
              padding ? zeros_ : from_t % frames_ * frame_size_ + (from_h - held.begin) * row_size_;
          any_[first] = any_[first] || !padding;
        }
      }
    }
  }

  void add_frame(const Real* ring, const Real* grads, int64_t rows, Real* sums) {
    if (rows <= rows_summed(grad_columns_)) return sum_frame(ring, grads, rows, sums);
    const int64_t size = vector_sums<Real>(shape_);
    fill_zero(frame_sums_, size / kCount);
    sum_frame(ring, grads, rows, frame_sums_);
    add_vectors(frame_sums_, size, sums);
  }

  void sum_frame(const Real* ring, const Real* grads, int64_t rows, Real* sums) {
    const Columns& columns = plan_.columns;
    const Phase& phase = columns.phase[0];
    const int64_t kernel_rows = shape_.kernel[0] * shape_.kernel[1], taps = shape_.kernel[2];
    const SumKernel<Real> kernel = find_sum_kernel<Real>(plan_.tile, phase.advance);
    for (int64_t row = 0; row < kernel_rows; row += plan_.tile.rows) {
      next_grad_.advance();
      next_input_.advance();
      if (!any_[row]) continue;
      for (int64_t k = phase.taps_begin; k < phase.taps_end; k += phase.chunk) {
        kernel(&inputs_[row * rows], ring + (columns.left + columns.offset[k]) * kCount, grads,
               rows, plan_.tile.tiles, phase.advance, sums + (row * taps + columns.tap[k]) * kCount,
               taps * kCount);
      }
    }
    add_bias(grads, rows, sums + kernel_rows * taps * kCount);
  }

  void add_bias(const Real* grads, int64_t rows, Real* sum) {
    Vec<Real> total{};
    for (int64_t row = 0; row < rows; ++row) {
      Vec<Real> part{};
      for (int64_t w = 0; w < plan_.w.to; ++w) {
        part += load(grads + (row * grad_columns_ + w) * kCount);
      }
      total += part;
    }
    store(sum, load(sum) + total);
  }

  const Shape& shape_;
  const SumsPlan& plan_;
  Real* scratch_;
  int64_t grad_columns_;
  Reader<T> grad_, input_;
  Prefetcher next_grad_, next_input_;
  int64_t frames_, row_size_, frame_size_;  // of the ring
  int64_t zeros_;                           // offset of a row of zeros
  Array<int64_t> inputs_;                   // offsets in the ring, as the sum kernel wants them
  Array<bool> any_;                         // [first kernel row]
  int64_t part_size_;                       // what is held for a vector:
  Real* ring_;                              // [frame % frames_][row][column][lane], zeros
  Real* grads_;                             // [row][column][lane] of one frame
  Real* frame_sums_;                        // of a vector
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
  const int64_t group = split.group_size() * kBlock / count;  // in vectors
  for (int64_t i = 0; i < split.groups() * group; ++i) {
    const Range lanes_range = split.lanes(0, i / group);
    const Lanes<Real> lanes(lanes_range.begin + i % group * count, lanes_range.end, plan.channels);
    if (lanes.count == 0) continue;
    fill_zero(vector, size / count);
    for (int64_t bunch = 0; bunch < split.items(); bunch += split.items_per_bunch()) {
      for (int64_t part = 0; part < split.parts(); ++part) {
        const Real* sums = static_cast<const Real*>(scratch) + i % group * size +
                           (bunch + i / group * split.parts() + part) * item_sums(shape, plan);
        add_vectors(sums, size, vector);
      }
    }
    for (int64_t k = 0; k <= taps; k += count) {
      Vec<Real> square[count];
      for (int64_t j = 0; j < count; ++j) {
        square[j] = k + j <= taps ? load(vector + (k + j) * count) : Vec<Real>{};
      }
      transpose<Real>(square);
      for (int lane = 0; lane < lanes.count; ++lane) {
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
  return plan.split.items() * item_sums(shape, plan) * (shape.dtype == DType::f64 ? 8 : 4);
}

void run(const Shape& shape, const void* grad, const void* input, void* scratch, int64_t begin,
         int64_t end) {
  if (begin >= end) return;
  const SumsPlan plan(shape);
  with_storage(shape.dtype, [&](auto storage) {
    using T = decltype(storage);
    Summer<T> summer(shape, plan, static_cast<const T*>(grad), static_cast<const T*>(input),
                     static_cast<Arithmetic<T>*>(scratch));
    for (int64_t item = begin; item < end; ++item) summer.run(item);
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
