// Where PyTorch's own forward is faster than the kernels: few rules, all of them measured.
//
// The measurements are `python -m bench.crossover` for AVX2 and AVX-512 (both libraries limited to
// the same), in one thread and in two: bench/results/*/depthwise_conv3d-crossover.csv. Rows of
// one call differ by a tenth from run to run, so a rule is for a kind of call all of whose rows
// are slower, on Zen 4 and on Zen 5. Other calls, mid-sized ones with AVX-512 above all, are at 0.8
// to 1 of PyTorch's speed while neighbours are above: no rule names them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>

#include "vmf/depthwise_conv3d.h"
#include "vmf/isa.h"

namespace vmf::bindings {

// In bfloat16, where the CPU multiplies it: oneDNN's kernel for that is ahead of ours, which widen
// every value, but for small calls, and for large maps that ours read in place.
inline const char* slower_in_bfloat16(const DepthwiseConv3dShape& s) {
#if defined(__x86_64__)
  static const bool native = __builtin_cpu_supports("avx512bf16");
#else
  constexpr bool native = false;
#endif
  if (!native || current_isa() != std::string("avx512")) return nullptr;
  const int64_t bytes = 2 * s.batch * s.channels * s.input[0] * s.input[1] * s.input[2];
  const bool along_t = s.kernel[1] * s.kernel[2] == 1;
  const bool measured = s.stride[0] == 1 && s.stride[1] <= 2 && s.stride[2] == s.stride[1];
  return measured && bytes >= 700000 && (along_t || bytes <= 4800000)
             ? "PyTorch is faster here: this CPU multiplies bfloat16 (0.3 to 0.95 of its speed)"
             : nullptr;
}

// Why PyTorch's forward is faster for this call; null if it is not.
inline const char* slower_than_pytorch(const DepthwiseConv3dShape& s) {
  constexpr int64_t kIdle = 8, kVector = 16;   // channels: half a vector of AVX-512, and one
  constexpr int64_t kLargeFrame = 512 * 1024;  // bytes: it and its result fill the second level
  constexpr int64_t kLargeMap = 28 * 28;       // positions
  // PyTorch's contiguous forward was slower nearly always.
  if (!s.channels_last || s.multiplier != 1) return nullptr;
  const auto is_one = [](int64_t n) { return n == 1; };
  if (!std::all_of(s.dilation, s.dilation + 3, is_one)) return nullptr;
  if (s.dtype == DType::bf16) return slower_in_bfloat16(s);
  if (s.dtype != DType::f32) return nullptr;  // oneDNN has no such kernel
  const std::string isa = current_isa();
  const bool avx512 = isa == "avx512";
  if (!avx512 && isa != "avx2") return nullptr;

  const int64_t positions = s.input[1] * s.input[2], taps = s.kernel[1] * s.kernel[2];
  const int64_t bytes = 4 * s.batch * s.channels * s.input[0] * positions;
  const bool idle = avx512 && kIdle < s.channels && s.channels < kVector && bytes >= 1000000;
  const bool threads = torch::stable::get_num_threads() > 1;
  if (!std::all_of(s.stride, s.stride + 3, is_one)) return nullptr;
  if (taps == 1) {
    // In one thread PyTorch takes another road, 5 to 15 times slower. With five taps some large
    // calls are at its speed.
    const bool large = s.kernel[0] <= 3 ? bytes >= 4500000
                                        : s.kernel[0] == 5 && bytes >= 9000000 && bytes <= 12000000;
    const bool wide = !avx512 && s.channels >= 96 && large;
    return (wide || idle) && s.kernel[0] > 1 && threads
               ? "PyTorch is faster here: a kernel along T in several threads (0.3 to 0.98 of its "
                 "speed)"
               : nullptr;
  }
  if (idle && positions >= kLargeMap) {
    return "PyTorch is faster here: channels that leave lanes idle are packed (0.4 to 0.95 of its "
           "speed)";
  }
  if (!avx512 && threads && s.kernel[0] == 1 && taps <= 9 && s.channels >= 256 &&
      4 * positions * s.channels >= kLargeFrame) {
    return "PyTorch is faster here: large frames with few taps (0.3 to 0.95 of its speed)";
  }
  return nullptr;
}

}  // namespace vmf::bindings
