"""Transposed depthwise 3D convolution."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vmf_kernels import _cuda, _extension, _triton
from vmf_kernels.backends import Backend, Op, always
from vmf_kernels.checks import autocast, check_tensors
from vmf_kernels.layout import is_channels_last, to_layout
from vmf_kernels.ops.depthwise_conv3d import cuda, dispatch, library
from vmf_kernels.ops.depthwise_conv3d.geometry import AXES, MAX_ELEMENTS, as_batch, normalise
from vmf_kernels.ops.depthwise_conv_transpose3d import reference

NAME = "depthwise_conv_transpose3d"

# `_prepare` in a tenth of the time; None for every call that is not an ordinary one.
_normalise = getattr(_extension._C, "normalise_depthwise_conv_transpose3d", None)


def depthwise_conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Spreads every channel by its own 3D kernels: upsampling, where the stride is above 1.

    Equivalent to `torch.nn.functional.conv_transpose3d(..., groups=C)`. It is the input gradient
    of `depthwise_conv3d`, and runs its kernels.

    Args:
        input: (N, C, T, H, W) or (C, T, H, W), any floating dtype, any strides.
        weight: (C, m, kT, kH, kW): input channel c becomes the output channels m*c to m*c + m - 1.
            Same dtype and device as the input.
        bias: (m*C,) or None.
        stride: an int, or three for T, H, W.
        padding: an int, or three: so much less of the output on each side.
        output_padding: an int, or three: so much more after it; smaller than the stride or the
            dilation.
        dilation: an int, or three.

    Returns:
        (N, m*C, T', H', W') or (m*C, T', H', W') in the input's dtype and memory format, with
        `T' = (T - 1) stride - 2 padding + dilation (kT - 1) + output_padding + 1`. 16-bit inputs
        are accumulated in float32.

    Raises:
        ValueError: shapes, dtypes, devices or values do not fit.
        TypeError: an argument has the wrong type.
        NotImplementedError, RuntimeError: the backend that `use_backend` asks for cannot run it.
    """
    return OP(input, weight, bias, stride, padding, output_padding, dilation)


def _prepare(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
) -> tuple[Any, ...]:
    if _normalise is not None and not torch.compiler.is_compiling():
        prepared = _normalise(input, weight, bias, stride, padding, output_padding, dilation)
        if prepared is not None:
            return input, weight, bias, *prepared
    input, weight, bias = autocast(input, weight, bias)
    given = {} if bias is None else {"bias": bias}
    check_tensors(NAME, input=input, weight=weight, **given)
    dispatch.check_input(NAME, input)
    channels = input.shape[-4]
    if weight.dim() != 5 or weight.shape[0] != channels or 0 in weight.shape:
        raise ValueError(
            f"{NAME}: weight must be (C, m, kT, kH, kW) with C={channels}, without an empty "
            f"dimension (got shape {tuple(weight.shape)})"
        )
    outputs = channels * weight.shape[1]
    dispatch.check_bias(NAME, bias, outputs)
    if isinstance(padding, str) or (
        isinstance(padding, Sequence) and any(isinstance(p, Sequence) for p in padding)
    ):
        raise ValueError(f"{NAME}: padding must be an int or three (got {padding!r})")
    kernel = weight.shape[2:]
    stride, padding, dilation = normalise(kernel, stride, padding, dilation, NAME)
    more = normalise(kernel, 1, output_padding, 1, NAME, padding_name="output_padding")[1][::2]
    size = []
    for i, axis in enumerate(AXES):
        if more[i] >= max(stride[i], dilation[i]):
            raise ValueError(
                f"{NAME}: output_padding must be smaller than stride or dilation "
                f"(got {more[i]}, {stride[i]} and {dilation[i]} along {axis})"
            )
        extent = dilation[i] * (kernel[i] - 1) + 1
        size.append((input.shape[i - 3] - 1) * stride[i] - 2 * padding[2 * i] + extent + more[i])
        if input.shape[i - 3] == 0 or size[-1] < 1:
            raise ValueError(
                f"{NAME}: input and output must have at least one position "
                f"(got {input.shape[i - 3]} and {size[-1]} along {axis})"
            )
    total = math.prod(size) * outputs
    if not torch.compiler.is_compiling() and total > MAX_ELEMENTS:
        raise ValueError(
            f"{NAME}: a sample's output must have at most 2**40 elements (got {total})"
        )
    return input, weight, bias, size, stride, padding, more, dilation


