"""Memory formats, told by strides alone: channels first (contiguous) or channels last."""

import math

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


def widen(tensor: Tensor) -> Tensor:
    """16-bit floats as float32, in which every reduction here is accumulated; others unchanged."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
