"""Multiply-adds of a network, counted layer by layer on shapes alone."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import vmf_kernels
from vmf.models.bridges import Former, FormerToMobile, MobileToFormer


def count_macs(model: nn.Module, clip_shape: tuple[int, ...]) -> int:
    """Counts the multiply-adds of one forward pass.

    Convolutions count outputs x taps x input channels of their group, padding included; linear
    layers in x out for each row; attention 2 M n C, for the scores and for the weighted sum.
    Norms, activations and sums count nothing, as is usual.

    Args:
        model: Any network built from `vmf`'s layers, convolutions and linear layers.
        clip_shape: (channels, T, H, W) of one clip.

    Returns:
        Multiply-adds for one clip.

    Raises:
        ValueError: `clip_shape` is not four sizes from 1 up.
    """
    if len(clip_shape) != 4 or min(clip_shape) < 1:
        raise ValueError(
            "count_macs: clip_shape is (channels, frames, height, width), each at least 1 "
            f"(got {tuple(clip_shape)})"
        )
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += _COST[kind(module)](module, inputs, output)

    def kind(module: nn.Module) -> type | None:
        return next((known for known in _COST if isinstance(module, known)), None)

    # Nothing is computed on "meta" tensors: any clip size takes the same short time.
    shapes = copy.deepcopy(model).to("meta").eval()
    for module in shapes.modules():
        if kind(module) is not None:
            module.register_forward_hook(add)
    with torch.no_grad(), vmf_kernels.use_backend("reference"):
        dtype = next(model.parameters()).dtype
        shapes(torch.empty(1, *clip_shape, device="meta", dtype=dtype))
    return total


def _convolution(module: nn.Conv3d, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    return output.numel() * module.weight[0].numel()


def _linear(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    return output.numel() * module.in_features


def _bridge(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    features, tokens = inputs
    return 2 * tokens.shape[1] * features.numel()


def _former(module: Former, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    return 2 * output.shape[1] * output.numel()


_COST: dict[type, Callable[..., int]] = {
    nn.Conv3d: _convolution,
    nn.Linear: _linear,
    MobileToFormer: _bridge,
    FormerToMobile: _bridge,
    Former: _former,
}
