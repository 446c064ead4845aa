"""Where PyTorch's own forward is faster than the kernels: few rules, all of them measured.

The measurements are `bench/results/amd-epyc-avx512-2-cores/depthwise_conv3d-crossover.csv`: one
thread, float32, channels last, forward only, both libraries limited to the same instruction set.
Of its 432 rows the rules name 6, all of them slower. 8 more are below 0.9 of its speed, mostly
at stride 2; rows like them are above, so no rule names them.
"""

import math
from collections.abc import Sequence

import torch

LANES = 16  # floats in a vector of AVX-512
LARGE_FRAME = 512 << 10  # bytes: with its result it fills the second-level cache
LARGE_MAP = 20 * 20  # positions


def slower_than_pytorch(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    dtype: torch.dtype,
    channels_last: bool,
    isa: str,
) -> str | None:
    """Why PyTorch's forward is faster than the CPU kernel for this call, or None if it is not.

    Args:
        input_shape: (N, C, T, H, W).
        weight_shape: (m*C, 1, kT, kH, kW).
        stride: for T, H, W.
        padding: for T, H, W, or pairs; no rule looks at it.
        dilation: for T, H, W.
        dtype: of all tensors.
        channels_last: whether the input is channels-last in memory.
        isa: the instruction set of the kernels, as `info` names it.
    """
    # oneDNN's AVX-512 kernel, which masks lanes and packs nothing; it is for float32 alone, and
    # PyTorch's contiguous and AVX2 forward were slower nearly everywhere.
    if isa != "avx512" or dtype != torch.float32 or not channels_last:
        return None
    channels, (kernel_t, *kernel_hw) = input_shape[1], weight_shape[2:]
    if weight_shape[0] != channels or any(s != 1 for s in stride) or any(d != 1 for d in dilation):
        return None
    positions = math.prod(input_shape[3:])
    if LANES // 2 < channels < LANES and positions >= LARGE_MAP:
        return "channels that leave lanes of a vector idle have to be packed (0.8 of its speed)"
    frame = positions * channels * dtype.itemsize
    if kernel_t == 1 and math.prod(kernel_hw) <= 9 and channels >= 256 and frame >= LARGE_FRAME:
        return "large frames with few taps wait for memory (0.7 to 0.95 of its speed)"
    return None
