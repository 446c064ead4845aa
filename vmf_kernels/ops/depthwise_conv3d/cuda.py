"""The CUDA C++ kernels (csrc/cuda/depthwise_conv3d*.cu): usual kernel sizes, both layouts."""

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from vmf_kernels import _cuda
from vmf_kernels.layout import empty_in_layout, is_channels_last, to_layout
from vmf_kernels.ops.depthwise_conv3d.geometry import output_size

Triple = tuple[int, ...]  # T, H, W


@functools.lru_cache(maxsize=4096)
def _numbers(*numbers: int) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _shape(
    features: Tensor, input: Any, output: Any, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> Any:
    """A DepthwiseConv3dShape; `features` are any of the problem's, which say layout and dtype."""
    return _numbers(
        input[0], input[1], output[1] // input[1], *input[2:], *output[2:], *kernel, *stride,
        *padding[::2], *dilation, is_channels_last(features), _cuda.DTYPES[features.dtype],
    )  # fmt: skip


def _refuses(features: Tensor, *shape: Any) -> str | None:
    if 0 in shape[0] or 0 in shape[1]:
        return "it is for tensors with elements"
    if _cuda.missing() or features.dtype not in _cuda.DTYPES:
        return None  # which others say
    reason = _cuda.functions()["depthwise_conv3d_refuses"](_shape(features, *shape))
    return None if reason is None else reason.decode()


def refuses(
    input: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any
) -> str | None:
    """What the kernels do not cover, in words."""
    size = output_size(input.shape, weight.shape, stride, padding, dilation)
    if input.dim() == 4:
        input = input.unsqueeze(0)
        size = (1, *size)
    return _refuses(input, input.shape, size, weight.shape[2:], stride, padding, dilation)


def transpose_refuses(
    input: Tensor, weight: Tensor, bias: Any, size: Any, stride: Any, padding: Any, dilation: Any
) -> str | None:
    """What the kernels of the transposed convolution do not cover, in words."""
    return _refuses(input, size, input.shape, weight.shape[2:], stride, padding, dilation)


def grad_weight_refuses(
    grad_output: Tensor, input: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> str | None:
    """What the kernels of the weight's gradient do not cover, in words."""
    return _refuses(input, input.shape, grad_output.shape, kernel, stride, padding, dilation)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _launch(
    name: str, shape: Any, input: Tensor, weight: Tensor, bias: Tensor | None, size: Any
) -> Tensor:
    """Runs one direction's function of the library on dense tensors."""
    last = is_channels_last(input)
    input, weight = to_layout(input, last), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    output = empty_in_layout(input, tuple(size), last)
    _cuda.run(name, shape, *map(_pointer, (input, weight, bias, output)), *_cuda.device(input))
    return output


def depthwise_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Triple,
    padding: tuple[int, ...],
    dilation: Triple,
) -> Tensor:
    """Launches the forward kernel."""
    size = output_size(input.shape, weight.shape, stride, padding, dilation)
    shape = _shape(input, input.shape, size, weight.shape[2:], stride, padding, dilation)
    return _launch("depthwise_conv3d", shape, input, weight, bias, size)


def depthwise_conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output_size: list[int],
    stride: Triple,
    padding: tuple[int, ...],
    dilation: Triple,
) -> Tensor:
    """Launches the kernel of the other direction."""
    shape = _shape(input, output_size, input.shape, weight.shape[2:], stride, padding, dilation)
    return _launch("depthwise_conv_transpose3d", shape, input, weight, bias, output_size)


def depthwise_conv3d_grad_weight(
    grad_output: Tensor,
    input: Tensor,
    kernel_size: list[int],
    stride: Triple,
    padding: tuple[int, ...],
    dilation: Triple,
) -> tuple[Tensor, Tensor]:
    """Launches the kernel of the sums, and the sum of its parts."""
    shape = _shape(input, input.shape, grad_output.shape, kernel_size, stride, padding, dilation)
    last = is_channels_last(input)
    grad_output, input = to_layout(grad_output, last), to_layout(input, last)
    channels = grad_output.shape[1]
    grad_weight = input.new_empty((channels, 1, *kernel_size))
    grad_bias = input.new_empty((channels,))
    processors, stream = _cuda.device(input)
    size = _cuda.functions()["depthwise_conv3d_grad_weight_scratch"]
    bytes = size(shape, input.data_ptr(), processors)
    scratch = torch.empty(bytes, dtype=torch.uint8, device=input.device)
    pointers = map(_pointer, (grad_output, input, scratch, grad_weight, grad_bias))
    _cuda.run("depthwise_conv3d_grad_weight", shape, *pointers, processors, stream)
    return grad_weight, grad_bias
