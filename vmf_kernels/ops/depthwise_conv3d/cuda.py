"""The CUDA C++ kernels (csrc/cuda/depthwise_conv3d*.cu): usual kernel sizes, both layouts."""

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmf_kernels import _cuda
from vmf_kernels._runs import Run, launcher
from vmf_kernels.layout import densifier, is_channels_last, maker
from vmf_kernels.ops.depthwise_conv3d import cuda_gains
from vmf_kernels.ops.depthwise_conv3d.geometry import as_batch, output_size

Triple = tuple[int, ...]  # T, H, W


@functools.lru_cache(maxsize=4096)
def _numbers(*numbers: int) -> Any:
    return (ctypes.c_int64 * len(numbers))(*numbers)


@dataclass(frozen=True)
class Problem:
    """What a call of one of the operators asks of the kernels.

    Attributes:
        part: of `cuda_gains.PARTS`.
        features: any of its batches, which say layout, dtype and device.
        input, output: sizes of the convolution's.
        kernel, stride, padding, dilation: as the operators take them.
    """

    part: str
    features: Tensor
    input: Any
    output: Any
    kernel: Any
    stride: Any
    padding: Any
    dilation: Any

    @property
    def multiplier(self) -> int:
        return int(self.output[1] // self.input[1])

    @property
    def numbers(self) -> Any:
        """A DepthwiseConv3dShape."""
        return _numbers(
            *self.input[:2], self.multiplier, *self.input[2:], *self.output[2:], *self.kernel,
            *self.stride, *self.padding[::2], *self.dilation, is_channels_last(self.features),
            _cuda.DTYPES[self.features.dtype],
        )  # fmt: skip

    @property
    def layer(self) -> tuple[Any, ...]:
        """What `cuda_gains` is asked with."""
        return self.part, self.features, self.kernel, self.stride, self.multiplier


def _forward(
    input: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any
) -> Problem:
    input = as_batch(input)
    size = output_size(input.shape, weight.shape, stride, padding, dilation)
    geometry = (weight.shape[2:], stride, padding, dilation)
    return Problem("forward", input, input.shape, size, *geometry)


def _transposed(
    input: Tensor, weight: Tensor, bias: Any, size: Any, stride: Any, padding: Any, dilation: Any
) -> Problem:
    geometry = (weight.shape[2:], stride, padding, dilation)
    return Problem("input gradient", input, size, input.shape, *geometry)


def _grad_weight(grad_output: Tensor, input: Tensor, *geometry: Any) -> Problem:
    return Problem("weight gradient", input, input.shape, grad_output.shape, *geometry)


def _refuses(problem: Problem) -> str | None:
    features = problem.features
    if 0 in problem.input or 0 in problem.output:
        return "it is for tensors with elements"
    if _cuda.missing() or features.dtype not in _cuda.DTYPES:
        return None  # which others say
    if features.is_cuda and torch.cuda.is_available():
        reason = _cuda.too_old(features.get_device())
        if reason is not None:
            return reason
    reason = _cuda.functions()["depthwise_conv3d_refuses"](problem.numbers)
    return None if reason is None else reason.decode()


def _slower(problem: Problem) -> str | None:
    return cuda_gains.slower(*problem.layer)


def _how(problem: Problem) -> str:
    processors, _ = _cuda.device(problem.features)
    tile = (ctypes.c_int64 * 4)()
    part = cuda_gains.PARTS.index(problem.part)
    _cuda.functions()["depthwise_conv3d_tile"](problem.numbers, part, processors, tile)
    blocks, channels, frames, positions = tile
    text = f"{blocks} blocks of {channels} channels, {frames} frames and {positions} positions"
    return text + cuda_gains.told(*problem.layer)


class Questions(NamedTuple):
    """What may be asked about calls of one operator; all take its arguments.

    Attributes:
        refuses: what the kernels do not cover, in words, or None.
        slower: why "auto" leaves a call to Triton, in words, or None.
        how: how the kernel runs a call, in words.
    """

    refuses: Callable[..., str | None]
    slower: Callable[..., str | None]
    how: Callable[..., str]


def _about(problem: Callable[..., Problem]) -> Questions:
    return Questions(
        lambda *args: _refuses(problem(*args)),
        lambda *args: _slower(problem(*args)),
        lambda *args: _how(problem(*args)),
    )


FORWARD: Questions = _about(_forward)
TRANSPOSED: Questions = _about(_transposed)
GRAD_WEIGHT: Questions = _about(_grad_weight)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _run(name: str, problem: Problem, input: Tensor, size: Any) -> Run:
    """Of one direction's function of the library, for inputs like this one."""
    shape, last = problem.numbers, is_channels_last(input)
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
    problem = _forward(input, weight, bias, stride, padding, dilation)
    return _run("depthwise_conv3d", problem, input, problem.output)


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
    problem = _transposed(input, weight, bias, output_size, stride, padding, dilation)
    return _run("depthwise_conv_transpose3d", problem, input, output_size)


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
    shape = _grad_weight(grad_output, input, kernel_size, stride, padding, dilation).numbers
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
