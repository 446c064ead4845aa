"""Argument checks that several ops share. Every message: `op: the rule (got the values)`."""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def check_tensors(op: str, **tensors: Any) -> None:
    """Raises unless all are floating-point tensors of one dtype on one device.

    Raises:
        TypeError: one is no tensor.
        ValueError: they are not floating point, or differ in dtype or device.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor (got {type(tensor).__name__})")
    first, *rest = tensors.values()
    if not first.dtype.is_floating_point:
        raise ValueError(f"{op}: tensors must be floating point (got {first.dtype})")
    for attribute in ("dtype", "device"):
        if any(getattr(t, attribute) != getattr(first, attribute) for t in rest):
            got = ", ".join(f"{name} {getattr(t, attribute)}" for name, t in tensors.items())
            raise ValueError(f"{op}: tensors must share one {attribute} (got {got})")


def check_attention(op: str, features: Tensor, num_heads: Any, **tokens: Tensor) -> None:
    """Raises ValueError unless features (B, C, *spatial) and tokens (B, M, C) fit the heads."""
    if features.dim() < 3:
        raise ValueError(
            f"{op}: features must be (B, C, *spatial) with at least one spatial dimension "
            f"(got shape {tuple(features.shape)})"
        )
    batch, channels = features.shape[:2]
    for name, tensor in tokens.items():
        if tensor.dim() != 3 or tensor.shape[0] != batch or tensor.shape[2] != channels:
            raise ValueError(
                f"{op}: {name} must be (B, M, C) with B={batch}, C={channels} of the features "
                f"(got shape {tuple(tensor.shape)})"
            )
        if tensor.shape[1] == 0:
            raise ValueError(f"{op}: there must be at least one token (got M=0 in {name})")
    if math.prod(features.shape[2:]) == 0:  # Size.numel() would fix symbolic sizes
        raise ValueError(
            f"{op}: features must have at least one position (got shape {tuple(features.shape)})"
        )
    if isinstance(num_heads, bool) or not isinstance(num_heads, int):
        raise TypeError(f"{op}: num_heads must be an int (got {type(num_heads).__name__})")
    if num_heads < 1 or channels % num_heads or channels == 0:
        raise ValueError(
            f"{op}: num_heads must divide the channels (got C={channels}, num_heads={num_heads})"
        )


def default_scale(op: str, scale: Any, channels: int, num_heads: int) -> float:
    """`scale`, or (C / num_heads) ** -0.5 where it is None."""
    if scale is None:
        return (channels / num_heads) ** -0.5
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"{op}: scale must be a float or None (got {type(scale).__name__})")
    return float(scale)


def autocast_enabled(tensor: Tensor) -> bool:
    """Whether autocast is on for the device of `tensor`."""
    device = tensor.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, whose first argument is a tensor, with autocast off.

    What an op computes in float32 on purpose, autocast would cast again: inputs are cast once,
    by `autocast`, and the rest is the op's own.
    """

    @wraps(function)
    def run(tensor: Tensor, *args: Any) -> Any:
        if not autocast_enabled(tensor):
            return function(tensor, *args)
        with torch.autocast(tensor.device.type, enabled=False):
            return function(tensor, *args)

    return run


def autocast(*tensors: Any) -> tuple[Any, ...]:
    """Under autocast, the tensors in the autocast dtype (float64 stays, as in PyTorch)."""
    first = tensors[0]
    if not isinstance(first, Tensor):
        return tensors
    if not autocast_enabled(first):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(
        t.to(dtype)
        if isinstance(t, Tensor) and t.dtype.is_floating_point and t.dtype != torch.float64
        else t
        for t in tensors
    )


def wants_grad(*tensors: Any) -> bool:
    """Whether autograd records what is done with these."""
    return torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in tensors
    )
