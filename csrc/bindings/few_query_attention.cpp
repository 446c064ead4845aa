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
  return torch::stable::empty(size, arithmetic(like), std::nullopt, like.device());
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor query, Tensor features, int64_t num_heads,
                                           double scale) {
  const auto shape = attention_shape(features, {&query}, num_heads, scale);
  features = dense(features, shape.channels_last);
  query = torch::stable::contiguous(query);
  const bool rounded = query.scalar_type() != arithmetic(query);
  Tensor output = empty(query, sizes_of(query));
  Tensor lse = empty_arithmetic(query, {shape.batch, shape.heads, shape.tokens});
  Tensor exact = empty_arithmetic(query, rounded ? sizes_of(query) : Ints{0});
  Tensor scratch = bytes(features, few_query_attention_scratch(shape));
  const void *q = query.const_data_ptr(), *x = features.const_data_ptr();
  void* partial = scratch.mutable_data_ptr();
  parallel(
      few_query_attention_items(shape), 2 * multiply_adds(shape),
      [&](int64_t begin, int64_t end) { few_query_attention(shape, q, x, partial, begin, end); });
  few_query_attention_finish(shape, partial, output.mutable_data_ptr(), lse.mutable_data_ptr(),
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
  grad_output = torch::stable::contiguous(grad_output);
  query = torch::stable::contiguous(query);
  output = torch::stable::contiguous(output);
  lse = torch::stable::contiguous(lse);
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

STABLE_TORCH_LIBRARY_IMPL(vmf_kernels, CPU, library) {
  library.impl("few_query_attention", TORCH_BOX(&forward));
  library.impl("few_query_attention_backward", TORCH_BOX(&backward));
}

}  // namespace
}  // namespace vmf::bindings
