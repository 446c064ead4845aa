"""The CUDA C++ kernels (csrc/cuda/depthwise_conv3d*.cu): usual kernel sizes, both layouts."""

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from vmf_kernels import _cuda
from vmf_kernels._runs import Run, launcher
from vmf_kernels.layout import densifier, is_channels_last, maker
from vmf_kernels.ops.depthwise_conv3d import cuda_gains
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
    if features.is_cuda and torch.cuda.is_available():
        reason = _cuda.too_old(features.get_device())
        if reason is not None:
            return reason
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


def _how(part: str, features: Tensor, shape: Any, kernel: Any, stride: Any, multiplier: int) -> str:
    """The tile of a part, in words, and why Triton does not run it."""
    processors, _ = _cuda.device(features)
    tile = (ctypes.c_int64 * 4)()
    number = cuda_gains.PARTS.index(part)
    _cuda.functions()["depthwise_conv3d_tile"](shape, number, processors, tile)
    blocks, channels, frames, positions = tile
    text = f"{blocks} blocks of {channels} channels, {frames} frames and {positions} positions"
    return text + cuda_gains.told(part, features, kernel, stride, multiplier)


def how(input: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any) -> str:
    """How the forward kernel runs a call, in words."""
    size = output_size(input.shape, weight.shape, stride, padding, dilation)
    kernel = weight.shape[2:]
    shape = _shape(input, input.shape, size, kernel, stride, padding, dilation)
    return _how("forward", input, shape, kernel, stride, weight.shape[0] // input.shape[1])


def transpose_how(
    input: Tensor, weight: Tensor, bias: Any, size: Any, stride: Any, padding: Any, dilation: Any
) -> str:
    """The same of the transposed convolution."""
    kernel = weight.shape[2:]
    shape = _shape(input, size, input.shape, kernel, stride, padding, dilation)
    return _how("input gradient", input, shape, kernel, stride, weight.shape[0] // size[1])


def grad_weight_how(
    grad_output: Tensor, input: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> str:
    """The same of the weight's gradient."""
    output = grad_output.shape
    shape = _shape(input, input.shape, output, kernel, stride, padding, dilation)
    return _how("weight gradient", input, shape, kernel, stride, output[1] // input.shape[1])


def slower(input: Tensor, weight: Tensor, bias: Any, stride: Any, *rest: Any) -> str | None:
    """Why "auto" leaves a forward call to Triton, in words, or None."""
    batch = input if input.dim() == 5 else input.unsqueeze(0)
    multiplier = weight.shape[0] // batch.shape[1]
    return cuda_gains.slower("forward", batch, weight.shape[2:], stride, multiplier)


def transpose_slower(
    input: Tensor, weight: Tensor, bias: Any, size: Any, stride: Any, *rest: Any
) -> str | None:
    """The same of the transposed convolution."""
    multiplier = weight.shape[0] // size[1]
    return cuda_gains.slower("input gradient", input, weight.shape[2:], stride, multiplier)


def grad_weight_slower(
    grad_output: Tensor, input: Tensor, kernel: Any, stride: Any, *rest: Any
) -> str | None:
    """The same of the weight's gradient."""
    multiplier = grad_output.shape[1] // input.shape[1]
    return cuda_gains.slower("weight gradient", input, kernel, stride, multiplier)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _run(name: str, shape: Any, input: Tensor, size: Any) -> Run:
    """Of one direction's function of the library, for inputs like this one."""
    last = is_channels_last(input)
    dense, new_output = densifier(input, last), maker(input, size, last)

    def run(input: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        output = new_output()
        tensors = (dense(input), weight.contiguous(), None if bias is None else bias.contiguous())
        _cuda.run(name, shape, *map(_pointer, (*tensors, output)), *_cuda.device(input))
        return output

    return run


@launcher
def depthwise_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Triple,
    padding: tuple[int, ...],
    dilation: Triple,
) -> Run:
    """The forward kernel."""
    size = output_size(input.shape, weight.shape, stride, padding, dilation)
    shape = _shape(input, input.shape, size, weight.shape[2:], stride, padding, dilation)
    return _run("depthwise_conv3d", shape, input, size)


@launcher
def depthwise_conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output_size: list[int],
    stride: Triple,
    padding: tuple[int, ...],
    dilation: Triple,
) -> Run:
    """The kernel of the other direction."""
    shape = _shape(input, output_size, input.shape, weight.shape[2:], stride, padding, dilation)
    return _run("depthwise_conv_transpose3d", shape, input, output_size)


@launcher
def depthwise_conv3d_grad_weight(
    grad_output: Tensor,
    input: Tensor,
    kernel_size: list[int],
    stride: Triple,
    padding: tuple[int, ...],
    dilation: Triple,
) -> Run:
    """The kernel of the sums, and the sum of its parts."""
    shape = _shape(input, input.shape, grad_output.shape, kernel_size, stride, padding, dilation)
    last, channels = is_channels_last(input), grad_output.shape[1]
    dense_grad, dense = densifier(grad_output, last), densifier(input, last)
    new_weight = maker(input, (channels, 1, *kernel_size))
    new_bias = maker(input, (channels,))
    scratch_bytes = _cuda.functions()["depthwise_conv3d_grad_weight_scratch"]

    def run(grad_output: Tensor, input: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        grad_output, input = dense_grad(grad_output), dense(input)
        grad_weight, grad_bias = new_weight(), new_bias()
        processors, stream = _cuda.device(input)
        size = scratch_bytes(shape, input.data_ptr(), processors)
        scratch = torch.empty(size, dtype=torch.uint8, device=input.device)
        pointers = map(_pointer, (grad_output, input, scratch, grad_weight, grad_bias))
        _cuda.run("depthwise_conv3d_grad_weight", shape, *pointers, processors, stream)
        return grad_weight, grad_bias

    return run
