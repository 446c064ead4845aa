// The arguments of a depthwise 3D convolution, whichever way it goes, as the shape of its kernels.
#pragma once

#include <algorithm>
#include <optional>
#include <tuple>

#include "bindings/direct.h"
#include "vmf/depthwise_conv3d.h"

namespace vmf::bindings {

inline constexpr int64_t kLimit = int64_t{1} << 40;  // as in geometry.py: beyond any memory

// The shape of the whole problem from those of its parts; refuses parts that do not fit.
inline DepthwiseConv3dShape make_shape(const Ints& input, int64_t out_channels, const Ints& kernel,
                                       const Ints& stride, const Ints& padding,
                                       const Ints& dilation, bool channels_last, DType dtype) {
  STD_TORCH_CHECK(input.size() == 5 && kernel.size() == 3 && stride.size() == 3 &&
                      padding.size() == 6 && dilation.size() == 3,
                  "depthwise_conv3d: 5 sizes, 3 strides, 6 paddings and 3 dilations are needed");
  for (const Ints* ints : {&input, &kernel, &stride, &padding, &dilation}) {
    STD_TORCH_CHECK(std::all_of(ints->begin(), ints->end(), [](int64_t i) { return i < kLimit; }),
                    "depthwise_conv3d: sizes and settings must be below 2**40");
  }
  STD_TORCH_CHECK(input[1] > 0 && out_channels > 0 && out_channels % input[1] == 0,
                  "depthwise_conv3d: output channels must be a multiple of the input's");
  DepthwiseConv3dShape shape{};
  shape.batch = input[0];
  shape.channels = input[1];
  shape.multiplier = out_channels / input[1];
  shape.channels_last = channels_last;
  shape.dtype = dtype;
  double elements = static_cast<double>(input[0]) * static_cast<double>(out_channels);
  for (int i = 0; i < 3; ++i) {
    STD_TORCH_CHECK(kernel[i] > 0 && stride[i] > 0 && dilation[i] > 0 && padding[2 * i] >= 0 &&
                        padding[2 * i + 1] >= 0,
                    "depthwise_conv3d: kernel, stride and dilation must be positive, padding not "
                    "negative");
    STD_TORCH_CHECK(dilation[i] <= kLimit / kernel[i],
                    "depthwise_conv3d: the kernel must fit into the padded input");
    const int64_t room =
        input[i + 2] + padding[2 * i] + padding[2 * i + 1] - dilation[i] * (kernel[i] - 1) - 1;
    STD_TORCH_CHECK(room >= 0, "depthwise_conv3d: the kernel must fit into the padded input");
    shape.input[i] = input[i + 2];
    shape.output[i] = room / stride[i] + 1;
    shape.kernel[i] = kernel[i];
    shape.stride[i] = stride[i];
    shape.padding[i] = padding[2 * i];
    shape.dilation[i] = dilation[i];
    elements *= static_cast<double>(shape.output[i]);
  }
  STD_TORCH_CHECK(elements <= static_cast<double>(kLimit),
                  "depthwise_conv3d: the output must have at most 2**40 elements");
  return shape;
}

// Sizes of a (mC, 1, kT, kH, kW) weight.
inline Ints kernel_of(const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 5 && weight.size(1) == 1,
                  "depthwise_conv3d: weight must be (m*C, 1, kT, kH, kW)");
  return {weight.size(2), weight.size(3), weight.size(4)};
}

inline Ints output_sizes(const DepthwiseConv3dShape& s) {
  return {s.batch, s.channels * s.multiplier, s.output[0], s.output[1], s.output[2]};
}

inline double multiply_adds(const DepthwiseConv3dShape& s) {
  double product = static_cast<double>(s.batch) * s.channels * s.multiplier;
  for (int i = 0; i < 3; ++i) product *= static_cast<double>(s.output[i]) * s.kernel[i];
  return product;
}

inline void check_same_dtype(const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(),
                  "depthwise_conv3d: tensors must share one dtype");
}

// Refuses a bias that is not one value for each of `channels`.
inline void check_bias(const char* op, const Tensor& input, const std::optional<Tensor>& bias,
                       int64_t channels) {
  if (!bias) return;
  check_same_dtype(input, *bias);
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == channels, op,
                  ": bias must have one value per output channel");
}

// Makes a tensor that may be missing dense; its data, or null.
inline const void* dense_data(std::optional<Tensor>& tensor, bool channels_last = false) {
  if (!tensor) return nullptr;
  tensor = dense(*tensor, channels_last);
  return tensor->const_data_ptr();
}

using Geometry = std::tuple<Ints, Ints, Ints>;  // stride, padding before and after, dilation

// The public function's settings in their normal form.
inline Geometry normal_form(Triple stride, Triple padding, Triple dilation) {
  const auto [t, h, w] = padding;
  return {{stride.t, stride.h, stride.w}, {t, t, h, h, w, w}, {dilation.t, dilation.h, dilation.w}};
}

}  // namespace vmf::bindings
