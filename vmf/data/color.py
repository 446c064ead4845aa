"""Colour arithmetic on (T, 3, H, W) images in [0, 1]."""

from __future__ import annotations

import numpy as np
import torch


def grey(images: torch.Tensor) -> torch.Tensor:
    """Luma (ITU-R BT.601), (T, 1, H, W)."""
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def color_jitter(images: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """Multiplies brightness, contrast and saturation, each by a factor from [1 - s, 1 + s]."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    images = (images * float(brightness)).clamp_(0, 1)
    images = torch.lerp(grey(images).mean(), images, float(contrast)).clamp_(0, 1)
    return torch.lerp(grey(images), images, float(saturation)).clamp_(0, 1)
