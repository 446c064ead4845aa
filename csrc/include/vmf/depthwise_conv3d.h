// Depthwise 3D convolution on raw pointers: forward, transposed (the input's gradient), and the
// gradients of weight and bias. No torch.
//
// Each function works on the items [begin, end) of [0, ..._items(shape)); any split of that range,
// in any order and on any threads, gives the same bits. The functions here choose the instruction
// set once (isa.h) and forward to the kernels of csrc/cpu/depthwise_conv3d.cpp.
#pragma once

#include <cstdint>

#include "vmf/dtype.h"

namespace vmf {

// Arrays of three are in the order T, H, W.
struct DepthwiseConv3dShape {
  int64_t batch;
  int64_t channels;    // of the input; the output has channels * multiplier
  int64_t multiplier;  // output channel j reads input channel j / multiplier
  int64_t input[3];
  int64_t output[3];
  int64_t kernel[3];
  int64_t stride[3];
  int64_t padding[3];  // before; what lies after follows from `output`
  int64_t dilation[3];
  bool channels_last;  // activations are N,T,H,W,C in memory, else N,C,T,H,W; both dense
  DType dtype;         // of every tensor here; arithmetic is in float (f64: in double)
};

// In the order of ACTIVATIONS in epilogue.py.
enum class Activation { none, relu, relu6, hardswish, silu, gelu, dynamic_relu };

// What is done to each sum before it is written: activation(sum + bias + residual).
struct DepthwiseConv3dEpilogue {
  const void* bias = nullptr;      // (channels * multiplier), or null
  const void* residual = nullptr;  // like the output, or null
  Activation activation = Activation::none;
  const void* slopes[2] = {};  // of dynamic_relu: (batch, channels * multiplier) each
};

// The weight is dense (channels * multiplier, kT, kH, kW) in either layout.
int64_t depthwise_conv3d_items(const DepthwiseConv3dShape& shape);
void depthwise_conv3d(const DepthwiseConv3dShape& shape, const void* input, const void* weight,
                      const DepthwiseConv3dEpilogue& epilogue, void* output, int64_t begin,
                      int64_t end);

// The transposed convolution, which the input's gradient is: `input` is like this convolution's
// output, `output` like its input, and `bias` (channels), or null.
int64_t depthwise_conv_transpose3d_items(const DepthwiseConv3dShape& shape);
void depthwise_conv_transpose3d(const DepthwiseConv3dShape& shape, const void* input,
                                const void* weight, const void* bias, void* output, int64_t begin,
                                int64_t end);

// In two steps: the items write partial sums into `scratch` (of ..._scratch bytes, which need not
// be initialised), then ..._finish adds them in a fixed order into grad_weight and grad_bias,
// either of which may be null.
int64_t depthwise_conv3d_grad_weight_items(const DepthwiseConv3dShape& shape);
int64_t depthwise_conv3d_grad_weight_scratch(const DepthwiseConv3dShape& shape);
void depthwise_conv3d_grad_weight(const DepthwiseConv3dShape& shape, const void* grad_output,
                                  const void* input, void* scratch, int64_t begin, int64_t end);
void depthwise_conv3d_grad_weight_finish(const DepthwiseConv3dShape& shape, const void* scratch,
                                         void* grad_weight, void* grad_bias);

}  // namespace vmf
