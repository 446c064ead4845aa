// The entry points of vmf/few_query_attention.h: each calls the kernel of the instruction set in
// use.
#include "vmf/few_query_attention.h"

#include "cpu/few_query_attention.h"
#include "vmf/isa.h"

namespace vmf {
namespace {

const FewQueryAttentionKernels& kernels() {
  static const FewQueryAttentionKernels* const table[] = {
      // in the order of built_isas()
      &baseline::few_query_attention_kernels,
#if defined(__x86_64__)
      &avx2::few_query_attention_kernels,
      &avx512::few_query_attention_kernels,
#endif
  };
  return *table[current_isa_index()];
}

}  // namespace

int64_t few_query_attention_items(const AttentionShape& shape) { return kernels().items(shape); }

int64_t few_query_attention_scratch(const AttentionShape& shape) {
  return kernels().scratch(shape);
}

void few_query_attention(const AttentionShape& shape, const void* query, const void* features,
                         void* scratch, int64_t begin, int64_t end) {
  kernels().forward(shape, query, features, scratch, begin, end);
}

void few_query_attention_finish(const AttentionShape& shape, const void* scratch, void* output,
                                void* lse, void* exact) {
  kernels().finish(shape, scratch, output, lse, exact);
}

int64_t few_query_attention_backward_scratch(const AttentionShape& shape) {
  return kernels().backward_scratch(shape);
}

void few_query_attention_backward(const AttentionShape& shape, const void* grad_output,
                                  const void* query, const void* features, const void* output,
                                  const void* lse, void* grad_features, void* scratch,
                                  int64_t begin, int64_t end) {
  kernels().backward(shape, grad_output, query, features, output, lse, grad_features, scratch,
                     begin, end);
}

void few_query_attention_backward_finish(const AttentionShape& shape, const void* scratch,
                                         void* grad_query) {
  kernels().backward_finish(shape, scratch, grad_query);
}

}  // namespace vmf
