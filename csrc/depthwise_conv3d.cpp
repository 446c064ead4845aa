// The entry points of vmf/depthwise_conv3d.h: each calls the kernel of the instruction set in use.
#include "vmf/depthwise_conv3d.h"

#include "cpu/depthwise_conv3d.h"
#include "vmf/isa.h"

namespace vmf {
namespace {

const DepthwiseConv3dKernels& kernels() {
  static const DepthwiseConv3dKernels* const table[] = {  // in the order of built_isas()
      &baseline::depthwise_conv3d_kernels,
#if defined(__x86_64__)
      &avx2::depthwise_conv3d_kernels,
      &avx512::depthwise_conv3d_kernels,
#endif
  };
  return *table[current_isa_index()];
}

}  // namespace

int64_t depthwise_conv3d_items(const DepthwiseConv3dShape& shape) { return kernels().items(shape); }

void depthwise_conv3d(const DepthwiseConv3dShape& shape, const void* input, const void* weight,
                      const void* bias, void* output, int64_t begin, int64_t end) {
  kernels().forward(shape, input, weight, bias, output, begin, end);
}

int64_t depthwise_conv3d_grad_input_items(const DepthwiseConv3dShape& shape) {
  return kernels().grad_input_items(shape);
}

void depthwise_conv3d_grad_input(const DepthwiseConv3dShape& shape, const void* grad_output,
                                 const void* weight, void* grad_input, int64_t begin, int64_t end) {
  kernels().grad_input(shape, grad_output, weight, grad_input, begin, end);
}

int64_t depthwise_conv3d_grad_weight_items(const DepthwiseConv3dShape& shape) {
  return kernels().grad_weight_items(shape);
}

int64_t depthwise_conv3d_grad_weight_scratch(const DepthwiseConv3dShape& shape) {
  return kernels().grad_weight_scratch(shape);
}

void depthwise_conv3d_grad_weight(const DepthwiseConv3dShape& shape, const void* grad_output,
                                  const void* input, void* scratch, int64_t begin, int64_t end) {
  kernels().grad_weight(shape, grad_output, input, scratch, begin, end);
}

void depthwise_conv3d_grad_weight_finish(const DepthwiseConv3dShape& shape, const void* scratch,
                                         void* grad_weight, void* grad_bias) {
  kernels().grad_weight_finish(shape, scratch, grad_weight, grad_bias);
}

}  // namespace vmf
