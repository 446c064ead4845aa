// torch.ops.vmf_kernels.depthwise_conv3d and its weight's gradient on the CPU: checks, allocation,
// threads.
#include "vmf/depthwise_conv3d.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "bindings/depthwise_conv3d_crossover.h"
#include "bindings/depthwise_conv3d_shape.h"
#include "bindings/direct.h"

namespace vmf::bindings {
namespace {

// The shape of a forward call; refuses arguments that do not fit.
DepthwiseConv3dShape check(const Tensor& input, const Tensor& weight,
                           const std::optional<Tensor>& bias, const Ints& stride,
                           const Ints& padding, const Ints& dilation) {
  check_same_dtype(input, weight);
  STD_TORCH_CHECK(input.dim() == 5, "depthwise_conv3d: input must be (N, C, T, H, W)");
  check_bias("depthwise_conv3d", input, bias, weight.size(0));
  return make_shape(sizes_of(input), weight.size(0), kernel_of(weight), stride, padding, dilation,
                    is_channels_last(input), dtype_of(input));
}

// Convolves tensors that were checked; the rest of `epilogue` goes with the bias.
Tensor run(const DepthwiseConv3dShape& shape, Tensor input, Tensor weight,
           std::optional<Tensor> bias, DepthwiseConv3dEpilogue epilogue = {}) {
  epilogue.bias = dense_data(bias);
  input = dense(input, shape.channels_last);
  weight = dense(weight);
  Tensor output = empty(input, output_sizes(shape), shape.channels_last);
  const void* x = input.const_data_ptr();
  const void* w = weight.const_data_ptr();
  void* y = output.mutable_data_ptr();
  parallel(depthwise_conv3d_items(shape), multiply_adds(shape), [&](int64_t begin, int64_t end) {
    depthwise_conv3d(shape, x, w, epilogue, y, begin, end);
  });
  return output;
}

Tensor forward(Tensor input, Tensor weight, std::optional<Tensor> bias, Ints stride, Ints padding,
               Ints dilation) {
  const auto shape = check(input, weight, bias, stride, padding, dilation);
  return run(shape, std::move(input), std::move(weight), std::move(bias));
}

Tensor fused(Tensor input, Tensor weight, std::optional<Tensor> bias,
             std::optional<Tensor> residual, std::optional<Tensor> a1, std::optional<Tensor> a2,
             int64_t activation, Ints stride, Ints padding, Ints dilation) {
  const auto shape = check(input, weight, bias, stride, padding, dilation);
  constexpr auto kLast = Activation::dynamic_relu;
  STD_TORCH_CHECK(0 <= activation && activation <= static_cast<int64_t>(kLast),
                  "depthwise_conv3d: there is no such activation");
  DepthwiseConv3dEpilogue epilogue;
  epilogue.activation = static_cast<Activation>(activation);
  const Ints size = output_sizes(shape);
  STD_TORCH_CHECK(!residual || sizes_of(*residual) == size,
                  "depthwise_conv3d: residual must have the output's shape");
  const bool dynamic = epilogue.activation == kLast;
  STD_TORCH_CHECK(dynamic == a1.has_value() && dynamic == a2.has_value(),
                  "depthwise_conv3d: a1 and a2 belong to a dynamic ReLU");
  for (const auto* tensor : {&residual, &a1, &a2}) {
    if (*tensor) check_same_dtype(input, **tensor);
  }
  for (const auto* slope : {&a1, &a2}) {
    STD_TORCH_CHECK(!*slope || sizes_of(**slope) == Ints({size[0], size[1]}),
                    "depthwise_conv3d: a1 and a2 must be (N, m*C)");
  }
  epilogue.residual = dense_data(residual, shape.channels_last);
  epilogue.slopes[0] = dense_data(a1);
  epilogue.slopes[1] = dense_data(a2);
  return run(shape, std::move(input), std::move(weight), std::move(bias), epilogue);
}

std::tuple<Tensor, Tensor> grad_weight(Tensor grad_output, Tensor input, Ints kernel_size,
                                       Ints stride, Ints padding, Ints dilation) {
  check_same_dtype(grad_output, input);
  STD_TORCH_CHECK(grad_output.dim() == 5 && input.dim() == 5,
                  "depthwise_conv3d: grad_output and input must have 5 dimensions");
  const bool channels_last = is_channels_last(input);
  const int64_t channels = grad_output.size(1);
  const auto shape = make_shape(sizes_of(input), channels, kernel_size, stride, padding, dilation,
                                channels_last, dtype_of(input));
  STD_TORCH_CHECK(sizes_of(grad_output) == output_sizes(shape),
                  "depthwise_conv3d: grad_output must have the output's shape");
  grad_output = dense(grad_output, channels_last);
  input = dense(input, channels_last);
  Tensor weight = empty(input, Ints{channels, 1, kernel_size[0], kernel_size[1], kernel_size[2]});
  Tensor bias = empty(input, Ints{channels});
  Tensor scratch = bytes(input, depthwise_conv3d_grad_weight_scratch(shape));
  const void* g = grad_output.const_data_ptr();
  const void* x = input.const_data_ptr();
  void* partial = scratch.mutable_data_ptr();
  parallel(depthwise_conv3d_grad_weight_items(shape), multiply_adds(shape),
           [&](int64_t begin, int64_t end) {
             depthwise_conv3d_grad_weight(shape, g, x, partial, begin, end);
           });
  depthwise_conv3d_grad_weight_finish(shape, partial, weight.mutable_data_ptr(),
                                      bias.mutable_data_ptr());
  return {weight, bias};
}

DepthwiseConv3dShape check(const Tensor& input, const Tensor& weight,
                           const std::optional<Tensor>& bias, const Geometry& geometry) {
  const auto& [stride, padding, dilation] = geometry;
  return check(input, weight, bias, stride, padding, dilation);
}

// The normal form, all arguments checked.
Geometry normalise(Tensor input, Tensor weight, std::optional<Tensor> bias, Triple stride,
                   Triple padding, Triple dilation) {
  const Geometry geometry = normal_form(stride, padding, dilation);
  check(input, weight, bias, geometry);
  return geometry;
}

// Why PyTorch is faster for a forward call without gradients; null if it is not.
const char* slower(Tensor input, Tensor weight, std::optional<Tensor> bias, Ints stride,
                   Ints padding, Ints dilation) {
  return slower_than_pytorch(check(input, weight, bias, stride, padding, dilation));
}

// PyTorch's own forward, of a call that slower_than_pytorch() names.
Tensor pytorch(const DepthwiseConv3dShape& s, const Tensor& input, const Tensor& weight,
               const std::optional<Tensor>& bias) {
  using torch::headeronly::IntHeaderOnlyArrayRef;
  using torch::stable::detail::from;
  std::array<StableIValue, 7> stack{from(input),
                                    from(weight),
                                    from(bias),
                                    from(IntHeaderOnlyArrayRef(s.stride, 3)),
                                    from(IntHeaderOnlyArrayRef(s.padding, 3)),
                                    from(IntHeaderOnlyArrayRef(s.dilation, 3)),
                                    from(s.channels)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::conv3d", "", stack.data(), TORCH_ABI_VERSION));
  return dense(torch::stable::detail::to<Tensor>(stack[0]), s.channels_last);
}

// The public function without gradients: on this backend, or wherever it is fastest.
Tensor infer_cpu(Tensor input, Tensor weight, std::optional<Tensor> bias, Triple stride,
                 Triple padding, Triple dilation) {
  const auto shape = check(input, weight, bias, normal_form(stride, padding, dilation));
  return run(shape, std::move(input), std::move(weight), std::move(bias));
}

Tensor infer(Tensor input, Tensor weight, std::optional<Tensor> bias, Triple stride, Triple padding,
             Triple dilation) {
  const auto shape = check(input, weight, bias, normal_form(stride, padding, dilation));
  if (slower_than_pytorch(shape) != nullptr) return pytorch(shape, input, weight, bias);
  return run(shape, std::move(input), std::move(weight), std::move(bias));
}

STABLE_TORCH_LIBRARY_IMPL(vmf_kernels, CPU, library) {
  library.impl("depthwise_conv3d", TORCH_BOX(&forward));
  library.impl("depthwise_conv3d_fused", TORCH_BOX(&fused));
  library.impl("depthwise_conv3d_grad_weight", TORCH_BOX(&grad_weight));
}

const Direct direct_calls([](pybind11::module_& m) {
  m.def("infer_depthwise_conv3d", direct_inference(&infer));
  m.def("infer_depthwise_conv3d_cpu", direct_inference(&infer_cpu));
  m.def("slower_depthwise_conv3d", question(&slower));
  m.def("normalise_depthwise_conv3d", direct_uncast(&normalise));
  m.def("depthwise_conv3d", direct(&forward));
  m.def("depthwise_conv3d_fused", direct(&fused));
  m.def("depthwise_conv3d_grad_weight", direct(&grad_weight));
});

}  // namespace
}  // namespace vmf::bindings
