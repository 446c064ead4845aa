"""The definition of correct: plain PyTorch, any device, any floating dtype."""

import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv3d_input, conv3d_weight

from vmf_kernels.layout import is_channels_last, to_layout, widen

Triple = tuple[int, int, int]
Padding = tuple[int, int, int, int, int, int]  # before and after T, H, W


def depthwise_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Triple,
    padding: Padding,
    dilation: Triple,
) -> Tensor:
    """`F.conv3d(groups=C)` with (before, after) padding; 16-bit dtypes accumulate in float32."""
    wide_bias = None if bias is None else widen(bias)
    wide = pytorch(widen(input), widen(weight), wide_bias, stride, padding, dilation)
    return to_layout(wide.to(input.dtype), is_channels_last(input))


def pytorch(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Triple,
    padding: Padding,
    dilation: Triple,
) -> Tensor:
    """The same in the dtype that comes: as PyTorch has it, where that is the fastest."""
    padded, conv_padding = _pad(input, padding)
    output = F.conv3d(padded, weight, bias, stride, conv_padding, dilation, groups=input.shape[1])
    return to_layout(output, is_channels_last(input))


def depthwise_conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output_size: list[int],
    stride: Triple,
    padding: Padding,
    dilation: Triple,
) -> Tensor:
    """Gradient of the input (N, C, T, H, W) of a convolution, plus a bias (C,).

    Here `input` is what comes back, like that convolution's output, and the result is like its
    input, in the layout of `input`.
    """
    padded_size = [*output_size[:2]] + [
        size + padding[2 * i] + padding[2 * i + 1] for i, size in enumerate(output_size[2:])
    ]
    output = conv3d_input(
        padded_size,
        widen(weight),
        widen(input),
        stride,
        0,
        dilation,
        groups=output_size[1],
    )
    for i, size in enumerate(output_size[2:]):
        output = output.narrow(i + 2, padding[2 * i], size)
    if bias is not None:
        output = output + widen(bias).view(-1, 1, 1, 1)
    return to_layout(output.to(input.dtype), is_channels_last(input))


def depthwise_conv3d_grad_weight(
    grad_output: Tensor,
    input: Tensor,
    kernel_size: Triple,
    stride: Triple,
    padding: Padding,
    dilation: Triple,
) -> tuple[Tensor, Tensor]:
    """Gradients of the weight (m*C, 1, kT, kH, kW) and of the bias (m*C,)."""
    padded, conv_padding = _pad(widen(input), padding)
    grad = widen(grad_output)
    grad_weight = conv3d_weight(
        padded,
        [grad_output.shape[1], 1, *kernel_size],
        grad,
        stride,
        conv_padding,
        dilation,
        groups=input.shape[1],
    )
    dtype = input.dtype
    return grad_weight.to(dtype).contiguous(), grad.sum((0, 2, 3, 4)).to(dtype)


def _pad(input: Tensor, padding: Padding) -> tuple[Tensor, Triple]:
    """What `F.conv3d` cannot pad itself is padded here; returns the input and the rest."""
    if padding[0::2] == padding[1::2]:
        return input, padding[0::2]
    t0, t1, h0, h1, w0, w1 = padding
    return F.pad(input, (w0, w1, h0, h1, t0, t1)), (0, 0, 0)
