// Depthwise 3D convolution: the plain version, for any shape.
//
// One item is a frame of a sample (forward, gradient of the input) or a block of channels (gradient
// of the weight). Channels-last works on kLanes channels at once, contiguous on kLanes columns.
#include "depthwise_conv3d.h"

#include <cstring>
#include <type_traits>

namespace vmf {
namespace VMF_ISA {
namespace {

constexpr int64_t kLanes = 32;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline double widen(double x) { return x; }
inline float widen(float x) { return x; }
inline float widen(BFloat16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline float widen(Float16 x) {
  uint32_t sign = (x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31, mantissa = x.bits & 1023;
  uint32_t bits;
  float y;
  if (exponent == 0) {
    y = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -y : y;
  }
  bits = exponent == 31 ? sign | 0x7f800000u | mantissa << 13
                        : sign | (exponent + 112) << 23 | mantissa << 13;
  std::memcpy(&y, &bits, 4);
  return y;
}

inline void narrow(double x, double* y) { *y = x; }
inline void narrow(float x, float* y) { *y = x; }
inline void narrow(float x, BFloat16* y) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) {
    y->bits = 0x7fc0;
  } else {
    y->bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
}
inline void narrow(float x, Float16* y) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    y->bits = static_cast<uint16_t>(sign | 0x7e00);
  } else if (magnitude >= 0x477ff000) {  // rounds to infinity
    y->bits = static_cast<uint16_t>(sign | 0x7c00);
  } else if (magnitude < 0x38800000) {  // subnormal: let the adder round at the right place
    float z;
    std::memcpy(&z, &magnitude, 4);
    z += 0.5f;
    uint32_t half;
    std::memcpy(&half, &z, 4);
    y->bits = static_cast<uint16_t>(sign | (half - 0x3f000000));
  } else {
    y->bits = static_cast<uint16_t>(
        sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
  }
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t volume(const int64_t size[3]) { return size[0] * size[1] * size[2]; }

// Where the elements of an activation are, in elements.
struct Strides {
  int64_t n, c, t, h, w;
  Strides(int64_t channels, const int64_t size[3], bool channels_last) {
    n = channels * volume(size);
    w = channels_last ? channels : 1;
    h = w * size[2];
    t = h * size[1];
    c = channels_last ? 1 : volume(size);
  }
};

// The input index under tap k of output index o.
inline int64_t source(const DepthwiseConv3dShape& s, int axis, int64_t o, int64_t k) {
  return o * s.stride[axis] - s.padding[axis] + k * s.dilation[axis];
}

// The output index that reads input index i through tap k, or -1.
inline int64_t target(const DepthwiseConv3dShape& s, int axis, int64_t i, int64_t k) {
  int64_t o = i + s.padding[axis] - k * s.dilation[axis];
  if (o < 0 || o % s.stride[axis] != 0) return -1;
  o /= s.stride[axis];
  return o < s.output[axis] ? o : -1;
}

template <typename T>
void forward(const DepthwiseConv3dShape& s, const T* input, const T* weight, const T* bias,
             T* output, int64_t begin, int64_t end) {
  using Acc = decltype(widen(T()));
  const int64_t outputs = s.channels * s.multiplier, taps = volume(s.kernel);
  const Strides x(s.channels, s.input, s.channels_last), y(outputs, s.output, s.channels_last);
  // Lanes run over channels, or over columns.
  const bool last = s.channels_last;
  const int64_t lane_end = last ? outputs : s.output[2], other_end = last ? s.output[2] : outputs;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / s.output[0], t = item % s.output[0];
    for (int64_t h = 0; h < s.output[1]; ++h) {
      for (int64_t other = 0; other < other_end; ++other) {
        for (int64_t first = 0; first < lane_end; first += kLanes) {
          const int64_t lanes = smaller(kLanes, lane_end - first);
          Acc sum[kLanes];
          for (int64_t i = 0; i < lanes; ++i) {
            sum[i] = bias == nullptr ? Acc(0) : widen(bias[last ? first + i : other]);
          }
          for (int64_t k = 0; k < taps; ++k) {
            const int64_t kt = k / (s.kernel[1] * s.kernel[2]), kh = k / s.kernel[2] % s.kernel[1];
            const int64_t kw = k % s.kernel[2];
            const int64_t it = source(s, 0, t, kt), ih = source(s, 1, h, kh);
            if (it < 0 || it >= s.input[0] || ih < 0 || ih >= s.input[1]) continue;
            const T* row = input + n * x.n + it * x.t + ih * x.h;
            if (last) {
              const int64_t iw = source(s, 2, other, kw);
              if (iw < 0 || iw >= s.input[2]) continue;
              for (int64_t i = 0; i < lanes; ++i) {
                const int64_t c = first + i;
                sum[i] += widen(row[iw * x.w + (s.multiplier == 1 ? c : c / s.multiplier)]) *
                          widen(weight[c * taps + k]);
              }
            } else {
              const T* from = row + other / s.multiplier * x.c;
              const Acc factor = widen(weight[other * taps + k]);
              for (int64_t i = 0; i < lanes; ++i) {
                const int64_t iw = source(s, 2, first + i, kw);
                if (iw >= 0 && iw < s.input[2]) sum[i] += widen(from[iw]) * factor;
              }
            }
          }
          T* to = output + n * y.n + t * y.t + h * y.h + (last ? other * y.w : other * y.c) + first;
          for (int64_t i = 0; i < lanes; ++i) narrow(sum[i], to + i);
        }
      }
    }
  }
}

template <typename T>
void grad_input(const DepthwiseConv3dShape& s, const T* grad_output, const T* weight, T* grad_input,
                int64_t begin, int64_t end) {
  using Acc = decltype(widen(T()));
  const int64_t outputs = s.channels * s.multiplier, taps = volume(s.kernel);
  const Strides x(s.channels, s.input, s.channels_last), y(outputs, s.output, s.channels_last);
  const bool last = s.channels_last;
  const int64_t lane_end = last ? s.channels : s.input[2];
  const int64_t other_end = last ? s.input[2] : s.channels;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / s.input[0], t = item % s.input[0];
    for (int64_t h = 0; h < s.input[1]; ++h) {
      for (int64_t other = 0; other < other_end; ++other) {
        for (int64_t first = 0; first < lane_end; first += kLanes) {
          const int64_t lanes = smaller(kLanes, lane_end - first);
          Acc sum[kLanes] = {};
          for (int64_t k = 0; k < taps; ++k) {
            const int64_t kt = k / (s.kernel[1] * s.kernel[2]), kh = k / s.kernel[2] % s.kernel[1];
            const int64_t kw = k % s.kernel[2];
            const int64_t ot = target(s, 0, t, kt), oh = target(s, 1, h, kh);
            if (ot < 0 || oh < 0) continue;
            const T* row = grad_output + n * y.n + ot * y.t + oh * y.h;
            const int64_t ow = last ? target(s, 2, other, kw) : 0;
            if (ow < 0) continue;
            for (int64_t i = 0; i < lanes; ++i) {
              const int64_t c = last ? first + i : other;
              const int64_t column = last ? ow : target(s, 2, first + i, kw);
              if (column < 0) continue;
              for (int64_t j = c * s.multiplier; j < (c + 1) * s.multiplier; ++j) {
                sum[i] += widen(row[column * y.w + j * y.c]) * widen(weight[j * taps + k]);
              }
            }
          }
          T* to = grad_input + n * x.n + t * x.t + h * x.h + other * (last ? x.w : x.c) + first;
          for (int64_t i = 0; i < lanes; ++i) narrow(sum[i], to + i);
        }
      }
    }
  }
}

// Scratch: one row of taps + 1 sums (the last is the bias') per output channel.
template <typename T, typename Acc>
void grad_weight(const DepthwiseConv3dShape& s, const T* grad_output, const T* input, Acc* scratch,
                 int64_t begin, int64_t end) {
  const int64_t outputs = s.channels * s.multiplier, taps = volume(s.kernel);
  const Strides x(s.channels, s.input, s.channels_last), y(outputs, s.output, s.channels_last);
  for (int64_t j = begin; j < end; ++j) {
    for (int64_t k = 0; k <= taps; ++k) {
      const int64_t kt = k / (s.kernel[1] * s.kernel[2]), kh = k / s.kernel[2] % s.kernel[1];
      const int64_t kw = k % s.kernel[2];
      double total = 0;
      for (int64_t n = 0; n < s.batch; ++n) {
        for (int64_t t = 0; t < s.output[0]; ++t) {
          const int64_t it = source(s, 0, t, kt);
          if (k < taps && (it < 0 || it >= s.input[0])) continue;
          for (int64_t h = 0; h < s.output[1]; ++h) {
            const int64_t ih = source(s, 1, h, kh);
            if (k < taps && (ih < 0 || ih >= s.input[1])) continue;
            const T* grads = grad_output + n * y.n + t * y.t + h * y.h + j * y.c;
            Acc sum = 0;
            if (k == taps) {
              for (int64_t w = 0; w < s.output[2]; ++w) sum += widen(grads[w * y.w]);
            } else {
              const T* row = input + n * x.n + it * x.t + ih * x.h + j / s.multiplier * x.c;
              for (int64_t w = 0; w < s.output[2]; ++w) {
                const int64_t iw = source(s, 2, w, kw);
                if (iw < 0 || iw >= s.input[2]) continue;
                sum += widen(grads[w * y.w]) * widen(row[iw * x.w]);
              }
            }
            total += sum;
          }
        }
      }
      scratch[j * (taps + 1) + k] = static_cast<Acc>(total);
    }
  }
}

template <typename T, typename Acc>
void grad_weight_finish(const DepthwiseConv3dShape& s, const Acc* scratch, T* grad_weight,
                        T* grad_bias) {
  const int64_t taps = volume(s.kernel);
  for (int64_t j = 0; j < s.channels * s.multiplier; ++j) {
    const Acc* sums = scratch + j * (taps + 1);
    if (grad_weight != nullptr) {
      for (int64_t k = 0; k < taps; ++k) narrow(sums[k], grad_weight + j * taps + k);
    }
    if (grad_bias != nullptr) narrow(sums[taps], grad_bias + j);
  }
}

// Calls `function` with a null pointer of the storage type as its argument.
template <typename Function>
void with_storage(DType dtype, Function function) {
  switch (dtype) {
    case DType::f64:
      return function(static_cast<double*>(nullptr));
    case DType::f32:
      return function(static_cast<float*>(nullptr));
    case DType::bf16:
      return function(static_cast<BFloat16*>(nullptr));
    case DType::f16:
      return function(static_cast<Float16*>(nullptr));
  }
}

int64_t forward_items(const DepthwiseConv3dShape& s) { return s.batch * s.output[0]; }

void forward_any(const DepthwiseConv3dShape& s, const void* input, const void* weight,
                 const void* bias, void* output, int64_t begin, int64_t end) {
  with_storage(s.dtype, [&](auto* storage) {
    using T = decltype(storage);
    forward(s, static_cast<const std::remove_pointer_t<T>*>(input),
            static_cast<const std::remove_pointer_t<T>*>(weight),
            static_cast<const std::remove_pointer_t<T>*>(bias), static_cast<T>(output), begin, end);
  });
}

int64_t grad_input_items(const DepthwiseConv3dShape& s) { return s.batch * s.input[0]; }

void grad_input_any(const DepthwiseConv3dShape& s, const void* grad_output, const void* weight,
                    void* grad, int64_t begin, int64_t end) {
  with_storage(s.dtype, [&](auto* storage) {
    using T = decltype(storage);
    grad_input(s, static_cast<const std::remove_pointer_t<T>*>(grad_output),
               static_cast<const std::remove_pointer_t<T>*>(weight), static_cast<T>(grad), begin,
               end);
  });
}

int64_t grad_weight_items(const DepthwiseConv3dShape& s) { return s.channels * s.multiplier; }

int64_t grad_weight_scratch(const DepthwiseConv3dShape& s) {
  return s.channels * s.multiplier * (volume(s.kernel) + 1) * (s.dtype == DType::f64 ? 8 : 4);
}

void grad_weight_any(const DepthwiseConv3dShape& s, const void* grad_output, const void* input,
                     void* scratch, int64_t begin, int64_t end) {
  with_storage(s.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    using Acc = decltype(widen(T()));
    grad_weight(s, static_cast<const T*>(grad_output), static_cast<const T*>(input),
                static_cast<Acc*>(scratch), begin, end);
  });
}

void grad_weight_finish_any(const DepthwiseConv3dShape& s, const void* scratch, void* grad_weight,
                            void* grad_bias) {
  with_storage(s.dtype, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    using Acc = decltype(widen(T()));
    grad_weight_finish(s, static_cast<const Acc*>(scratch), static_cast<T*>(grad_weight),
                       static_cast<T*>(grad_bias));
  });
}

}  // namespace

extern const DepthwiseConv3dKernels depthwise_conv3d_kernels = {
    forward_items,     forward_any,         grad_input_items, grad_input_any,
    grad_weight_items, grad_weight_scratch, grad_weight_any,  grad_weight_finish_any,
};

}  // namespace VMF_ISA
}  // namespace vmf
