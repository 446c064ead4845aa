"""Memory formats, told by strides alone: channels first (contiguous) or channels last."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor


def is_channels_last(features: Tensor) -> bool:
    """Whether channels vary fastest in memory.

    Args:
        features: (B, C, *spatial), any strides.

    Returns:
        True for channels last, False for every other order. Where the two are the same
        memory (one position), False.
    """
    # Size.numel() would fix symbolic sizes.
    return bool(features.stride(1) == 1 and math.prod(features.shape[2:]) > 1)


def to_layout(features: Tensor, channels_last: bool) -> Tensor:
    """`features` (B, C, *spatial) dense in the given order; itself if it already is."""
    if channels_last:
        return features.movedim(1, -1).contiguous().movedim(-1, 1)
    return features.contiguous()


def empty_in_layout(features: Tensor, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    """An uninitialised tensor of `shape` (B, C, *spatial), dense in the given order."""
    if channels_last:
        return features.new_empty((shape[0], *shape[2:], shape[1])).movedim(-1, 1)
    return features.new_empty(shape)


def maker(
    features: Tensor,
    shape: Sequence[int],
    channels_last: bool = False,
    dtype: torch.dtype | None = None,
) -> Callable[[], Tensor]:
    """Of uninitialised tensors, dense in the given order; faster than to work that out each time.

    Args:
        features: whose device and, if None is given, dtype they have.
        shape: (B, C, *spatial), none of them 0; without channels last any.
    """
    order = [*range(len(shape))]
    if channels_last:
        order.append(order.pop(1))
    strides, step = [1] * len(shape), 1
    for dim in reversed(order):
        strides[dim] = step
        step *= shape[dim]
    of: Any = {"dtype": dtype or features.dtype, "device": features.device}
    return partial(torch.empty_strided, tuple(shape), tuple(strides), **of)


def densifier(features: Tensor, channels_last: bool) -> Callable[[Tensor], Tensor]:
    """`to_layout` for tensors with the sizes and strides of `features`."""
    if features.movedim(1, -1).is_contiguous() if channels_last else features.is_contiguous():
        return _itself
    return partial(to_layout, channels_last=channels_last)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def widen(tensor: Tensor) -> Tensor:
    """16-bit floats as float32, in which every reduction here is accumulated; others unchanged."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
