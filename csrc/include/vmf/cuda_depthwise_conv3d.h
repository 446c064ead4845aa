// Depthwise 3D convolution on a CUDA device: forward, transposed, and the gradients of weight and
// bias, of (N, C, T, H, W) tensors, contiguous or channels last. No torch.
//
// Each function enqueues its kernels on a stream (a cudaStream_t) and returns null, or what is
// wrong.
#pragma once

#include "vmf/depthwise_conv3d.h"

namespace vmf::cuda {

struct Device {
  int processors;  // multiprocessors, for which there should be work
  void* stream;
};

// Of the CUDA that the kernels were compiled with, as 13000; 0 where they were compiled for the
// host.
int cuda_version();

enum class Part { forward, transposed, grad_weight };

// How the kernel of a part divides its work: into so many blocks, each of so many channels (of
// several samples, where they are contiguous), frames of the result, and positions of a frame.
struct Tile {
  int64_t blocks, channels, frames, positions;
};

// Of what is not refused, where tensors are aligned to 16 bytes.
Tile depthwise_conv3d_tile(const DepthwiseConv3dShape& shape, Part part, int processors);

// Null, or which shapes the kernels are not made for.
const char* depthwise_conv3d_refuses(const DepthwiseConv3dShape& shape);

const char* depthwise_conv3d(const DepthwiseConv3dShape& shape, const void* input,
                             const void* weight, const void* bias, void* output, Device device);

// As depthwise_conv_transpose3d of vmf/depthwise_conv3d.h.
const char* depthwise_conv_transpose3d(const DepthwiseConv3dShape& shape, const void* input,
                                       const void* weight, const void* bias, void* output,
                                       Device device);

// `scratch` has ..._scratch bytes, which need not be initialised; grad_weight or grad_bias may be
// null.
int64_t depthwise_conv3d_grad_weight_scratch(const DepthwiseConv3dShape& shape, const void* input,
                                             Device device);
const char* depthwise_conv3d_grad_weight(const DepthwiseConv3dShape& shape, const void* grad_output,
                                         const void* input, void* scratch, void* grad_weight,
                                         void* grad_bias, Device device);

}  // namespace vmf::cuda
