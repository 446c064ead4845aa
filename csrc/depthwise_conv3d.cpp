// The entry points of vmf/depthwise_conv3d.h: each calls the kernel of the instruction set in use.
#include "vmf/depthwise_conv3d.h"

#include "cpu/depthwise_conv3d.h"
#include "vmf/isa.h"

namespace vmf {
namespace {

struct Kernels {
  const DepthwiseConv3dKernels* gather;
  const DepthwiseConv3dGradWeightKernels* grad_weight;
};

// Whether the kernels with vectors half as wide are faster. They read channels-last tensors in
// place that have from half of AVX-512's lanes in channels to less than all, which its own kernels
// pack; 3x3x3 at stride 1 has the arithmetic to pay for that, but not for a copy for each output
// channel. Measured on Zen 5 with a multiplier: forward and weight gradient 1.3 to 2.4 times as
// fast, the input gradient, which both pack, 1.15 (6, stride 2) and 0.86 (2).
bool suits_half_vectors(const DepthwiseConv3dShape& s) {
  constexpr int64_t kLanes = 16;  // of AVX-512
  if (!s.channels_last || s.dtype == DType::f64) return false;
  if (s.channels < kLanes / 2 || s.channels >= kLanes) return false;
  int64_t taps = 1, strides = 1;
  for (int i = 0; i < 3; ++i) taps *= s.kernel[i], strides *= s.stride[i];
  return taps < 27 * strides || s.multiplier > 1 || s.channels == kLanes / 2;
}

const Kernels& kernels(const DepthwiseConv3dShape& shape) {
  static const Kernels table[] = {
      // in the order of built_isas()
      {&baseline::depthwise_conv3d_kernels, &baseline::depthwise_conv3d_grad_weight_kernels},
#if defined(__x86_64__)
      {&avx2::depthwise_conv3d_kernels, &avx2::depthwise_conv3d_grad_weight_kernels},
      {&avx512::depthwise_conv3d_kernels, &avx512::depthwise_conv3d_grad_weight_kernels},
#endif
  };
  const int isa = current_isa_index();
  return table[isa == 2 && suits_half_vectors(shape) ? 1 : isa];
}

// The same convolution with several rows as one, of `most` columns if it can be, where a kernel
// only goes along T: a row is the run of columns that the kernels set up for, and those of small
// maps are short.
DepthwiseConv3dShape longer_rows(DepthwiseConv3dShape s, int64_t most = 196) {
  for (int i = 1; i < 3; ++i) {
    if (s.kernel[i] != 1 || s.stride[i] != 1 || s.padding[i] != 0) return s;
    if (s.output[i] != s.input[i]) return s;
  }
  for (int64_t rows = s.input[1]; rows > 1; --rows) {
    if (s.input[1] % rows != 0 || rows * s.input[2] > most) continue;
    for (auto* size : {s.input, s.output}) {
      size[1] /= rows;
      size[2] *= rows;
    }
    break;
  }
  return s;
}

// The weight gradient's are shorter: vectors take turns while a row is in the first-level cache.
DepthwiseConv3dShape rows_to_sum(const DepthwiseConv3dShape& s) { return longer_rows(s, 64); }

}  // namespace

int64_t depthwise_conv3d_items(const DepthwiseConv3dShape& shape) {
  return kernels(shape).gather->items(longer_rows(shape), false);
}

void depthwise_conv3d(const DepthwiseConv3dShape& shape, const void* input, const void* weight,
                      const DepthwiseConv3dEpilogue& epilogue, void* output, int64_t begin,
                      int64_t end) {
  kernels(shape).gather->run(longer_rows(shape), false, input, weight, epilogue, output, begin,
                             end);
}

int64_t depthwise_conv_transpose3d_items(const DepthwiseConv3dShape& shape) {
  return kernels(shape).gather->items(longer_rows(shape), true);
}

void depthwise_conv_transpose3d(const DepthwiseConv3dShape& shape, const void* input,
                                const void* weight, const void* bias, void* output, int64_t begin,
                                int64_t end) {
  kernels(shape).gather->run(longer_rows(shape), true, input, weight, {.bias = bias}, output, begin,
                             end);
}

int64_t depthwise_conv3d_grad_weight_items(const DepthwiseConv3dShape& shape) {
  return kernels(shape).grad_weight->items(rows_to_sum(shape));
}

int64_t depthwise_conv3d_grad_weight_scratch(const DepthwiseConv3dShape& shape) {
  return kernels(shape).grad_weight->scratch(rows_to_sum(shape));
}

void depthwise_conv3d_grad_weight(const DepthwiseConv3dShape& shape, const void* grad_output,
                                  const void* input, void* scratch, int64_t begin, int64_t end) {
  kernels(shape).grad_weight->run(rows_to_sum(shape), grad_output, input, scratch, begin, end);
}

void depthwise_conv3d_grad_weight_finish(const DepthwiseConv3dShape& shape, const void* scratch,
                                         void* grad_weight, void* grad_bias) {
  kernels(shape).grad_weight->finish(rows_to_sum(shape), scratch, grad_weight, grad_bias);
}

}  // namespace vmf
