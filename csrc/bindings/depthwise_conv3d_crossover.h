// Where PyTorch's own forward is faster than the kernels: few rules, all of them measured.
//
// The measurements are `python -m bench.crossover` for AVX2 and AVX-512 (both libraries limited to
// the same), in one thread and in two:
// bench/results/amd-epyc-family-26-model-2-avx512-2-cores/depthwise_conv3d-crossover.csv. Rows of
// one call differ by a tenth from run to run, so a rule is for a kind of call all of whose rows
// are slower. Other calls, mid-sized ones with AVX-512 above all, are at 0.8 to 1 of PyTorch's
// speed while neighbours are above: no rule names them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>

#include "vmf/depthwise_conv3d.h"
#include "vmf/isa.h"

namespace vmf::bindings {

// Why PyTorch's forward is faster for this call; null if it is not.
inline const char* slower_than_pytorch(const DepthwiseConv3dShape& s) {
  constexpr int64_t kIdle = 8, kVector = 16;   // channels: half a vector of AVX-512, and one
  constexpr int64_t kLargeFrame = 512 * 1024;  // bytes: it and its result fill the second level
  constexpr int64_t kLargeMap = 28 * 28;       // positions
  // oneDNN's kernel is for float32 alone; PyTorch's contiguous forward was slower nearly always.
  if (s.dtype != DType::f32 || !s.channels_last || s.multiplier != 1) return nullptr;
  const auto is_one = [](int64_t n) { return n == 1; };
  if (!std::all_of(s.dilation, s.dilation + 3, is_one)) return nullptr;
  const std::string isa = current_isa();
  const bool avx512 = isa == "avx512";
  if (!avx512 && isa != "avx2") return nullptr;

  const int64_t positions = s.input[1] * s.input[2], taps = s.kernel[1] * s.kernel[2];
  const int64_t bytes = 4 * s.batch * s.channels * s.input[0] * positions;
  const bool idle = avx512 && kIdle < s.channels && s.channels < kVector && bytes >= 1000000;
  if (!std::all_of(s.stride, s.stride + 3, is_one)) {
    const bool halved = s.stride[0] == 1 && s.stride[1] == 2 && s.stride[2] == 2;
    return avx512 && halved && s.kernel[0] == 3 && taps == 9 && s.channels >= 192 &&
                   positions >= kLargeMap && bytes <= 20000000
               ? "PyTorch is faster here: stride 2 over large maps of many channels (0.65 to 0.97 "
                 "of its speed)"
               : nullptr;
  }
  if (taps == 1) {
    // In one thread PyTorch takes another road, 5 to 15 times slower. With five taps large calls
    // are at its speed here and there.
    const bool large = s.kernel[0] <= 3 && (avx512 ? s.channels >= 192 && bytes >= 9000000
                                                   : s.channels >= 96 && bytes >= 4500000);
    return (large || idle) && s.kernel[0] > 1 && torch::stable::get_num_threads() > 1
               ? "PyTorch is faster here: a kernel along T in several threads (0.45 to 1 of its "
                 "speed)"
               : nullptr;
  }
  if (idle && positions >= kLargeMap) {
    return "PyTorch is faster here: channels that leave lanes idle are packed (0.5 to 0.95 of its "
           "speed)";
  }
  if (!avx512 && s.kernel[0] == 1 && taps <= 9 && s.channels >= 256 &&
      4 * positions * s.channels >= kLargeFrame) {
    return "PyTorch is faster here: large frames with few taps (0.3 to 0.97 of its speed)";
  }
  return nullptr;
}

}  // namespace vmf::bindings
