// The functions of vmf/cuda_depthwise_conv3d.h, and how the blocks of the kernels for contiguous
// tensors divide the work.
#include <algorithm>

#include "cuda/depthwise_conv3d_channels_last.h"
#include "cuda/depthwise_conv3d_forms.h"
#include "cuda/depthwise_conv3d_grad_weight.cuh"
#include "cuda/depthwise_conv3d_time.h"

namespace vmf::cuda {
namespace {

// Calls f(convolution, transposed) with the kernels of a shape, types without state, or returns why
// there are none.
template <class F>
const char* with_kernels(const DepthwiseConv3dShape& s, const F& f) {
  return with_form(s, [&]<class Form>(Form) -> const char* {
    constexpr int T = Form::kT, H = Form::kH, W = Form::kW;
    if constexpr (H == 1) {
      return kShapes;
    } else if constexpr (Form::kStride == 1) {
      return f(Convolution<T, H, W, 1>{}, Convolution<T, H, W, 1>{});
    } else {
      return f(Convolution<T, H, W, 2>{}, Transposed<T, H, W>{});
    }
  });
}

Volumes volumes(const int64_t (&size)[3], int64_t count) {
  return {count, {static_cast<int>(size[0]), static_cast<int>(size[1]), static_cast<int>(size[2])}};
}

// Rows or columns of threads that `size` results take.
template <class Body>
int64_t steps(int size, int padding) {
  return Body::kFlipsFrames ? size : (size - 1 + padding) / 2 - padding / 2 + 1;
}

template <class Body>
WindowShape window_of(int64_t groups, int64_t columns, const int (&padding)[3], int group) {
  WindowShape window{};
  for (int i = 0; i < 2; ++i) {
    const int p = padding[i + 1];
    window.start[i] = Body::kFlipsFrames ? -p : p / 2 - Body::kReach[i];
  }
  window.group = group;
  window.lead = (window.start[1] % group + group) % group;
  window.advance[0] = static_cast<int>(groups) * Body::kSteps * Body::kRowStep;
  window.advance[1] = static_cast<int>(columns) * Body::kColumnStep;
  window.rows = window.advance[0] + Body::kReach[0];
  window.wide =
      static_cast<int>(divide_up(window.lead + window.advance[1] + Body::kReach[1], group));
  window.pitch = window.wide * group;
  return window;
}

// What a plan is made for.
struct Problem {
  Volumes source, result;
  int64_t count;  // volumes of the result that tiles are made of
  int padding[3];
  int64_t spread;   // elements from what one volume reads to what the next one does, at most
  int64_t weights;  // floats of shared memory a volume
  bool aligned;     // to 16 bytes
  int processors;
};

// Divides the work into blocks; null, or why there is no such way.
template <class Body>
const char* plan(const Problem& p, Tiling& tiling) {
  if (p.source.frame() > kMost || p.result.frame() > kMost) return kSize;
  if (p.weights > Gather<Body>::kWeights) return "the channel multiplier is too large";
  const int64_t rows = divide_up(steps<Body>(p.result.size[1], p.padding[1]), Body::kSteps);
  const int64_t columns = steps<Body>(p.result.size[2], p.padding[2]);
  const auto fits = [&](int64_t count, int64_t groups, int64_t width) {
    const WindowShape& window = tiling.window;
    return count * groups * width <= kThreads && count * p.weights <= Gather<Body>::kWeights &&
           count * window.rows * window.pitch <= Gather<Body>::kSlots * kThreads &&
           (count - 1) * p.spread + p.source.frame() <= kMost;
  };
  const int group = !p.aligned || p.source.size[2] % 2 != 0 ? 1 : p.source.size[2] % 4 == 0 ? 4 : 2;
  int64_t groups = 0, width = 0;
  for (int64_t tiles = divide_up(columns, kThreads); groups == 0; ++tiles) {
    width = tiles == 1 ? columns : round_up(divide_up(columns, tiles), 4);
    for (groups = std::min(rows, kThreads / width); groups > 0; --groups) {
      tiling.window = window_of<Body>(groups, width, p.padding, group);
      if (fits(1, groups, width)) break;
    }
  }
  const int64_t row_tiles = divide_up(rows, groups), column_tiles = divide_up(columns, width);
  groups = divide_up(rows, row_tiles);
  tiling.window = window_of<Body>(groups, width, p.padding, group);
  int64_t count = 1;
  if (row_tiles * column_tiles == 1) {
    while (count < p.count && fits(count + 1, groups, width)) ++count;
    count = divide_up(p.count, divide_up(p.count, count));
  }
  const int64_t blocks = divide_up(p.count, count) * row_tiles * column_tiles;
  const int64_t frames = p.result.size[0];
  const int64_t parts =
      time_parts(blocks, frames, Body::kT - 1, divide_up(frames, std::max(4, 2 * Body::kT)),
                 int64_t{kBlocks<Body>} * p.processors);
  tiling.time = static_cast<int>(divide_up(frames, parts));
  tiling.time_tiles = static_cast<int>(divide_up(frames, tiling.time));
  tiling.volumes = static_cast<int>(count);
  tiling.groups = static_cast<int>(groups);
  tiling.columns = static_cast<int>(width);
  tiling.row_tiles = static_cast<int>(row_tiles);
  tiling.column_tiles = static_cast<int>(column_tiles);
  tiling.blocks = blocks * tiling.time_tiles;
  return tiling.blocks > kMost ? kSize : nullptr;
}

bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

int64_t volume(const int64_t (&size)[3]) { return size[0] * size[1] * size[2]; }

bool is_large(const DepthwiseConv3dShape& s) {
  for (int i = 0; i < 3; ++i) {
    // Room for what padding adds.
    if (std::max(s.input[i], s.output[i]) + 2 * s.padding[i] + s.kernel[i] > kMost / 4) return true;
  }
  return s.channels * s.multiplier > kMost || s.batch > kMost;
}

// One of both directions, without its tensors.
template <class Body>
const char* gather_shape(const DepthwiseConv3dShape& s, bool transposed, const void* from,
                         int processors, GatherShape& shape) {
  const int multiplier = static_cast<int>(s.multiplier);
  const auto in = volumes(s.input, s.batch * s.channels);
  const auto out = volumes(s.output, s.batch * s.channels * multiplier);
  shape.dtype = s.dtype;
  shape.source = transposed ? out : in;
  shape.result = transposed ? in : out;
  shape.pairing = transposed ? Pairing{1, multiplier} : Pairing{multiplier, 1};
  shape.to_channels = static_cast<int>(transposed ? s.channels : s.channels * multiplier);
  shape.weight_channels = static_cast<int>(s.channels * multiplier);
  shape.flipped = transposed;
  for (int i = 0; i < 3; ++i) {
    const bool flips = transposed && (i == 0 || Body::kFlipsFrames);
    shape.padding[i] = static_cast<int>(flips ? s.kernel[i] - 1 - s.padding[i] : s.padding[i]);
  }
  const auto [t, h, w] = shape.padding;
  return plan<Body>({shape.source,
                     shape.result,
                     shape.result.count,
                     {t, h, w},
                     shape.pairing.repeats * shape.source.volume(),
                     int64_t{shape.pairing.repeats} * Gather<Body>::kWeight,
                     is_aligned(from),
                     processors},
                    shape.tiling);
}

template <class Body>
const char* grad_weight_shape(const DepthwiseConv3dShape& s, const void* input, int processors,
                              GradWeightShape& shape) {
  const int multiplier = static_cast<int>(s.multiplier);
  shape.sums.dtype = s.dtype;
  shape.source = volumes(s.input, s.batch * s.channels);
  shape.result = volumes(s.output, s.batch * s.channels * multiplier);
  shape.pairing = {multiplier, 1};
  shape.sums.channels = static_cast<int>(s.channels * multiplier);
  shape.batch = static_cast<int>(s.batch);
  for (int i = 0; i < 3; ++i) shape.padding[i] = static_cast<int>(s.padding[i]);
  const auto [t, h, w] = shape.padding;
  const int64_t batch = std::max<int64_t>(s.batch, 1);
  const char* error = plan<Body>({shape.source,
                                  shape.result,
                                  shape.sums.channels,
                                  {t, h, w},
                                  shape.source.volume(),
                                  0,
                                  is_aligned(input),
                                  static_cast<int>(divide_up(processors, batch))},
                                 shape.tiling);
  if (error != nullptr) return error;
  const Tiling& tiling = shape.tiling;
  shape.tap_groups = static_cast<int>(divide_up(Body::kW, kColumnsAtOnce<Body>));
  const int64_t blocks = tiling.blocks * shape.tap_groups;
  const int64_t wanted = std::clamp<int64_t>(divide_up(16 * processors, blocks), 1, batch);
  shape.samples = static_cast<int>(divide_up(batch, wanted));
  shape.sample_tiles = static_cast<int>(divide_up(s.batch, shape.samples));
  shape.sums.count =
      int64_t{shape.sample_tiles} * tiling.time_tiles * tiling.row_tiles * tiling.column_tiles;
  return shape.blocks() > kMost ? kSize : nullptr;
}

template <class Body>
const char* run_gather(const DepthwiseConv3dShape& s, bool transposed, const void* from,
                       const void* weight, const void* bias, void* to, Device device) {
  GatherShape shape{};
  const char* error = gather_shape<Body>(s, transposed, from, device.processors, shape);
  if (error != nullptr) return error;
  shape.from = from;
  shape.weight = weight;
  shape.bias = bias;
  shape.to = to;
  return launch(&gather<Body>, shape.tiling.blocks, shape, device.stream);
}

}  // namespace

int cuda_version() { return runtime_version(); }

const char* depthwise_conv3d_refuses(const DepthwiseConv3dShape& s) {
  if (is_large(s)) return kSize;
  if (s.batch * volume(s.output) == 0) {
    return with_form(s, [](auto) -> const char* { return nullptr; });
  }
  if (s.channels_last) return channels_last::refuses(s);
  return with_kernels(s, [&]<class Forward, class Backward>(Forward, Backward) {
    GatherShape forward{}, backward{};
    GradWeightShape grad_weight{};
    const void* const aligned = nullptr;  // which is the plan with the largest windows
    const char* error = gather_shape<Forward>(s, false, aligned, 1, forward);
    if (error == nullptr) error = gather_shape<Backward>(s, true, aligned, 1, backward);
    if (error == nullptr) error = grad_weight_shape<Forward>(s, aligned, 1, grad_weight);
    return error;
  });
}

Tile depthwise_conv3d_tile(const DepthwiseConv3dShape& s, Part part, int processors) {
  if (s.channels_last) return channels_last::tile(s, part, processors);
  Tile tile{};
  const auto fill = [&](const Tiling& tiling, int64_t blocks, int results) {
    tile = {blocks, tiling.volumes, tiling.time, int64_t{tiling.groups} * tiling.columns * results};
  };
  with_kernels(s, [&]<class Forward, class Backward>(Forward, Backward) -> const char* {
    GatherShape gather{};
    GradWeightShape sums{};
    const void* const aligned = nullptr;
    if (part == Part::grad_weight) {
      grad_weight_shape<Forward>(s, aligned, processors, sums);
      fill(sums.tiling, sums.blocks(), Forward::kResults);
    } else if (part == Part::forward) {
      gather_shape<Forward>(s, false, aligned, processors, gather);
      fill(gather.tiling, gather.tiling.blocks, Forward::kResults);
    } else {
      gather_shape<Backward>(s, true, aligned, processors, gather);
      fill(gather.tiling, gather.tiling.blocks, Backward::kResults);
    }
    return nullptr;
  });
  return tile;
}

const char* depthwise_conv3d(const DepthwiseConv3dShape& s, const void* input, const void* weight,
                             const void* bias, void* output, Device device) {
  if (s.batch * volume(s.output) == 0) return nullptr;
  if (s.channels_last) {
    return channels_last::convolve(s, false, input, weight, bias, output, device);
  }
  return with_kernels(s, [&]<class Forward, class Backward>(Forward, Backward) {
    return run_gather<Forward>(s, false, input, weight, bias, output, device);
  });
}

const char* depthwise_conv_transpose3d(const DepthwiseConv3dShape& s, const void* input,
                                       const void* weight, const void* bias, void* output,
                                       Device device) {
  if (s.batch * volume(s.input) == 0) return nullptr;
  if (s.channels_last) {
    return channels_last::convolve(s, true, input, weight, bias, output, device);
  }
  return with_kernels(s, [&]<class Forward, class Backward>(Forward, Backward) {
    return run_gather<Backward>(s, true, input, weight, bias, output, device);
  });
}

int64_t depthwise_conv3d_grad_weight_scratch(const DepthwiseConv3dShape& s, const void* input,
                                             Device device) {
  if (s.channels_last) return channels_last::grad_weight_scratch(s, device);
  int64_t bytes = 0;
  with_kernels(s, [&]<class Forward, class Backward>(Forward, Backward) {
    GradWeightShape shape{};
    grad_weight_shape<Forward>(s, input, device.processors, shape);
    bytes = shape.sums.bytes(kTaps<Forward>);
    return static_cast<const char*>(nullptr);
  });
  return bytes;
}

const char* depthwise_conv3d_grad_weight(const DepthwiseConv3dShape& s, const void* grad_output,
                                         const void* input, void* scratch, void* grad_weight,
                                         void* grad_bias, Device device) {
  if (s.channels_last) {
    return channels_last::grad_weight(s, grad_output, input, scratch, grad_weight, grad_bias,
                                      device);
  }
  return with_kernels(s, [&]<class Forward, class Backward>(Forward, Backward) {
    GradWeightShape shape{};
    const char* error = grad_weight_shape<Forward>(s, input, device.processors, shape);
    if (error != nullptr) return error;
    shape.grad_output = grad_output;
    shape.input = input;
    shape.sums.partial = static_cast<float*>(scratch);
    shape.sums.grad_weight = grad_weight;
    shape.sums.grad_bias = grad_bias;
    if (shape.blocks() > 0) {
      error = launch(&cuda::grad_weight<Forward>, shape.blocks(), shape, device.stream);
      if (error != nullptr) return error;
    }
    return launch_add_partials<kTaps<Forward>>(shape.sums, device.stream);
  });
}

}  // namespace vmf::cuda
