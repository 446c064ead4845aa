// torch.ops.vmf_kernels.few_key_attention and its gradient on the CPU: checks, allocation, threads.
#include "vmf/few_key_attention.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "bindings/attention.h"

namespace vmf::bindings {
namespace {

Tensor forward(Tensor features, Tensor key, Tensor value, int64_t num_heads, double scale,
               bool residual) {
  const auto shape = attention_shape(features, {&key, &value}, num_heads, scale);
  features = dense(features, shape.channels_last);
  key = dense(key);
  value = dense(value);
  Tensor output = empty(features, sizes_of(features), shape.channels_last);
  const void *x = features.const_data_ptr(), *k = key.const_data_ptr();
  const void* v = value.const_data_ptr();
  void* y = output.mutable_data_ptr();
  parallel(few_key_attention_items(shape), 2 * multiply_adds(shape),
           [&](int64_t begin, int64_t end) {
             few_key_attention(shape, residual, x, k, v, y, begin, end);
           });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_output, Tensor features, Tensor key,
                                            Tensor value, int64_t num_heads, double scale,
                                            bool residual) {
  const auto shape = attention_shape(features, {&key, &value}, num_heads, scale);
  STD_TORCH_CHECK(sizes_of(grad_output) == sizes_of(features) &&
                      grad_output.scalar_type() == features.scalar_type(),
                  "few_key_attention: grad_output must have the shape and dtype of features");
  grad_output = dense(grad_output, shape.channels_last);
  features = dense(features, shape.channels_last);
  key = dense(key);
  value = dense(value);
  Tensor grad_features = empty(features, sizes_of(features), shape.channels_last);
  Tensor grad_key = empty(key, sizes_of(key)), grad_value = empty(value, sizes_of(value));
  Tensor scratch = bytes(features, few_key_attention_backward_scratch(shape));
  const void *g = grad_output.const_data_ptr(), *x = features.const_data_ptr();
  const void *k = key.const_data_ptr(), *v = value.const_data_ptr();
  void *gx = grad_features.mutable_data_ptr(), *partial = scratch.mutable_data_ptr();
  parallel(few_key_attention_items(shape), 5 * multiply_adds(shape),
           [&](int64_t begin, int64_t end) {
             few_key_attention_backward(shape, residual, g, x, k, v, gx, partial, begin, end);
           });
  few_key_attention_backward_finish(shape, partial, grad_key.mutable_data_ptr(),
                                    grad_value.mutable_data_ptr());
  return {grad_features, grad_key, grad_value};
}

// The public function without gradients.
Tensor infer(Tensor features, Tensor key, Tensor value, Int num_heads, std::optional<double> scale,
             bool residual) {
  const double factor = scale_or_default(scale, features, num_heads.value);
  return forward(std::move(features), std::move(key), std::move(value), num_heads.value, factor,
                 residual);
}

STABLE_TORCH_LIBRARY_IMPL(vmf_kernels, CPU, library) {
  library.impl("few_key_attention", TORCH_BOX(&forward));
  library.impl("few_key_attention_backward", TORCH_BOX(&backward));
}

const Direct direct_calls([](pybind11::module_& m) {
  m.def("infer_few_key_attention", direct_inference(&infer));
  m.def("few_key_attention", direct(&forward));
  m.def("few_key_attention_backward", direct(&backward));
});

}  // namespace
}  // namespace vmf::bindings
