// Loops over every product of a depthwise convolution, for the tests of its kernels.
#pragma once

#include "vmf/depthwise_conv3d.h"

namespace vmf::test {

inline int64_t volume(const int64_t (&size)[3]) { return size[0] * size[1] * size[2]; }

// Where an element of an activation with `channels` channels lies.
inline int64_t at(const DepthwiseConv3dShape& s, const int64_t (&size)[3], int64_t channels,
                  int64_t n, int64_t c, int64_t t, int64_t h, int64_t w) {
  const int64_t position = (t * size[1] + h) * size[2] + w;
  return s.channels_last ? (n * volume(size) + position) * channels + c
                         : (n * channels + c) * volume(size) + position;
}

// Calls visit(input element, weight element, output element, output channel) for every product.
template <class Visit>
void each_product(const DepthwiseConv3dShape& s, const Visit& visit) {
  const int64_t channels = s.channels * s.multiplier, taps = volume(s.kernel);
  for (int64_t n = 0; n < s.batch; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t p = 0; p < volume(s.output); ++p) {
        const int64_t o[3] = {p / (s.output[1] * s.output[2]), p / s.output[2] % s.output[1],
                              p % s.output[2]};
        for (int64_t k = 0; k < taps; ++k) {
          const int64_t tap[3] = {k / (s.kernel[1] * s.kernel[2]), k / s.kernel[2] % s.kernel[1],
                                  k % s.kernel[2]};
          int64_t i[3];
          bool inside = true;
          for (int d = 0; d < 3; ++d) {
            i[d] = o[d] * s.stride[d] - s.padding[d] + tap[d] * s.dilation[d];
            inside = inside && 0 <= i[d] && i[d] < s.input[d];
          }
          if (!inside) continue;
          visit(at(s, s.input, s.channels, n, c / s.multiplier, i[0], i[1], i[2]), c * taps + k,
                at(s, s.output, channels, n, c, o[0], o[1], o[2]), c);
        }
      }
    }
  }
}

}  // namespace vmf::test
