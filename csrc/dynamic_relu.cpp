// The entry points of vmf/dynamic_relu.h: each calls the kernel of the instruction set in use.
#include "vmf/dynamic_relu.h"

#include "cpu/dynamic_relu.h"
#include "vmf/isa.h"

namespace vmf {
namespace {

const DynamicReluKernels& kernels() {
  static const DynamicReluKernels* const table[] = {
      // in the order of built_isas()
      &baseline::dynamic_relu_kernels,
#if defined(__x86_64__)
      &avx2::dynamic_relu_kernels,
      &avx512::dynamic_relu_kernels,
#endif
  };
  return *table[current_isa_index()];
}

}  // namespace

int64_t dynamic_relu_items(const DynamicReluShape& shape) { return kernels().items(shape); }

void dynamic_relu(const DynamicReluShape& shape, const void* features, const void* a1,
                  const void* a2, void* output, int64_t begin, int64_t end) {
  kernels().forward(shape, features, a1, a2, output, begin, end);
}

int64_t dynamic_relu_backward_scratch(const DynamicReluShape& shape) {
  return kernels().scratch(shape);
}

void dynamic_relu_backward(const DynamicReluShape& shape, const void* grad_output,
                           const void* features, const void* a1, const void* a2,
                           void* grad_features, void* scratch, int64_t begin, int64_t end) {
  kernels().backward(shape, grad_output, features, a1, a2, grad_features, scratch, begin, end);
}

void dynamic_relu_backward_finish(const DynamicReluShape& shape, const void* scratch, void* grad_a1,
                                  void* grad_a2) {
  kernels().finish(shape, scratch, grad_a1, grad_a2);
}

}  // namespace vmf
