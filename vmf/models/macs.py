"""Multiply-adds of a network, counted layer by layer on shapes alone."""

from __future__ import annotations

import copy

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
        total += _macs(module, inputs, output)

    # Nothing is computed on "meta" tensors: any clip size takes the same short time.
    shapes = copy.deepcopy(model).to("meta").eval()
    for module in shapes.modules():
        module.register_forward_hook(add)
    with torch.no_grad(), vmf_kernels.use_backend("reference"):
        dtype = next(model.parameters()).dtype
        shapes(torch.empty(1, *clip_shape, device="meta", dtype=dtype))
    return total


def _macs(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    """What a module itself multiplies for one clip, without its children."""
    if isinstance(module, nn.Conv3d):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, MobileToFormer | FormerToMobile):
        features, tokens = inputs
        return 2 * tokens.shape[1] * features.numel()
    if isinstance(module, Former):
        return 2 * output.shape[1] * output.numel()
    return 0
