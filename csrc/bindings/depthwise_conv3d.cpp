// torch.ops.vmf_kernels.depthwise_conv3d and its gradients on the CPU: checks, allocation, threads.
#include "vmf/depthwise_conv3d.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "bindings/depthwise_conv3d_crossover.h"
#include "bindings/direct.h"

namespace vmf::bindings {
namespace {

constexpr int64_t kLimit = int64_t{1} << 40;  // as in geometry.py: beyond any memory

// The shape of the whole problem from those of its parts; refuses parts that do not fit.
DepthwiseConv3dShape make_shape(const Ints& input, int64_t out_channels, const Ints& kernel,
                                const Ints& stride, const Ints& padding, const Ints& dilation,
                                bool channels_last, DType dtype) {
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
Ints kernel_of(const Tensor& weight) {
  STD_TORCH_CHECK(weight.dim() == 5 && weight.size(1) == 1,
                  "depthwise_conv3d: weight must be (m*C, 1, kT, kH, kW)");
  return {weight.size(2), weight.size(3), weight.size(4)};
}

Ints output_sizes(const DepthwiseConv3dShape& s) {
  return {s.batch, s.channels * s.multiplier, s.output[0], s.output[1], s.output[2]};
}

double multiply_adds(const DepthwiseConv3dShape& s) {
  double product = static_cast<double>(s.batch) * s.channels * s.multiplier;
  for (int i = 0; i < 3; ++i) product *= static_cast<double>(s.output[i]) * s.kernel[i];
  return product;
}

void check_same_dtype(const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(),
                  "depthwise_conv3d: tensors must share one dtype");
}

void check_grad_output(const Tensor& grad_output, const DepthwiseConv3dShape& shape) {
  STD_TORCH_CHECK(sizes_of(grad_output) == output_sizes(shape),
                  "depthwise_conv3d: grad_output must have the output's shape");
}

// The shape of a forward call; refuses arguments that do not fit.
DepthwiseConv3dShape check(const Tensor& input, const Tensor& weight,
                           const std::optional<Tensor>& bias, const Ints& stride,
                           const Ints& padding, const Ints& dilation) {
  check_same_dtype(input, weight);
  STD_TORCH_CHECK(input.dim() == 5, "depthwise_conv3d: input must be (N, C, T, H, W)");
  if (bias) {
    check_same_dtype(input, *bias);
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0),
                    "depthwise_conv3d: bias must have one value per output channel");
  }
  return make_shape(sizes_of(input), weight.size(0), kernel_of(weight), stride, padding, dilation,
                    is_channels_last(input), dtype_of(input));
}

// Makes a tensor that may be missing dense; its data, or null.
const void* dense_data(std::optional<Tensor>& tensor, bool channels_last = false) {
  if (!tensor) return nullptr;
  tensor = dense(*tensor, channels_last);
  return tensor->const_data_ptr();
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

Tensor grad_input(Tensor grad_output, Tensor weight, Ints input_size, Ints stride, Ints padding,
                  Ints dilation) {
  check_same_dtype(grad_output, weight);
  STD_TORCH_CHECK(grad_output.dim() == 5, "depthwise_conv3d: grad_output must have 5 dimensions");
  const bool channels_last = is_channels_last(grad_output);
  const auto shape = make_shape(input_size, weight.size(0), kernel_of(weight), stride, padding,
                                dilation, channels_last, dtype_of(grad_output));
  check_grad_output(grad_output, shape);
  grad_output = dense(grad_output, channels_last);
  weight = dense(weight);
  Tensor result = empty(grad_output, input_size, channels_last);
  const void* g = grad_output.const_data_ptr();
  const void* w = weight.const_data_ptr();
  void* out = result.mutable_data_ptr();
  parallel(depthwise_conv3d_grad_input_items(shape), multiply_adds(shape),
           [&](int64_t begin, int64_t end) {
             depthwise_conv3d_grad_input(shape, g, w, out, begin, end);
           });
  return result;
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
  check_grad_output(grad_output, shape);
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

using Geometry = std::tuple<Ints, Ints, Ints>;  // stride, padding before and after, dilation

// The public function's settings in their normal form.
Geometry normal_form(Triple stride, Triple padding, Triple dilation) {
  const auto [t, h, w] = padding;
  return {{stride.t, stride.h, stride.w}, {t, t, h, h, w, w}, {dilation.t, dilation.h, dilation.w}};
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

// The public function without gradients, where PyTorch is not faster.
Tensor infer(Tensor input, Tensor weight, std::optional<Tensor> bias, Triple stride, Triple padding,
             Triple dilation) {
  const auto shape = check(input, weight, bias, normal_form(stride, padding, dilation));
  if (slower_than_pytorch(shape) != nullptr) {
    throw std::runtime_error("depthwise_conv3d: PyTorch is faster here");
  }
  return run(shape, std::move(input), std::move(weight), std::move(bias));
}

STABLE_TORCH_LIBRARY_IMPL(vmf_kernels, CPU, library) {
  library.impl("depthwise_conv3d", TORCH_BOX(&forward));
  library.impl("depthwise_conv3d_fused", TORCH_BOX(&fused));
  library.impl("depthwise_conv3d_grad_input", TORCH_BOX(&grad_input));
  library.impl("depthwise_conv3d_grad_weight", TORCH_BOX(&grad_weight));
}

const Direct direct_calls([](pybind11::module_& m) {
  m.def("infer_depthwise_conv3d", direct_inference(&infer));
  m.def("slower_depthwise_conv3d", question(&slower));
  m.def("normalise_depthwise_conv3d", direct_uncast(&normalise));
  m.def("depthwise_conv3d", direct(&forward));
  m.def("depthwise_conv3d_fused", direct(&fused));
  m.def("depthwise_conv3d_grad_input", direct(&grad_input));
  m.def("depthwise_conv3d_grad_weight", direct(&grad_weight));
});

}  // namespace
}  // namespace vmf::bindings
