// What csrc/cpu/depthwise_conv3d.cpp exports once per instruction set. The functions are those of
// vmf/depthwise_conv3d.h.
#pragma once

#include "vmf/depthwise_conv3d.h"

namespace vmf {

struct DepthwiseConv3dKernels {
  decltype(&depthwise_conv3d_items) items;
  decltype(&depthwise_conv3d) forward;
  decltype(&depthwise_conv3d_grad_input_items) grad_input_items;
  decltype(&depthwise_conv3d_grad_input) grad_input;
  decltype(&depthwise_conv3d_grad_weight_items) grad_weight_items;
  decltype(&depthwise_conv3d_grad_weight_scratch) grad_weight_scratch;
  decltype(&depthwise_conv3d_grad_weight) grad_weight;
  decltype(&depthwise_conv3d_grad_weight_finish) grad_weight_finish;
};

namespace baseline {
extern const DepthwiseConv3dKernels depthwise_conv3d_kernels;
}
namespace avx2 {
extern const DepthwiseConv3dKernels depthwise_conv3d_kernels;
}
namespace avx512 {
extern const DepthwiseConv3dKernels depthwise_conv3d_kernels;
}

}  // namespace vmf
