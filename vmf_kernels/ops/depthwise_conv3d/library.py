"""What the op is to PyTorch: schemas, fake kernels, gradients, FLOPs.

The convolution is linear in its input and in its weight, so it, the gradient of its input (which is
the transposed convolution) and that of its weight are closed under differentiation: each one's
gradient is made of the other two.
"""

import math
from typing import Any

import torch
from torch import Tensor

from vmf_kernels import _cuda, tiles
from vmf_kernels._gpu import Kernels
from vmf_kernels.layout import empty_in_layout, is_channels_last, to_layout
from vmf_kernels.operator import Operator
from vmf_kernels.ops.depthwise_conv3d import cuda, reference
from vmf_kernels.ops.depthwise_conv3d.geometry import NAME, output_size

CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

TRITON_MOST_FRAMES = 9  # taps along T: the kernels keep sums for all of them
TRITON_MOST_ELEMENTS = 2**31  # of a frame


def triton_refuses(
    input: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any
) -> str | None:
    """What the Triton kernels do not cover, in words."""
    output = output_size(input.shape, weight.shape, stride, padding, dilation)[-4:]
    return _too_much(input.shape[-4:], output, weight.shape[2:], stride, dilation)


def transpose_refuses(
    input: Tensor, weight: Tensor, bias: Any, size: Any, stride: Any, padding: Any, dilation: Any
) -> str | None:
    """What the Triton kernels of the transposed convolution do not cover, in words."""
    return _too_much(size[1:], input.shape[1:], weight.shape[2:], stride, dilation)


def _grad_weight_refuses(
    grad_output: Tensor, input: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any
) -> str | None:
    return _too_much(input.shape[1:], grad_output.shape[1:], kernel, stride, dilation)


def _too_much(input: Any, output: Any, kernel: Any, stride: Any, dilation: Any) -> str | None:
    if kernel[0] > TRITON_MOST_FRAMES:
        return f"its kernels have at most {TRITON_MOST_FRAMES} taps along T (got {kernel[0]})"
    if max(dilation) > 1 and any(s > 1 and d > 1 for s, d in zip(stride, dilation, strict=True)):
        return f"no axis may have a stride and a dilation (got {stride} and {dilation})"
    for c, _, h, w in (input, output):
        if c * h * w >= TRITON_MOST_ELEMENTS:
            return f"a frame must have fewer than 2**31 elements (got {c * h * w})"
    if 0 in input or 0 in output:
        return "it is for tensors with elements"
    return None


def fake(
    input: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any
) -> Tensor:
    """The forward op's output, not computed."""
    size = output_size(input.shape, weight.shape, stride, padding, dilation)
    return empty_in_layout(input, size, is_channels_last(input))


def _transpose_fake(
    input: Tensor, weight: Tensor, bias: Any, output_size: Any, *geometry: Any
) -> Tensor:
    return empty_in_layout(input, tuple(output_size), is_channels_last(input))


def _grad_weight_fake(grad_output: Tensor, input: Tensor, kernel_size: Any, *geometry: Any) -> Any:
    channels = grad_output.shape[1]
    return input.new_empty((channels, 1, *kernel_size)), input.new_empty((channels,))


def _multiply_adds(output_shape: Any, kernel_size: Any) -> int:
    return math.prod(output_shape) * math.prod(kernel_size)


def forward_flops(output_shape: Any, weight_shape: Any) -> int:
    """As PyTorch counts `conv3d`: a multiply-add is two."""
    return 2 * _multiply_adds(output_shape, weight_shape[2:])


