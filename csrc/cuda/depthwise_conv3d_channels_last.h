// The functions of vmf/cuda_depthwise_conv3d.h for tensors with channels last. The others are for
// what `refuses` does not refuse, and write where pairs may be written: 8 bytes, of 16 bits 4.
#pragma once

#include "vmf/cuda_depthwise_conv3d.h"

namespace vmf::cuda::channels_last {

const char* refuses(const DepthwiseConv3dShape& shape);
Tile tile(const DepthwiseConv3dShape& shape, Part part, int processors);
const char* convolve(const DepthwiseConv3dShape& shape, bool transposed, const void* from,
                     const void* weight, const void* bias, void* to, Device device);
int64_t grad_weight_scratch(const DepthwiseConv3dShape& shape, Device device);
const char* grad_weight(const DepthwiseConv3dShape& shape, const void* grad_output,
                        const void* input, void* scratch, void* grad_weight, void* grad_bias,
                        Device device);

}  // namespace vmf::cuda::channels_last
