// What the kernels of depthwise_conv3d export, once per instruction set.
#pragma once

#include "vmf/depthwise_conv3d.h"

namespace vmf {

// Forward, and the transposed convolution where `transposed`: then `from` is like the output, `to`
// like the input, and the epilogue has a bias at most.
struct DepthwiseConv3dKernels {
  int64_t (*items)(const DepthwiseConv3dShape& shape, bool transposed);
  void (*run)(const DepthwiseConv3dShape& shape, bool transposed, const void* from,
              const void* weight, const DepthwiseConv3dEpilogue& epilogue, void* to, int64_t begin,
              int64_t end);
};

// As in vmf/depthwise_conv3d.h.
struct DepthwiseConv3dGradWeightKernels {
  decltype(&depthwise_conv3d_grad_weight_items) items;
  decltype(&depthwise_conv3d_grad_weight_scratch) scratch;
  decltype(&depthwise_conv3d_grad_weight) run;
  decltype(&depthwise_conv3d_grad_weight_finish) finish;
};

namespace baseline {
extern const DepthwiseConv3dKernels depthwise_conv3d_kernels;
extern const DepthwiseConv3dGradWeightKernels depthwise_conv3d_grad_weight_kernels;
}  // namespace baseline
namespace avx2 {
extern const DepthwiseConv3dKernels depthwise_conv3d_kernels;
extern const DepthwiseConv3dGradWeightKernels depthwise_conv3d_grad_weight_kernels;
}  // namespace avx2
namespace avx512 {
extern const DepthwiseConv3dKernels depthwise_conv3d_kernels;
extern const DepthwiseConv3dGradWeightKernels depthwise_conv3d_grad_weight_kernels;
}  // namespace avx512

}  // namespace vmf
