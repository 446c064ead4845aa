// The entry points of vmf/few_key_attention.h: each calls the kernel of the instruction set in use.
#include "vmf/few_key_attention.h"

#include "cpu/few_key_attention.h"
#include "vmf/isa.h"

namespace vmf {
namespace {

const FewKeyAttentionKernels& kernels() {
  static const FewKeyAttentionKernels* const table[] = {
      // in the order of built_isas()
      &baseline::few_key_attention_kernels,
#if defined(__x86_64__)
      &avx2::few_key_attention_kernels,
      &avx512::few_key_attention_kernels,
#endif
  };
  return *table[current_isa_index()];
}

}  // namespace

int64_t few_key_attention_items(const AttentionShape& shape) { return kernels().items(shape); }

void few_key_attention(const AttentionShape& shape, bool residual, const void* features,
                       const void* key, const void* value, void* output, int64_t begin,
                       int64_t end) {
  kernels().forward(shape, residual, features, key, value, output, begin, end);
}

int64_t few_key_attention_backward_scratch(const AttentionShape& shape) {
  return kernels().backward_scratch(shape);
}

void few_key_attention_backward(const AttentionShape& shape, bool residual, const void* grad_output,
                                const void* features, const void* key, const void* value,
                                void* grad_features, void* scratch, int64_t begin, int64_t end) {
  kernels().backward(shape, residual, grad_output, features, key, value, grad_features, scratch,
                     begin, end);
}

void few_key_attention_backward_finish(const AttentionShape& shape, const void* scratch,
                                       void* grad_key, void* grad_value) {
  kernels().backward_finish(shape, scratch, grad_key, grad_value);
}

}  // namespace vmf
