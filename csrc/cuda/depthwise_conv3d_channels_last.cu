// How the blocks of the kernels for channels last divide the work.
#include <algorithm>

#include "cuda/depthwise_conv3d_channels_last.h"
#include "cuda/depthwise_conv3d_forms.h"
#include "cuda/depthwise_conv3d_rows_gather.cuh"
#include "cuda/depthwise_conv3d_rows_grad_weight.cuh"
#include "cuda/depthwise_conv3d_time.h"

namespace vmf::cuda::channels_last {
namespace {

constexpr int kMostRows = 8;      // of items below each other in a block
constexpr int kBlocksWanted = 8;  // a multiprocessor
constexpr const char* kEven = "with channels last, the number of channels must be even";

template <class F>
using Forward = RowConvolution<F::kT, F::kH, F::kW, F::kStride>;
template <class F>
using Backward =
    std::conditional_t<F::kStride == 1, Forward<F>, RowTransposed<F::kT, F::kH, F::kW>>;

Features features(const int64_t (&size)[3], int64_t channels) {
  const int64_t row = size[2] * channels, frame = size[1] * row;
  return {{static_cast<int>(size[0]), static_cast<int>(size[1]), static_cast<int>(size[2])},
          static_cast<int>(channels),
          row,
          frame,
          size[0] * frame};
}

// Whether the channels of a pair are read where they are, beside each other, and pairs may be read.
bool beside(DType dtype, Pairing pairing, const void* data) {
  const int bytes = dtype == DType::f32 ? 8 : 4;
  return pairing.share == 1 && pairing.repeats == 1 &&
         reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

// What is divided: samples, frames, rows of items and items in a row.
struct Steps {
  int64_t batch, frames, rows, columns;
  int reach;         // frames that an item reads more than it has
  int least_frames;  // that it should have
};

// `resident` blocks run at once.
const char* plan(const Steps& steps, int64_t pairs, int64_t most_pairs, int64_t resident,
                 ItemTiling& tiling) {
  tiling.pair_tiles = static_cast<int>(divide_up(pairs, most_pairs));
  tiling.pairs = static_cast<int>(divide_up(pairs, tiling.pair_tiles));
  tiling.items = kThreads / tiling.pairs;
  tiling.row_tiles = static_cast<int>(std::max<int64_t>(divide_up(steps.rows, kMostRows), 1));
  tiling.rows = static_cast<int>(divide_up(steps.rows, tiling.row_tiles));
  tiling.columns = static_cast<int>(steps.columns);
  const int64_t items = steps.batch * tiling.row_tiles * tiling.rows * tiling.columns;
  const int64_t blocks = divide_up(items, tiling.items) * tiling.pair_tiles;
  const int64_t frames = std::max<int64_t>(steps.frames, 1);
  const int64_t parts =
      time_parts(blocks, frames, steps.reach, divide_up(frames, steps.least_frames), resident);
  tiling.time = static_cast<int>(divide_up(frames, parts));
  tiling.time_tiles = static_cast<int>(divide_up(steps.frames, tiling.time));
  tiling.count = items * tiling.time_tiles;
  return tiling.count > kMost || tiling.blocks() > kMost ? kSize : nullptr;
}

template <class Body>
const char* gather_shape(const DepthwiseConv3dShape& s, bool transposed, int processors,
                         RowGatherShape& shape) {
  const int multiplier = static_cast<int>(s.multiplier);
  const Features in = features(s.input, s.channels);
  const Features out = features(s.output, s.channels * multiplier);
  shape.dtype = s.dtype;
  shape.source = transposed ? out : in;
  shape.result = transposed ? in : out;
  shape.pairing = transposed ? Pairing{1, multiplier} : Pairing{multiplier, 1};
  shape.weight_channels = out.channels;
  shape.flipped = transposed;
  for (int i = 0; i < 3; ++i) {
    const bool flips = transposed && (i == 0 || Body::kFlipsFrames);
    shape.padding[i] = static_cast<int>(flips ? s.kernel[i] - 1 - s.padding[i] : s.padding[i]);
  }
  int64_t steps[2];
  for (int i = 0; i < 2; ++i) {
    const int p = shape.padding[i + 1], size = shape.result.size[i + 1];
    if constexpr (Body::kFlipsFrames) {
      shape.start[i] = -p;
      shape.result_start[i] = 0;
      steps[i] = size;
    } else {
      shape.start[i] = p / 2 - (i == 0 ? Body::kReachH : Body::kReachW);
      shape.result_start[i] = p / 2 * 2 - p;
      steps[i] = (size - 1 + p) / 2 - p / 2 + 1;
    }
  }
  if (shape.source.frame > kMost || shape.result.frame > kMost) return kSize;
  shape.steps = static_cast<int>(steps[0]);
  const int64_t columns = divide_up(steps[1], Body::kColumns);
  const int64_t weights = RowGather<Body>::kTaps * shape.pairing.repeats;
  const int64_t fit = (RowGather<Body>::kWeights / weights - RowGather<Body>::kPad) / kPair;
  if (fit < 1) return "the channel multiplier is too large";
  return plan(
      {s.batch, shape.result.size[0], steps[0], columns, Body::kT - 1, std::max(2, Body::kT)},
      divide_up(shape.result.channels, kPair), std::min<int64_t>(fit, RowGather<Body>::kMostPairs),
      int64_t{kRowBlocks<Body, true>} * processors, shape.tiling);
}

template <class Body, class Bits>
const char* run_gather(const RowGatherShape& shape, int64_t blocks, void* stream) {
  if constexpr (RowGather<Body>::kHasSimple) {
    if (shape.beside) return launch(&gather_rows<Body, Bits, true>, blocks, shape, stream);
  }
  return launch(&gather_rows<Body, Bits, false>, blocks, shape, stream);
}

template <class Body>
const char* convolve_as(const DepthwiseConv3dShape& s, bool transposed, const void* from,
                        const void* weight, const void* bias, void* to, Device device) {
  RowGatherShape shape{};
  const char* error = gather_shape<Body>(s, transposed, device.processors, shape);
  if (error != nullptr) return error;
  shape.from = from;
  shape.weight = weight;
  shape.bias = bias;
  shape.to = to;
  shape.beside = beside(s.dtype, shape.pairing, from);
  const int64_t blocks = shape.tiling.blocks();
  return s.dtype == DType::f32 ? run_gather<Body, uint32_t>(shape, blocks, device.stream)
                               : run_gather<Body, uint16_t>(shape, blocks, device.stream);
}

template <class Body>
const char* grad_weight_shape(const DepthwiseConv3dShape& s, int processors,
                              RowGradWeightShape& shape) {
  using Sums = RowGradWeight<Body>;
  const int multiplier = static_cast<int>(s.multiplier);
  shape.source = features(s.input, s.channels);
  shape.result = features(s.output, s.channels * multiplier);
  shape.pairing = {multiplier, 1};
  shape.sums.dtype = s.dtype;
  shape.sums.channels = shape.result.channels;
  for (int i = 0; i < 3; ++i) shape.padding[i] = static_cast<int>(s.padding[i]);
  shape.row_groups = static_cast<int>(divide_up(Body::kH, Sums::kRows));
  shape.column_groups = static_cast<int>(divide_up(Body::kW, Sums::kColumns));
  if (shape.source.frame > kMost || shape.result.frame > kMost) return kSize;
  const int groups = shape.row_groups * shape.column_groups;
  const char* error =
      plan({s.batch, shape.result.size[0], shape.result.size[1],
            divide_up(shape.result.size[2], Sums::kResults), Body::kT - 1, 2 * Body::kT},
           divide_up(shape.result.channels, kPair), RowGather<Body>::kMostPairs,
           divide_up(int64_t{kBlocksWanted} * processors, groups), shape.tiling);
  if (error != nullptr) return error;
  // Enough blocks for all multiprocessors, with as many rounds each; more would only leave more to
  // add up.
  const int64_t groups_beside = int64_t{groups} * shape.tiling.pair_tiles;
  const int64_t wanted = divide_up(int64_t{kBlocksWanted} * processors, groups_beside);
  const int64_t rounds = std::max<int64_t>(shape.tiling.rounds(), 1);
  shape.shares = divide_up(shape.tiling.rounds(), divide_up(rounds, wanted));
  shape.sums.count = shape.shares;
  return shape.blocks() > kMost ? kSize : nullptr;
}

template <class F, class Bits>
const char* grad_weight_of(const DepthwiseConv3dShape& s, const void* grad_output,
                           const void* input, void* scratch, void* grad_weight, void* grad_bias,
                           Device device) {
  using Body = Forward<F>;
  RowGradWeightShape shape{};
  const char* error = grad_weight_shape<Body>(s, device.processors, shape);
  if (error != nullptr) return error;
  shape.grad_output = grad_output;
  shape.input = input;
  shape.beside = beside(s.dtype, shape.pairing, input);
  shape.grad_beside = beside(s.dtype, {1, 1}, grad_output);
  shape.sums.partial = static_cast<float*>(scratch);
  shape.sums.grad_weight = grad_weight;
  shape.sums.grad_bias = grad_bias;
  const int64_t blocks = shape.blocks();
  if (blocks > 0) {
    const bool both = shape.beside && shape.grad_beside;
    error =
        launch(both ? &grad_weight_rows<Body, Bits, true> : &grad_weight_rows<Body, Bits, false>,
               blocks, shape, device.stream);
    if (error != nullptr) return error;
  }
  return launch_add_partials<F::kT * F::kH * F::kW>(shape.sums, device.stream);
}

}  // namespace

const char* refuses(const DepthwiseConv3dShape& s) {
  return with_form(s, [&]<class F>(F) -> const char* {
    if (s.channels % kPair != 0) return kEven;
    RowGatherShape forward{}, backward{};
    RowGradWeightShape grad_weight{};
    const char* error = gather_shape<Forward<F>>(s, false, 1, forward);
    if (error == nullptr) error = gather_shape<Backward<F>>(s, true, 1, backward);
    if (error == nullptr) {
      error = grad_weight_shape<Forward<F>>(s, 1, grad_weight);
    }
    return error;
  });
}

Tile tile(const DepthwiseConv3dShape& s, Part part, int processors) {
  Tile tile{};
  const auto fill = [&](const ItemTiling& tiling, int64_t blocks, int results) {
    tile = {blocks, tiling.pairs * kPair, tiling.time, int64_t{tiling.items} * results};
  };
  with_form(s, [&]<class F>(F) -> const char* {
    RowGatherShape gather{};
    RowGradWeightShape sums{};
    if (part == Part::grad_weight) {
      grad_weight_shape<Forward<F>>(s, processors, sums);
      fill(sums.tiling, sums.blocks(), RowGradWeight<Forward<F>>::kResults);
    } else if (part == Part::forward) {
      gather_shape<Forward<F>>(s, false, processors, gather);
      fill(gather.tiling, gather.tiling.blocks(), Forward<F>::kResults);
    } else {
      gather_shape<Backward<F>>(s, true, processors, gather);
      fill(gather.tiling, gather.tiling.blocks(), Backward<F>::kResults);
    }
    return nullptr;
  });
  return tile;
}

const char* convolve(const DepthwiseConv3dShape& s, bool transposed, const void* from,
                     const void* weight, const void* bias, void* to, Device device) {
  return with_form(s, [&]<class F>(F) {
    return transposed ? convolve_as<Backward<F>>(s, true, from, weight, bias, to, device)
                      : convolve_as<Forward<F>>(s, false, from, weight, bias, to, device);
  });
}

int64_t grad_weight_scratch(const DepthwiseConv3dShape& s, Device device) {
  int64_t bytes = 0;
  with_form(s, [&]<class F>(F) -> const char* {
    RowGradWeightShape shape{};
    grad_weight_shape<Forward<F>>(s, device.processors, shape);
    bytes = shape.sums.bytes(F::kT * F::kH * F::kW);
    return nullptr;
  });
  return bytes;
}

const char* grad_weight(const DepthwiseConv3dShape& s, const void* grad_output, const void* input,
                        void* scratch, void* grad_weight, void* grad_bias, Device device) {
  return with_form(s, [&]<class F>(F) {
    return s.dtype == DType::f32 ? grad_weight_of<F, uint32_t>(s, grad_output, input, scratch,
                                                               grad_weight, grad_bias, device)
                                 : grad_weight_of<F, uint16_t>(s, grad_output, input, scratch,
                                                               grad_weight, grad_bias, device);
  });
}

}  // namespace vmf::cuda::channels_last
