// The functions that vmf_kernels/_cuda.py calls, in C.
#include <initializer_list>

#include "vmf/cuda_depthwise_conv3d.h"

#define VMF_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// The numbers of a DepthwiseConv3dShape, in their order.
vmf::DepthwiseConv3dShape read(const int64_t* numbers) {
  vmf::DepthwiseConv3dShape shape{};
  for (int64_t* number : {&shape.batch, &shape.channels, &shape.multiplier}) *number = *numbers++;
  for (int64_t* three :
       {shape.input, shape.output, shape.kernel, shape.stride, shape.padding, shape.dilation}) {
    for (int i = 0; i < 3; ++i) three[i] = *numbers++;
  }
  shape.channels_last = *numbers++ != 0;
  shape.dtype = static_cast<vmf::DType>(*numbers);
  return shape;
}

}  // namespace

VMF_EXPORT int vmf_cuda_version() { return vmf::cuda::cuda_version(); }

VMF_EXPORT const char* vmf_cuda_depthwise_conv3d_refuses(const int64_t* shape) {
  return vmf::cuda::depthwise_conv3d_refuses(read(shape));
}

// `part` as in vmf::cuda::Part; `tile` gets the numbers of a Tile.
VMF_EXPORT void vmf_cuda_depthwise_conv3d_tile(const int64_t* shape, int part, int processors,
                                               int64_t* tile) {
  const auto found =
      vmf::cuda::depthwise_conv3d_tile(read(shape), static_cast<vmf::cuda::Part>(part), processors);
  for (int64_t number : {found.blocks, found.channels, found.frames, found.positions}) {
    *tile++ = number;
  }
}

VMF_EXPORT const char* vmf_cuda_depthwise_conv3d(const int64_t* shape, const void* input,
                                                 const void* weight, const void* bias, void* output,
                                                 int processors, void* stream) {
  return vmf::cuda::depthwise_conv3d(read(shape), input, weight, bias, output,
                                     {processors, stream});
}

VMF_EXPORT const char* vmf_cuda_depthwise_conv_transpose3d(const int64_t* shape, const void* input,
                                                           const void* weight, const void* bias,
                                                           void* output, int processors,
                                                           void* stream) {
  return vmf::cuda::depthwise_conv_transpose3d(read(shape), input, weight, bias, output,
                                               {processors, stream});
}

VMF_EXPORT int64_t vmf_cuda_depthwise_conv3d_grad_weight_scratch(const int64_t* shape,
                                                                 const void* input,
                                                                 int processors) {
  return vmf::cuda::depthwise_conv3d_grad_weight_scratch(read(shape), input, {processors, nullptr});
}

VMF_EXPORT const char* vmf_cuda_depthwise_conv3d_grad_weight(const int64_t* shape,
                                                             const void* grad_output,
                                                             const void* input, void* scratch,
                                                             void* grad_weight, void* grad_bias,
                                                             int processors, void* stream) {
  return vmf::cuda::depthwise_conv3d_grad_weight(read(shape), grad_output, input, scratch,
                                                 grad_weight, grad_bias, {processors, stream});
}
