// torch.ops.vmf_kernels.dynamic_relu and its gradient on the CPU: checks, allocation, threads.
#include "vmf/dynamic_relu.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "bindings/direct.h"

namespace vmf::bindings {
namespace {

constexpr double kOperationsPerElement = 8;  // memory binds: about that many multiply-adds' time

DynamicReluShape make_shape(const Tensor& features, const Tensor& a1, const Tensor& a2) {
  STD_TORCH_CHECK(features.dim() >= 2, "dynamic_relu: features must be (B, C, *spatial)");
  for (const Tensor* slopes : {&a1, &a2}) {
    STD_TORCH_CHECK(slopes->dim() == 2 && slopes->size(0) == features.size(0) &&
                        slopes->size(1) == features.size(1),
                    "dynamic_relu: a1 and a2 must be (B, C)");
    STD_TORCH_CHECK(slopes->scalar_type() == features.scalar_type(),
                    "dynamic_relu: tensors must share one dtype");
  }
  int64_t positions = 1;
  for (int64_t i = 2; i < features.dim(); ++i) positions *= features.size(i);
  return {features.size(0), features.size(1), positions, is_channels_last(features),
          dtype_of(features)};
}

double operations(const DynamicReluShape& shape) {
  return kOperationsPerElement * static_cast<double>(shape.batch) * shape.channels *
         shape.positions;
}

Tensor forward(Tensor features, Tensor a1, Tensor a2) {
  const auto shape = make_shape(features, a1, a2);
  features = dense(features, shape.channels_last);
  a1 = dense(a1);
  a2 = dense(a2);
  Tensor output = empty(features, sizes_of(features), shape.channels_last);
  const void *x = features.const_data_ptr(), *s1 = a1.const_data_ptr(), *s2 = a2.const_data_ptr();
  void* y = output.mutable_data_ptr();
  parallel(dynamic_relu_items(shape), operations(shape),
           [&](int64_t begin, int64_t end) { dynamic_relu(shape, x, s1, s2, y, begin, end); });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_output, Tensor features, Tensor a1,
                                            Tensor a2) {
  const auto shape = make_shape(features, a1, a2);
  STD_TORCH_CHECK(sizes_of(grad_output) == sizes_of(features) &&
                      grad_output.scalar_type() == features.scalar_type(),
                  "dynamic_relu: grad_output must have the shape and dtype of features");
  grad_output = dense(grad_output, shape.channels_last);
  features = dense(features, shape.channels_last);
  a1 = dense(a1);
  a2 = dense(a2);
  Tensor grad_features = empty(features, sizes_of(features), shape.channels_last);
  Tensor grad_a1 = empty(a1, sizes_of(a1)), grad_a2 = empty(a2, sizes_of(a2));
  Tensor scratch = bytes(features, dynamic_relu_backward_scratch(shape));
  const void *g = grad_output.const_data_ptr(), *x = features.const_data_ptr();
  const void *s1 = a1.const_data_ptr(), *s2 = a2.const_data_ptr();
  void *gx = grad_features.mutable_data_ptr(), *sums = scratch.mutable_data_ptr();
  parallel(dynamic_relu_items(shape), 2 * operations(shape), [&](int64_t begin, int64_t end) {
    dynamic_relu_backward(shape, g, x, s1, s2, gx, sums, begin, end);
  });
  dynamic_relu_backward_finish(shape, sums, grad_a1.mutable_data_ptr(), grad_a2.mutable_data_ptr());
  return {grad_features, grad_a1, grad_a2};
}

STABLE_TORCH_LIBRARY_IMPL(vmf_kernels, CPU, library) {
  library.impl("dynamic_relu", TORCH_BOX(&forward));
  library.impl("dynamic_relu_backward", TORCH_BOX(&backward));
}

const Direct direct_calls([](pybind11::module_& m) {
  m.def("infer_dynamic_relu", direct_inference(&forward));
  m.def("dynamic_relu", direct(&forward));
  m.def("dynamic_relu_backward", direct(&backward));
});

}  // namespace
}  // namespace vmf::bindings
