// Which depthwise 3D convolutions the CUDA kernels are compiled for.
#pragma once

#include <limits>

#include "vmf/cuda_depthwise_conv3d.h"

namespace vmf::cuda {

constexpr int64_t kMost = std::numeric_limits<int>::max();

inline const char* const kShapes =
    "the CUDA kernels are for float32, float16 and bfloat16, for kernels 1x3x3, 3x3x3, 5x3x3 and "
    "1x5x5 with a stride of 1 or 2 in H and W, 3x5x5, 5x5x5 and 7x7x7 with a stride of 1, and, "
    "with "
    "channels last, 3x1x1 and 5x1x1";
inline const char* const kSize = "a frame, or the number of blocks, is beyond 2**31 elements";

// Size of a kernel, and the stride in H and W.
template <int T, int H, int W, int S>
struct Form {
  static constexpr int kT = T, kH = H, kW = W, kStride = S;
};

// Calls f with the form of a shape, or returns why there is none.
template <class F>
const char* with_form(const DepthwiseConv3dShape& s, const F& f) {
  const auto is = [&](int64_t t, int64_t h, int64_t w, int64_t stride) {
    return s.kernel[0] == t && s.kernel[1] == h && s.kernel[2] == w && s.stride[0] == 1 &&
           s.stride[1] == stride && s.stride[2] == stride;
  };
  const bool dense = s.dilation[0] == 1 && s.dilation[1] == 1 && s.dilation[2] == 1;
  if (!dense || s.dtype == DType::f64) return kShapes;
  if (is(3, 1, 1, 1)) return f(Form<3, 1, 1, 1>{});
  if (is(5, 1, 1, 1)) return f(Form<5, 1, 1, 1>{});
  if (is(1, 3, 3, 1)) return f(Form<1, 3, 3, 1>{});
  if (is(3, 3, 3, 1)) return f(Form<3, 3, 3, 1>{});
  if (is(5, 3, 3, 1)) return f(Form<5, 3, 3, 1>{});
  if (is(1, 5, 5, 1)) return f(Form<1, 5, 5, 1>{});
  if (is(3, 5, 5, 1)) return f(Form<3, 5, 5, 1>{});
  if (is(5, 5, 5, 1)) return f(Form<5, 5, 5, 1>{});
  if (is(7, 7, 7, 1)) return f(Form<7, 7, 7, 1>{});
  if (is(1, 3, 3, 2)) return f(Form<1, 3, 3, 2>{});
  if (is(3, 3, 3, 2)) return f(Form<3, 3, 3, 2>{});
  if (is(5, 3, 3, 2)) return f(Form<5, 3, 3, 2>{});
  if (is(1, 5, 5, 2)) return f(Form<1, 5, 5, 2>{});
  return kShapes;
}

}  // namespace vmf::cuda
