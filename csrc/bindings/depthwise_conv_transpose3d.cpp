// torch.ops.vmf_kernels.depthwise_conv_transpose3d on the CPU: checks, allocation, threads.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "bindings/depthwise_conv3d_shape.h"
#include "bindings/direct.h"
#include "vmf/depthwise_conv3d.h"

namespace vmf::bindings {
namespace {

// The shape of the convolution from `output_size` to the size of the input, with its settings.
DepthwiseConv3dShape shape_of(const Tensor& input, const Tensor& weight, const Ints& output_size,
                              const Ints& stride, const Ints& padding, const Ints& dilation) {
  return make_shape(output_size, weight.size(0), kernel_of(weight), stride, padding, dilation,
                    is_channels_last(input), dtype_of(input));
}

// Of tensors that were checked.
Tensor run(const DepthwiseConv3dShape& shape, Tensor input, Tensor weight,
           std::optional<Tensor> bias, const Ints& output_size) {
  const void* b = dense_data(bias);
  input = dense(input, shape.channels_last);
  weight = dense(weight);
  Tensor output = empty(input, output_size, shape.channels_last);
  const void* x = input.const_data_ptr();
  const void* w = weight.const_data_ptr();
  void* y = output.mutable_data_ptr();
  parallel(depthwise_conv_transpose3d_items(shape), multiply_adds(shape),
           [&](int64_t begin, int64_t end) {
             depthwise_conv_transpose3d(shape, x, w, b, y, begin, end);
           });
  return output;
}

Tensor transpose(Tensor input, Tensor weight, std::optional<Tensor> bias, Ints output_size,
                 Ints stride, Ints padding, Ints dilation) {
  check_same_dtype(input, weight);
  STD_TORCH_CHECK(input.dim() == 5, "depthwise_conv_transpose3d: input must be (N, C, T, H, W)");
  const auto shape = shape_of(input, weight, output_size, stride, padding, dilation);
  STD_TORCH_CHECK(sizes_of(input) == output_sizes(shape),
                  "depthwise_conv_transpose3d: the output's size does not go with the input's");
  check_bias("depthwise_conv_transpose3d", input, bias, shape.channels);
  return run(shape, std::move(input), std::move(weight), std::move(bias), output_size);
}

// Size of the output along an axis; refuses what is no convolution's gradient.
int64_t output_side(int64_t side, int64_t kernel, int64_t stride, int64_t padding, int64_t more,
                    int64_t dilation) {
  STD_TORCH_CHECK(0 < side && side < kLimit && 0 < kernel && 0 < stride &&
                      stride <= kLimit / side && 0 <= padding && padding < kLimit && 0 < dilation &&
                      dilation <= kLimit / kernel && 0 <= more && more < stride,
                  "depthwise_conv_transpose3d: these settings have no output");
  const int64_t result = (side - 1) * stride - 2 * padding + dilation * (kernel - 1) + more + 1;
  STD_TORCH_CHECK(result > 0, "depthwise_conv_transpose3d: the output must have a position");
  return result;
}

// What the public function's arguments are to `transpose`: sizes along T, H, W, the settings with
// padding before and after, and output_padding behind the padding.
using Prepared = std::tuple<Ints, Ints, Ints, Ints, Ints>;

// For a weight without a multiplier, (C, 1, kT, kH, kW): one with it is repeated in Python.
Prepared normalise(Tensor input, Tensor weight, std::optional<Tensor> bias, Triple stride,
                   Triple padding, Triple output_padding, Triple dilation) {
  dtype_of(input);
  check_same_dtype(input, weight);
  const Ints kernel = kernel_of(weight);
  STD_TORCH_CHECK(input.dim() == 5 && weight.size(0) == input.size(1),
                  "depthwise_conv_transpose3d: weight must have the input's channels");
  check_bias("depthwise_conv_transpose3d", input, bias, weight.size(0));
  const auto [strides, pads, dilations] = normal_form(stride, padding, dilation);
  const Ints more = {output_padding.t, output_padding.h, output_padding.w};
  Ints size(3);
  double elements = static_cast<double>(weight.size(0));
  for (int i = 0; i < 3; ++i) {
    size[i] =
        output_side(input.size(i + 2), kernel[i], strides[i], pads[2 * i], more[i], dilations[i]);
    elements *= static_cast<double>(size[i]);
  }
  STD_TORCH_CHECK(elements <= static_cast<double>(kLimit),
                  "depthwise_conv_transpose3d: the output must have at most 2**40 elements");
  return {size, strides, pads, more, dilations};
}

// The public function without gradients.
Tensor infer(Tensor input, Tensor weight, std::optional<Tensor> bias, Triple stride, Triple padding,
             Triple output_padding, Triple dilation) {
  const auto [side, strides, pads, more, dilations] =
      normalise(input, weight, bias, stride, padding, output_padding, dilation);
  const Ints size = {input.size(0), input.size(1), side[0], side[1], side[2]};
  const auto shape = shape_of(input, weight, size, strides, pads, dilations);
  return run(shape, std::move(input), std::move(weight), std::move(bias), size);
}

STABLE_TORCH_LIBRARY_IMPL(vmf_kernels, CPU, library) {
  library.impl("depthwise_conv_transpose3d", TORCH_BOX(&transpose));
}

const Direct direct_calls([](pybind11::module_& m) {
  m.def("infer_depthwise_conv_transpose3d", direct_inference(&infer));
  m.def("normalise_depthwise_conv_transpose3d", direct_uncast(&normalise));
  m.def("depthwise_conv_transpose3d", direct(&transpose));
});

}  // namespace
}  // namespace vmf::bindings
