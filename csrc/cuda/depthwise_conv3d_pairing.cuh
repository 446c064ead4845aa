// How channels of both sides of a depthwise convolution belong together.
#pragma once

#include "cuda/divisor.cuh"

namespace vmf::cuda {

// Which volumes of a tensor are read for volume v of another one: v / share * repeats + [0,
// repeats). A channel multiplier is the one in a convolution and the other in its transposed form.
struct Pairing {
  Divisor share;
  int repeats;

  template <class Int>
  __host__ __device__ Int source(Int v) const {
    return share.divide(v) * repeats;
  }
};

}  // namespace vmf::cuda
