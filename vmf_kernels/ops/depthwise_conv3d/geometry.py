"""Strides, paddings and sizes: every accepted form brought to one, and checked."""

import math
from collections.abc import Sequence
from typing import Any

import torch

NAME = "depthwise_conv3d"
AXES = ("T", "H", "W")
MAX_ELEMENTS = 2**40  # beyond any machine's memory: a slip of the pen, told before the allocator

Triple = tuple[int, int, int]
Padding = tuple[int, int, int, int, int, int]


def normalise(
    kernel: Sequence[int],
    stride: Any,
    padding: Any,
    dilation: Any,
    op: str = NAME,
    padding_name: str = "padding",
) -> tuple[Triple, Padding, Triple]:
    """Every accepted form of stride, padding and dilation as 3, 6 (before, after) and 3 ints.

    Errors name the op and what it calls the padding.

    Raises:
        ValueError: a value is out of range.
        TypeError: a value is no int, or the form is unknown.
    """
    stride = _triple(f"{op}: stride", stride, minimum=1)
    dilation = _triple(f"{op}: dilation", dilation, minimum=1)
    if padding == "valid":
        return stride, (0, 0, 0, 0, 0, 0), dilation
    if padding == "same":
        if stride != (1, 1, 1):
            raise ValueError(f"{op}: padding='same' needs stride 1 (got stride={stride})")
        t, h, w = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return stride, (t // 2, t - t // 2, h // 2, h - h // 2, w // 2, w - w // 2), dilation
    if isinstance(padding, str):
        raise ValueError(f"{op}: padding must be 'same', 'valid' or ints (got {padding!r})")
    if isinstance(padding, Sequence) and any(isinstance(p, Sequence) for p in padding):
        if len(padding) != 3 or any(not isinstance(p, Sequence) or len(p) != 2 for p in padding):
            raise ValueError(
                f"{op}: padding in pairs must be three (before, after) pairs (got {padding!r})"
            )
        t0, t1, h0, h1, w0, w1 = (
            _integer(f"{op}: padding", p, 0) for pair in padding for p in pair
        )
        return stride, (t0, t1, h0, h1, w0, w1), dilation
    t, h, w = _triple(f"{op}: {padding_name}", padding, minimum=0)
    return stride, (t, t, h, h, w, w), dilation


def output_size(
    input: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, ...]:
    """Shape of the output for an input of (N, C, T, H, W) or (C, T, H, W).

    Raises:
        ValueError: the kernel is larger than the padded input, or the output absurdly large.
    """
    size = [*input[:-4], weight[0]]
    for i in range(3):
        padded = input[i - 3] + padding[2 * i] + padding[2 * i + 1]
        extent = dilation[i] * (weight[2 + i] - 1) + 1
        if padded < extent:
            raise ValueError(
                f"{NAME}: the kernel must fit into the padded input "
                f"(got {extent} over {padded} along {AXES[i]})"
            )
        size.append((padded - extent) // stride[i] + 1)
    # A compiler would take the limit for a property of its symbolic sizes.
    if not torch.compiler.is_compiling() and math.prod(size) > MAX_ELEMENTS:
        raise ValueError(
            f"{NAME}: the output must have at most 2**40 elements (got shape {tuple(size)})"
        )
    return tuple(size)


def _triple(name: str, value: Any, minimum: int) -> Triple:
    if isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) == 1:
            value = value[0]
        elif len(value) == 3:
            t, h, w = (_integer(name, v, minimum) for v in value)
            return t, h, w
        else:
            raise ValueError(f"{name} must be one int or three (got {value!r})")
    number = _integer(name, value, minimum)
    return number, number, number


def _integer(name: str, value: Any, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be made of ints (got {type(value).__name__})")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum} (got {value})")
    return value


def as_batch(input: Any) -> Any:
    """(N, C, T, H, W), of that or of one sample."""
    return input if input.dim() == 5 else input.unsqueeze(0)
