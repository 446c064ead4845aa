// Depthwise convolution, gradients of weight and bias, in one pass over both tensors.
//
// An item sums over some rows and frames of some samples for a block of lanes, and writes its sums
// to its own place in the scratch; `finish` adds the items up in the order of their numbers. Which
// items there are follows from the shape alone, so neither threads nor their order change a bit.
//
// Sums are short: registers hold those of a few rows of one frame, the item adds these up over its
// frames, `finish` over the items. A single chain over a million positions would lose digits.
#include "../workspace.h"
#include "depthwise_conv3d.h"
#include "depthwise_conv3d_lanes.h"
#include "depthwise_conv3d_plan.h"
#include "depthwise_conv3d_sums.h"

namespace vmf {
namespace VMF_ISA {
namespace {

int64_t greatest_common_divisor(int64_t a, int64_t b) {
  return b == 0 ? a : greatest_common_divisor(b, a % b);
}

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
        lanes(s.batch * channels) {
    if (w.to == 0) lanes = 0;
    blocks = ceil_div(lanes, kBlock);
    // Blocks that far apart hold the same channels in the same lanes, of other samples.
    period = channels == 0 ? 1 : channels / greatest_common_divisor(channels, kBlock);
    period = larger(1, smaller(period, blocks));
    const int64_t repeats = ceil_div(blocks, period);
    // Blocks with the same channels share their sums where that leaves items enough.
    constexpr int64_t kBlocks = 64;
    groups = smaller(repeats, ceil_div(kBlocks, period));
    const int64_t column_bytes = kBlock * (s.dtype == DType::f64 ? 8 : 4);
    const int64_t work = lanes * volume(s.output) * volume(s.kernel);
    split = choose_split(blocks == 0 ? 0 : period * groups, s.channels_last ? period : 1, t, h,
                         columns.width * column_bytes, work);
  }

  Axis t, h, w;
  Columns plain;  // as the row is
  SumTile tile;
  Columns columns;  // with the gradient's row filled up to whole tiles
  int64_t channels, lanes;
  int64_t blocks, period, groups;
  Split split;
};

// An item's sums are [part][tap, then the bias][lane], a part being one vector of the block's lanes.
int64_t sums_size(const Shape& s) { return (volume(s.kernel) + 1) * kBlock; }

template <typename T>
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
        frames_(plan.t.span(1)),
        row_size_(plan.columns.width * kCount),
        frame_size_(plan.h.span(plan.split.h_size) * row_size_),
        grad_row_size_(plan.tile.tiles * plan.tile.columns * kCount),
        inputs_(plan.split.h_size * plan.tile.rows) {
    const int64_t ring = frames_ * frame_size_;
    const int64_t grads = plan.split.h_size * grad_row_size_;
    Real* memory =
        static_cast<Real*>(workspace((kParts * ring + grads + row_size_) * sizeof(Real)));
    for (Part& part : parts_) {
      part.ring = memory;
      memory += ring;
    }
    grads_ = memory;
    zeros_ = grads_ + grads;
    fill_zero(zeros_, plan.columns.width);
  }

  void run(int64_t index) {
    const Item item = plan_.split.item(index, plan_.t, plan_.h);
    Real* sums = scratch_ + index * sums_size(shape_);
    for (int64_t i = 0; i < sums_size(shape_); ++i) sums[i] = 0;
    // Block `r + period * q` for each q of the item's share.
    const int64_t r = item.block % plan_.period, group = item.block / plan_.period;
    const int64_t repeats = ceil_div(plan_.blocks, plan_.period);
    const int64_t share = ceil_div(repeats, plan_.groups);
    for (int64_t q = group * share; q < smaller((group + 1) * share, repeats); ++q) {
      run_block(r + q * plan_.period, item.h, item.t, sums);
    }
  }

 private:
  static constexpr int kCount = kLanes<Real>;
  static constexpr int kParts = static_cast<int>(kBlock) / kCount;

  struct Part {
    Reader<T> grad, input;
    Real* ring;  // [frame % frames_][row][column][lane]
    Real* sums = nullptr;
  };

  void run_block(int64_t block, Range h, Range t, Real* sums) {
    int parts = 0;
    for (; parts < kParts && block * kBlock + parts * kCount < plan_.lanes; ++parts) {
      const Lanes<Real> lanes(block * kBlock + parts * kCount, plan_.lanes, plan_.channels);
      Part& part = parts_[parts];
      part.grad = Reader<T>(grad_, grad_strides_, shape_.channels_last, lanes, 1, 1);
      part.input =
          Reader<T>(input_, input_strides_, shape_.channels_last, lanes, 1, shape_.multiplier);
      part.sums = sums + parts * (volume(shape_.kernel) + 1) * kCount;
    }
    const Range held = plan_.h.sources(h);
    int64_t next = 0;  // frame to be read
    for (int64_t to = t.begin; to < t.end; ++to) {
      const Range frames = plan_.t.sources({to, to + 1});
      for (int i = 0; i < parts; ++i) {
        for (int64_t f = larger(next, frames.begin); f < frames.end; ++f) {
          parts_[i].input.read(0, f, held, plan_.w.from, plan_.columns.left, plan_.columns.width,
                               parts_[i].ring + f % frames_ * frame_size_);
        }
        add_frame(parts_[i], to, h, held);
      }
      next = larger(next, frames.end);
    }
  }