class _Runner:
    """The kernels of the convolution whose input gradient this is, for prepared arguments."""

    def __init__(self, operators: library.Operators) -> None:
        self.operator = operators.transpose

    def __call__(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, size: list[int], *rest: Any
    ) -> Tensor:
        stride, padding, _, dilation = rest
        multiplier = weight.shape[1]
        if multiplier > 1:
            repeated = input.unsqueeze(2).expand(-1, -1, multiplier, -1, -1, -1).flatten(1, 2)
            input = to_layout(repeated, is_channels_last(input))
            weight = weight.flatten(0, 1).unsqueeze(1)
        shape = [*input.shape[:2], *size]
        return self.operator(input, weight, bias, shape, stride, padding, dilation)

    def plan(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, size: list[int], *rest: Any
    ) -> Any:
        stride, padding, _, dilation = rest
        if weight.shape[1] > 1:
            return None
        settings = ([*input.shape[:2], *size], stride, padding, dilation)
        run: Any = self.operator.plan(input, weight, bias, *settings)
        return lambda input, weight, bias, *rest: run(input, weight, bias, *settings)


def _of_operator(predicate: Callable[..., Any]) -> Callable[..., Any]:
    """A predicate of an operator's arguments as one of prepared arguments."""

    def predicate_of_prepared(
        input: Tensor, weight: Tensor, bias: Any, size: Any, stride: Any, padding: Any, *rest: Any
    ) -> Any:
        features = as_batch(input)
        outputs = weight.shape[0] * weight.shape[1]
        if weight.shape[1] > 1:  # `_Runner` repeats the input
            repeated = features.new_empty(
                (features.shape[0], outputs, *features.shape[2:]), device="meta"
            )
            features = to_layout(repeated, is_channels_last(features))
        weight = weight.flatten(0, 1).unsqueeze(1)
        shape = (features.shape[0], outputs, *size)
        return predicate(features, weight, bias, shape, stride, padding, rest[1])

    return predicate_of_prepared


def _by_gradient(cannot_run: Callable[..., Exception | None]) -> Callable[..., Exception | None]:
    """A backend's predicate, after whether this is any convolution's input gradient.

    With an output_padding of a whole stride it is not: that convolution's output would be larger.
    """

    def predicate(*prepared: Any) -> Exception | None:
        stride, more = prepared[4], prepared[6]
        if any(m >= s for m, s in zip(more, stride, strict=True)):
            return NotImplementedError(
                f"its output_padding must be smaller than the stride (got {more} and {stride})"
            )
        return cannot_run(*prepared)

    return predicate


def _how(forced: library.Operators) -> Callable[..., str]:
    """Says which GPU kernels run a call."""
    return _of_operator(
        lambda *args: f"forward: {dispatch.gpu_operators(forced).transpose.told(*args)}"
    )


_FASTEST = dispatch.unbatched(_Runner(library.OPERATORS))

OP = Op(
    NAME,
    _prepare,
    (
        Backend("cpu", _by_gradient(dispatch.cpu_cannot_run), _FASTEST, "cpu"),
        Backend(
            "cuda",
            _by_gradient(_cuda.cannot_run(_of_operator(cuda.TRANSPOSED.refuses))),
            dispatch.unbatched(_Runner(library.CUDA_OPERATORS)),
            "cuda",
            dispatch.unless_alone(_of_operator(cuda.TRANSPOSED.slower)),
            _how(library.CUDA_OPERATORS),
            auto=_FASTEST,
        ),
        Backend(
            "triton",
            _by_gradient(_triton.cannot_run(_of_operator(library.transpose_refuses))),
            dispatch.unbatched(_Runner(library.TRITON_OPERATORS)),
            how=_how(library.TRITON_OPERATORS),
            auto=_FASTEST,
        ),
        Backend("reference", always, dispatch.unbatched(reference.depthwise_conv_transpose3d)),
    ),
)
