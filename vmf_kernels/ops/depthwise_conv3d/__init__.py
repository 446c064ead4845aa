"""Depthwise 3D convolution."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vmf_kernels.checks import wants_grad
from vmf_kernels.ops.depthwise_conv3d import epilogue
from vmf_kernels.ops.depthwise_conv3d.dispatch import OP


def depthwise_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: Any = 0,
    dilation: int | Sequence[int] = 1,
    *,
    activation: str | tuple[Tensor, Tensor] | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Convolves every channel with its own 3D kernels.

    Equivalent to `torch.nn.functional.conv3d(..., groups=C)`, and to a padding that `conv3d`
    cannot do: different before and after. An activation and a residual may follow in the same
    pass.

    Args:
        input: (N, C, T, H, W) or (C, T, H, W), any floating dtype, any strides.
        weight: (m*C, 1, kT, kH, kW) with channel multiplier m >= 1: output channel j reads input
            channel j // m. Same dtype and device as the input.
        bias: (m*C,) or None.
        stride: an int, or three for T, H, W.
        padding: zeros around the input: an int, three ints, "valid" (none), "same" (stride 1
            only: the output has the input's size; the extra zero of an even kernel comes after),
            or three (before, after) pairs. Causal in time: `((kT - 1, 0), (p, p), (p, p))`.
        dilation: an int, or three.
        activation: "relu", "relu6", "hardswish", "silu", "gelu" (exact), or the slopes (a1, a2),
            both (N, m*C), of a dynamic ReLU `max(a1 y, a2 y)`.
        residual: shape of the output, same dtype and device. The result is
            `activation(conv(input) + bias + residual)`; without gradients, in one pass.

    Returns:
        (N, m*C, T', H', W') or (m*C, T', H', W'), in the input's dtype and memory format
        (contiguous or channels_last_3d). 16-bit inputs are accumulated in float32.

    Raises:
        ValueError: shapes, dtypes, devices or values do not fit.
        TypeError: an argument has the wrong type.
        NotImplementedError, RuntimeError: the backend that `use_backend` asks for cannot run it.
    """
    if activation is None and residual is None:
        return OP(input, weight, bias, stride, padding, dilation)
    slopes = activation if isinstance(activation, tuple | list) else ()
    if wants_grad(input, weight, bias, residual, *slopes):
        output = OP(input, weight, bias, stride, padding, dilation)
        return epilogue.step_by_step(output, activation, residual)
    return epilogue.OP(input, weight, bias, stride, padding, dilation, activation, residual)
