"""RandAugment for clips (Cubuk et al., arXiv 1909.13719): one draw for all frames of a clip."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from vmf.data.color import grey

Operation = Callable[[torch.Tensor, float], torch.Tensor]


def randaugment(
    images: torch.Tensor, magnitude: int, num_ops: int, rng: np.random.Generator
) -> torch.Tensor:
    """Applies ``num_ops`` randomly drawn operations.

    Args:
        images: (T, 3, H, W) float in [0, 1].
        magnitude: Strength, 1 to 10; operations with a direction draw their sign.
        num_ops: Operations to apply, drawn with replacement.
        rng: Source of the draws.
    """
    names = list(OPERATIONS)
    for name in rng.choice(names, num_ops):
        sign = 1.0 if rng.random() < 0.5 else -1.0
        images = OPERATIONS[name](images, sign * magnitude / 10).clamp(0, 1)
    return images


def _warp(images: torch.Tensor, matrix: list[list[float]]) -> torch.Tensor:
    theta = images.new_tensor(matrix).expand(images.shape[0], 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False)


def _rotate(images: torch.Tensor, level: float) -> torch.Tensor:
    angle = math.radians(30 * level)
    height, width = images.shape[-2:]
    cos, sin, aspect = math.cos(angle), math.sin(angle), height / width
    return _warp(images, [[cos, -sin * aspect, 0.0], [sin / aspect, cos, 0.0]])


def _blend(images: torch.Tensor, other: torch.Tensor, level: float) -> torch.Tensor:
    return torch.lerp(other, images, 1 + 0.9 * level)


def _smooth(images: torch.Tensor) -> torch.Tensor:
    kernel = images.new_tensor([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, kernel.expand(3, 1, 3, 3), groups=3)


def _autocontrast(images: torch.Tensor, level: float) -> torch.Tensor:
    low, high = images.amin((0, 2, 3), keepdim=True), images.amax((0, 2, 3), keepdim=True)
    return (images - low) / (high - low).clamp_min(1e-3)


def _posterize(images: torch.Tensor, level: float) -> torch.Tensor:
    steps = 2.0 ** round(8 - 4 * abs(level))
    return (images * 255 / 256 * steps).floor() / (steps - 1)


def _solarize(images: torch.Tensor, level: float) -> torch.Tensor:
    return torch.where(images > 1 - abs(level), 1 - images, images)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda images, level: images,
    "shear_x": lambda images, level: _warp(images, [[1.0, 0.3 * level, 0.0], [0.0, 1.0, 0.0]]),
    "shear_y": lambda images, level: _warp(images, [[1.0, 0.0, 0.0], [0.3 * level, 1.0, 0.0]]),
    "translate_x": lambda images, level: _warp(images, [[1.0, 0.0, 0.9 * level], [0.0, 1.0, 0.0]]),
    "translate_y": lambda images, level: _warp(images, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.9 * level]]),
    "rotate": _rotate,
    "brightness": lambda images, level: images * (1 + 0.9 * level),
    "color": lambda images, level: _blend(images, grey(images), level),
    "contrast": lambda images, level: _blend(images, grey(images).mean(), level),
    "sharpness": lambda images, level: _blend(images, _smooth(images), level),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
}
