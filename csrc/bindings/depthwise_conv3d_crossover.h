// Where PyTorch's own forward is faster than the kernels: few rules, all of them measured.
//
// The measurements are `python -m bench.crossover` for AVX2 and AVX-512 (both libraries limited to
// the same), in one thread and in two: bench/results/*/depthwise_conv3d-crossover.csv. Rows of
// one call differ by a tenth from run to run, so a rule is for a kind of call all of whose rows
// are slower, on Zen 4 and on Zen 5. No rule names calls that are slower here and there while their
// neighbours are not.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>

#include "vmf/depthwise_conv3d.h"
#include "vmf/isa.h"

namespace vmf::bindings {

// What the rules ask of a call with channels last, and of the machine.
struct Crossover {
  explicit Crossover(const DepthwiseConv3dShape& s)
      : avx512(current_isa() == std::string("avx512")),
        several_threads(torch::stable::get_num_threads() > 1),
        channels(s.channels),
        kernel_t(s.kernel[0]),
        taps(s.kernel[1] * s.kernel[2]),
        positions(s.input[1] * s.input[2]),
        elements(s.batch * s.channels * s.input[0] * positions),
        idle_lanes(avx512 && 8 < channels && channels < 16 && kernel_t * taps <= 27) {}

  bool avx512, several_threads;
  int64_t channels, kernel_t, taps, positions, elements;
  bool idle_lanes;  // channels are more than half a vector and less than a whole one
};

// In bfloat16, where the CPU multiplies it: oneDNN's kernels for that are ahead of ours, which
// widen every value, in mid-sized calls.
inline const char* slower_in_bfloat16(const Crossover& c) {
#if defined(__x86_64__)
  static const bool native = __builtin_cpu_supports("avx512bf16");
  static const bool halves = __builtin_cpu_is("amdfam19h");  // Zen 4
#else
  constexpr bool native = false, halves = false;
#endif
  constexpr auto multiplies =
      "PyTorch is faster here: this CPU multiplies bfloat16 (0.4 to 0.98 of its speed)";
  if (!native || !c.avx512 || (c.taps > 1 && c.positions < 10 * 10)) return nullptr;
  if (c.idle_lanes) {
    return c.elements >= 300000 && (c.taps == 1 || c.positions >= 28 * 28) &&
                   (!c.several_threads || c.kernel_t * c.taps > 9)
               ? multiplies
               : nullptr;
  }
  if (c.taps == 1) {
    return halves && c.channels <= 96 && c.elements >= (c.several_threads ? 1700000 : 1000000)
               ? "PyTorch is faster here: this CPU multiplies bfloat16, and widens it in halves of "
                 "a vector (0.5 to 0.9 of its speed)"
               : nullptr;
  }
  if (c.taps > 9) return nullptr;
  const bool early = !c.several_threads && c.kernel_t <= 3;
  const int64_t most = early || c.kernel_t == 1 ? 2000000 : 3400000;
  return c.elements >= (early ? 610000 : 1250000) && c.elements <= most ? multiplies : nullptr;
}

// Why PyTorch's forward is faster for this call; null if it is not.
inline const char* slower_than_pytorch(const DepthwiseConv3dShape& s) {
  // PyTorch's contiguous forward was slower nearly always.
  if (!s.channels_last || s.multiplier != 1) return nullptr;
  const auto is_one = [](int64_t n) { return n == 1; };
  if (!std::all_of(s.dilation, s.dilation + 3, is_one)) return nullptr;
  if (!std::all_of(s.stride, s.stride + 3, is_one)) return nullptr;
  // It would have to copy the input to pad it differently before and after.
  for (int i = 0; i < 3; ++i) {
    if (s.output[i] + s.kernel[i] - 1 != s.input[i] + 2 * s.padding[i]) return nullptr;
  }
  const Crossover c(s);
  if (s.dtype == DType::bf16) return slower_in_bfloat16(c);
  if (s.dtype != DType::f32) return nullptr;  // oneDNN has no such kernel
  const bool packed = c.idle_lanes && c.taps > 1;
  const int64_t least = c.kernel_t * c.taps == 27 ? 250000 : 400000;
  return packed && c.positions >= 28 * 28 && c.elements >= least
             ? "PyTorch is faster here: channels that leave lanes idle are packed (0.6 to 0.95 of "
               "its speed)"
             : nullptr;
}

}  // namespace vmf::bindings
