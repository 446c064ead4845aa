// torch.ops.vmf_kernels.few_query_attention and its gradient on the CPU: checks, allocation,
// threads.
#include "vmf/few_query_attention.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "bindings/attention.h"

namespace vmf::bindings {
namespace {

using torch::headeronly::ScalarType;

ScalarType arithmetic(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor empty_arithmetic(const Tensor& like, const Ints& size) {
  return empty_strided(like, arithmetic(like), size, dense_strides(size, false));
}

// Fills `output`, `lse` and, unless it is null, `exact`.
void run(const AttentionShape& shape, const Tensor& query, const Tensor& features, Tensor& output,
         void* scratch, void* lse, void* exact) {
  const Tensor dense_features = dense(features, shape.channels_last), dense_query = dense(query);
  const void *q = dense_query.const_data_ptr(), *x = dense_features.const_data_ptr();
  parallel(
      few_query_attention_items(shape), 2 * multiply_adds(shape),
      [&](int64_t begin, int64_t end) { few_query_attention(shape, q, x, scratch, begin, end); });
  few_query_attention_finish(shape, scratch, output.mutable_data_ptr(), lse, exact);
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor query, Tensor features, int64_t num_heads,
                                           double scale) {
  const auto shape = attention_shape(features, {&query}, num_heads, scale);
  const bool rounded = query.scalar_type() != arithmetic(query);
  Tensor output = empty(query, sizes_of(query));
  Tensor lse = empty_arithmetic(query, {shape.batch, shape.heads, shape.tokens});
  Tensor exact = empty_arithmetic(query, rounded ? sizes_of(query) : Ints{0});
  Tensor scratch = bytes(features, few_query_attention_scratch(shape));
  run(shape, query, features, output, scratch.mutable_data_ptr(), lse.mutable_data_ptr(),
      rounded ? exact.mutable_data_ptr() : nullptr);
  return {output, lse, exact};
}

std::tuple<Tensor, Tensor> backward(Tensor grad_output, Tensor query, Tensor features,
                                    Tensor output, Tensor lse, int64_t num_heads, double scale) {
  const auto shape = attention_shape(features, {&query, &grad_output}, num_heads, scale);
  STD_TORCH_CHECK(sizes_of(output) == sizes_of(query) &&
                      output.scalar_type() == arithmetic(query) &&
                      sizes_of(lse) == Ints({shape.batch, shape.heads, shape.tokens}) &&
                      lse.scalar_type() == arithmetic(query),
                  "few_query_attention: output and lse must be what the forward pass saved");
  features = dense(features, shape.channels_last);
  grad_output = dense(grad_output);
  query = dense(query);
  output = dense(output);
  lse = dense(lse);
  Tensor grad_features = empty(features, sizes_of(features), shape.channels_last);
  Tensor grad_query = empty(query, sizes_of(query));
  Tensor scratch = bytes(features, few_query_attention_backward_scratch(shape));
  const void *g = grad_output.const_data_ptr(), *q = query.const_data_ptr();
  const void *x = features.const_data_ptr(), *y = output.const_data_ptr();
  const void* saved = lse.const_data_ptr();
  void *gx = grad_features.mutable_data_ptr(), *partial = scratch.mutable_data_ptr();
  parallel(few_query_attention_items(shape), 5 * multiply_adds(shape),
           [&](int64_t begin, int64_t end) {
             few_query_attention_backward(shape, g, q, x, y, saved, gx, partial, begin, end);
           });
  few_query_attention_backward_finish(shape, partial, grad_query.mutable_data_ptr());
  return {grad_query, grad_features};
}

// The public function without gradients: nobody wants the log-sum-exp.
Tensor infer(Tensor query, Tensor features, Int num_heads, std::optional<double> scale) {
  const auto shape = attention_shape(features, {&query}, num_heads.value,
                                     scale_or_default(scale, features, num_heads.value));
  Tensor output = empty(query, sizes_of(query));
  const int64_t lse_bytes =  // and what follows starts on a cache line
      (shape.batch * shape.heads * shape.tokens * (shape.dtype == DType::f64 ? 8 : 4) + 63) / 64 *
      64;
  Tensor scratch = bytes(features, lse_bytes + few_query_attention_scratch(shape));
  char* memory = static_cast<char*>(scratch.mutable_data_ptr());
  run(shape, query, features, output, memory + lse_bytes, memory, nullptr);
  return output;
}

STABLE_TORCH_LIBRARY_IMPL(vmf_kernels, CPU, library) {
  library.impl("few_query_attention", TORCH_BOX(&forward));
  library.impl("few_query_attention_backward", TORCH_BOX(&backward));
}

const Direct direct_calls([](pybind11::module_& m) {
  m.def("infer_few_query_attention", direct_inference(&infer));
  m.def("few_query_attention", direct(&forward));
  m.def("few_query_attention_backward", direct(&backward));
});

}  // namespace
}  // namespace vmf::bindings
