// Where PyTorch's own forward is faster than the kernels: few rules, all of them measured.
//
// The measurements are bench/results/amd-epyc-avx512-2-cores/depthwise_conv3d-crossover.csv: one
// thread, float32, channels last, forward only, both libraries limited to the same instruction set.
// Of its 432 rows the rules name 6, all of them slower. 8 more are below 0.9 of PyTorch's speed,
// mostly at stride 2; rows like them are above, so no rule names them.
#pragma once

#include "vmf/depthwise_conv3d.h"
#include "vmf/isa.h"

namespace vmf::bindings {

// Why PyTorch's forward is faster for this call; null if it is not.
inline const char* slower_than_pytorch(const DepthwiseConv3dShape& s) {
  constexpr int64_t kLanes = 16;               // floats in a vector of AVX-512
  constexpr int64_t kLargeFrame = 512 * 1024;  // bytes: it and its result fill the second level
  constexpr int64_t kLargeMap = 20 * 20;       // positions
  // oneDNN's AVX-512 kernel masks lanes and packs nothing. It is for float32 alone, and PyTorch's
  // contiguous and AVX2 forward were slower nearly everywhere.
  if (s.dtype != DType::f32 || !s.channels_last || s.multiplier != 1) return nullptr;
  for (int i = 0; i < 3; ++i) {
    if (s.stride[i] != 1 || s.dilation[i] != 1) return nullptr;
  }
  const int64_t positions = s.input[1] * s.input[2];
  const bool idle_lanes = kLanes / 2 < s.channels && s.channels < kLanes && positions >= kLargeMap;
  const bool large_frames = s.kernel[0] == 1 && s.kernel[1] * s.kernel[2] <= 9 &&
                            s.channels >= 256 && positions * s.channels * 4 >= kLargeFrame;
  if ((!idle_lanes && !large_frames) || current_isa() != "avx512") return nullptr;
  return idle_lanes
             ? "PyTorch is faster here: channels that leave lanes idle are packed (0.8 of its "
               "speed)"
             : "PyTorch is faster here: large frames with few taps (0.7 to 0.95 of its speed)";
}

}  // namespace vmf::bindings