class Operators:
    """The three on CPU kernels, if there is no suffix, and on some kinds of GPU kernels.

    Args:
        suffix: of their names.
        kinds: of GPU kernels, those asked first in front; of each those of the three operators.
    """

    def __init__(self, suffix: str, *kinds: tuple[Kernels, Kernels, Kernels]) -> None:
        forward, transpose, grad_weight = zip(*kinds, strict=True)
        self.forward: Operator = Operator(
            f"depthwise_conv3d{suffix}(Tensor input, Tensor weight, Tensor? bias, "
            "int[3] stride, int[6] padding, int[3] dilation) -> Tensor",
            fake=fake,
            reference=reference.depthwise_conv3d,
            flops=lambda x, w, b, s, p, d, out: forward_flops(out, w),
            setup_context=self._setup,
            backward=self._backward,
            kernels=forward,
            launcher="depthwise_conv3d",
        )
        self.transpose = Operator(
            f"depthwise_conv_transpose3d{suffix}(Tensor input, Tensor weight, Tensor? bias, "
            "SymInt[5] output_size, int[3] stride, int[6] padding, int[3] dilation) -> Tensor",
            fake=_transpose_fake,
            reference=reference.depthwise_conv_transpose3d,
            flops=lambda x, w, b, size, s, p, d, out: 2 * _multiply_adds(x, w[2:]),
            setup_context=self._setup,
            backward=self._transpose_backward,
            kernels=transpose,
            launcher="depthwise_conv_transpose3d",
        )
        self.grad_weight = Operator(
            f"depthwise_conv3d_grad_weight{suffix}(Tensor grad_output, Tensor input, "
            "int[3] kernel_size, int[3] stride, int[6] padding, int[3] dilation) "
            "-> (Tensor, Tensor)",
            fake=_grad_weight_fake,
            reference=reference.depthwise_conv3d_grad_weight,
            flops=lambda g, x, kernel, s, p, d, out: 2 * _multiply_adds(g, kernel),
            setup_context=self._grad_weight_setup,
            backward=self._grad_weight_backward,
            kernels=grad_weight,
            launcher="depthwise_conv3d_grad_weight",
        )

    @staticmethod
    def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Of both directions: input and weight come first, the geometry last."""
        input, weight, *_ = inputs
        ctx.geometry = inputs[-3:]
        needs_input, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(input if needs_weight else None, weight if needs_input else None)
        ctx.input_size, ctx.kernel_size = list(input.shape), list(weight.shape[2:])
        ctx.channels_last = is_channels_last(input)

    def _backward(self, ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        input, weight = ctx.saved_tensors
        grad_input = grad_weight = grad_bias = None
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if is_channels_last(grad_output) != ctx.channels_last:
            grad_output = to_layout(grad_output, ctx.channels_last)
        if needs_input:
            grad_input = self.transpose(grad_output, weight, None, ctx.input_size, *ctx.geometry)
        if needs_weight:
            grad_weight, grad_bias = self.grad_weight(
                grad_output, input, ctx.kernel_size, *ctx.geometry
            )
        elif needs_bias:
            grad_bias = grad_output.sum((0, 2, 3, 4))
        return grad_input, grad_weight, grad_bias if needs_bias else None, None, None, None

    def told(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any,
        dilation: Any,
    ) -> str:  # fmt: skip
        """Which GPU kernels run each part of a training step of forward(...), in words."""
        geometry = (stride, padding, dilation)
        size = output_size(input.shape, weight.shape, *geometry)
        on_no_device = torch.empty(0, dtype=input.dtype, device="meta")
        grad = empty_in_layout(on_no_device, size, is_channels_last(input))
        return "\n".join(
            (
                f"forward: {self.forward.told(input, weight, bias, *geometry)}",
                "input gradient: "
                + self.transpose.told(grad, weight, None, list(input.shape), *geometry),
                "weight gradient: "
                + self.grad_weight.told(grad, input, list(weight.shape[2:]), *geometry),
            )
        )

    def _transpose_backward(self, ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        input, weight = ctx.saved_tensors
        grad_input = grad_weight = grad_bias = None
        needs_input, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if is_channels_last(grad_output) != ctx.channels_last:
            grad_output = to_layout(grad_output, ctx.channels_last)
        if needs_input:
            grad_input = self.forward(grad_output, weight, None, *ctx.geometry)
        if needs_weight:
            grad_weight, _ = self.grad_weight(input, grad_output, ctx.kernel_size, *ctx.geometry)
        if needs_bias:
            grad_bias = grad_output.sum((0, 2, 3, 4))
        return grad_input, grad_weight, grad_bias, None, None, None, None

    @staticmethod
    def _grad_weight_setup(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]
    ) -> None:
        grad_output, input, _, *ctx.geometry = inputs
        ctx.save_for_backward(grad_output, input)

    def _grad_weight_backward(self, ctx: Any, grad: Tensor, grad_bias: Tensor) -> tuple[Any, ...]:
        grad_output, input = ctx.saved_tensors
        grad_grad_output = grad_input = None
        if ctx.needs_input_grad[0]:
            grad_grad_output = self.forward(input, grad, grad_bias, *ctx.geometry)
        if ctx.needs_input_grad[1]:
            grad_input = self.transpose(grad_output, grad, None, list(input.shape), *ctx.geometry)
        return grad_grad_output, grad_input, None, None, None, None


TRITON_MODULE = f"{__package__}.triton"


def triton_keeps_last(channels_last: bool, multiplier: int) -> bool:
    """Whether Triton's kernels read channels last as they are; if not, contiguous copies.

    Where output channels share one of the input and channels are last, the loads of neighbours
    cannot be joined: on an H200 that took up to eight times as long as the same in contiguous
    memory, which is more than two copies take.
    """
    return channels_last and multiplier == 1


def gather_tile(input: Tensor, weight: Tensor, *rest: Any) -> str:
    """The tile of Triton's forward kernel, in words."""
    return _tile("gather", input, weight.shape[0] // input.shape[1], weight.shape[2:])


def _transpose_tile(input: Tensor, weight: Tensor, bias: Any, size: Any, *rest: Any) -> str:
    return _tile("gather", input, weight.shape[0] // size[1], weight.shape[2:])


def _sums_tile(grad_output: Tensor, input: Tensor, kernel: Any, *rest: Any) -> str:
    return _tile("sums", input, grad_output.shape[1] // input.shape[1], kernel)


def _tile(kernel: str, features: Tensor, multiplier: int, taps: Any) -> str:
    last = is_channels_last(features)
    runs_last = triton_keeps_last(last, multiplier)
    text = tiles.told(NAME, kernel, features, runs_last, taps=math.prod(taps))
    return text if last == runs_last else f"{text}; on contiguous copies"


TRITON: Any = tuple(
    Kernels(TRITON_MODULE, refuses, how=how)
    for refuses, how in (
        (triton_refuses, gather_tile),
        (transpose_refuses, _transpose_tile),
        (_grad_weight_refuses, _sums_tile),
    )
)
CUDA: Any = tuple(
    Kernels(f"{__package__}.cuda", ask.refuses, _cuda.missing, ask.slower, ask.how, "CUDA C++")
    for ask in (cuda.FORWARD, cuda.TRANSPOSED, cuda.GRAD_WEIGHT)
)

# On a GPU each part of a training step runs by the kernels that were measured to be faster.
OPERATORS: Operators = Operators("", CUDA, TRITON)
depthwise_conv3d: Operator = OPERATORS.forward
depthwise_conv_transpose3d = OPERATORS.transpose
depthwise_conv3d_grad_weight = OPERATORS.grad_weight

# Those of one kind, gradients too, where it is asked for by name.
TRITON_OPERATORS: Operators = Operators("_triton", TRITON)
CUDA_OPERATORS: Operators = Operators("_cuda", CUDA)