  void add_frame(const Part& part, int64_t t, Range h, Range held) {
    part.grad.read(0, t, h, plan_.w.to, 0, plan_.tile.tiles * plan_.tile.columns, grads_);
    add_bias(h.size(), part.sums + volume(shape_.kernel) * kCount);
    const Columns& columns = plan_.columns;
    const Phase& phase = columns.phase[0];
    const int64_t kernel_rows = shape_.kernel[0] * shape_.kernel[1];
    const SumKernel<Real> kernel = find_sum_kernel<Real>(plan_.tile, phase.advance);
    for (int64_t row = 0; row < kernel_rows; row += plan_.tile.rows) {
      for (int64_t k = phase.taps_begin; k < phase.taps_end; k += phase.chunk) {
        if (!list_inputs(part, t, h, held, row, columns.left + columns.offset[k])) continue;
        kernel(&inputs_[0], grads_, h.size(), plan_.tile.tiles, phase.advance,
               part.sums + (row * shape_.kernel[2] + columns.tap[k]) * kCount,
               shape_.kernel[2] * kCount);
      }
    }
  }

  void add_bias(int64_t rows, Real* sum) {
    Vec<Real> total{};
    for (int64_t row = 0; row < rows; ++row) {
      Vec<Real> part{};
      const Real* grads = grads_ + row * grad_row_size_;
      for (int64_t i = 0; i < grad_row_size_; i += kCount) part += load(grads + i);
      total += part;
    }
    store(sum, load(sum) + total);
  }

  // The input rows under kernel rows row, ... for each row of the gradient; false if all is padding.
  bool list_inputs(const Part& part, int64_t t, Range h, Range held, int64_t row, int64_t column) {
    bool any = false;
    for (int i = 0; i < plan_.tile.rows; ++i) {
      const int64_t kt = (row + i) / shape_.kernel[1], kh = (row + i) % shape_.kernel[1];
      const int64_t from_t = plan_.t.source(t, kt);
      const Real* frame = from_t < 0 ? nullptr : part.ring + from_t % frames_ * frame_size_;
      for (int64_t y = h.begin; y < h.end; ++y) {
        const int64_t from_h = from_t < 0 ? -1 : plan_.h.source(y, kh);
        const Real* from =
            from_h < 0 ? zeros_ : frame + (from_h - held.begin) * row_size_ + column * kCount;
        inputs_[(y - h.begin) * plan_.tile.rows + i] = from;
        any = any || from_h >= 0;
      }
    }
    return any;
  }

  const Shape& shape_;
  const SumsPlan& plan_;
  const T *grad_, *input_;
  Real* scratch_;
  Strides grad_strides_, input_strides_;
  int64_t frames_, row_size_, frame_size_;  // of the rings
  int64_t grad_row_size_;
  Part parts_[kParts];
  Real* grads_;  // the gradient's rows of one frame
  Real* zeros_;  // a row of padding
  Array<const Real*> inputs_;
};

// Adds up the items and turns the sums of each lane into rows of the weight.
template <typename T>
void finish(const Shape& shape, const void* scratch, void* grad_weight, void* grad_bias) {
  using Real = Arithmetic<T>;
  constexpr int count = kLanes<Real>;
  const SumsPlan plan(shape);
  const Split& split = plan.split;
  const int64_t taps = volume(shape.kernel), size = sums_size(shape), part_size = size / kBlock * count;
  const int64_t row_size = ceil_div(taps + 1, count) * count;  // of one channel's total
  Real* total = static_cast<Real*>(workspace((plan.channels * row_size + size) * sizeof(Real)));
  Real* block = total + plan.channels * row_size;
  fill_zero(total, plan.channels * row_size / count);
  for (int64_t r = 0; r < plan.period && split.items() > 0; ++r) {
    fill_zero(block, size / count);
    for (int64_t group = 0; group < plan.groups; ++group) {
      for (int64_t part = 0; part < split.h_parts * split.t_parts; ++part) {
        const Real* sums = static_cast<const Real*>(scratch) +
                           split.index(r + group * plan.period, part) * size;
        for (int64_t i = 0; i < size; i += count) store(block + i, load(block + i) + load(sums + i));
      }
    }
    for (int64_t first = 0; first < kBlock; first += count) {
      const Lanes<Real> lanes(r * kBlock + first, plan.lanes, plan.channels);
      const Real* sums = block + first / count * part_size;
      for (int64_t k = 0; k <= taps; k += count) {
        Vec<Real> square[count];
        for (int64_t i = 0; i < count; ++i) {
          square[i] = k + i <= taps ? load(sums + (k + i) * count) : Vec<Real>{};
        }
        transpose<Real>(square);
        for (int lane = 0; lane < lanes.count; ++lane) {
          Real* to = total + lanes.channel[lane] * row_size + k;
          store(to, load(to) + square[lane]);
        }
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
  return items(shape) * sums_size(shape) * (shape.dtype == DType::f64 ? 8 : 4);
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
