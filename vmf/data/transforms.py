"""From decoded frames to the clip a model reads, with or without training augmentation."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from vmf.data.color import color_jitter
from vmf.data.randaugment import randaugment
from vmf.data.spec import AugmentOptions, ClipSpec

Box = tuple[int, int, int, int]  # top, left, height, width


def augment_clip(
    frames: torch.Tensor, spec: ClipSpec, options: AugmentOptions, rng: np.random.Generator
) -> tuple[torch.Tensor, bool]:
    """Random resized crop, flip, RandAugment and colour jitter, alike for all frames.

    Args:
        frames: (T, H, W, 3) uint8.
        spec: The clip.
        options: What may happen.
        rng: Decides what does happen.

    Returns:
        (3, T, size, size) normalised float32, and whether the clip was flipped.
    """
    top, left, height, width = random_box(frames.shape[1], frames.shape[2], options, rng)
    images = frames[:, top : top + height, left : left + width].permute(0, 3, 1, 2)
    images = resize(images.float().div_(255), spec.size, spec.size)
    flipped = bool(rng.random() < options.flip)
    if flipped:
        images = images.flip(-1)
    if options.randaugment:
        images = randaugment(images, options.randaugment, options.randaugment_ops, rng)
    if options.color_jitter:
        images = color_jitter(images, options.color_jitter, rng)
    return normalize(images, spec), flipped


def random_box(height: int, width: int, options: AugmentOptions, rng: np.random.Generator) -> Box:
    """A box of random area and aspect ratio inside the frame (Szegedy et al., arXiv 1409.4842)."""
    log_ratio = np.log(options.crop_ratio)
    for _ in range(10):
        area = height * width * rng.uniform(*options.crop_scale)
        ratio = math.exp(rng.uniform(*log_ratio))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(0, height - box_height + 1))
            left = int(rng.integers(0, width - box_width + 1))
            return top, left, box_height, box_width
    # No such box fits: the largest centred one whose ratio is allowed.
    low, high = options.crop_ratio
    box_width = max(1, min(width, round(height * high)))
    box_height = max(1, min(height, round(width / low)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def view_boxes(height: int, width: int, crops: int) -> list[Box]:
    """Square boxes as wide as the short side: the centre one, or start, centre and end."""
    side = min(height, width)
    room = max(height, width) - side
    offsets = [room // 2] if crops == 1 else [0, room // 2, room]
    if width >= height:
        return [(0, offset, side, side) for offset in offsets]
    return [(offset, 0, side, side) for offset in offsets]


def resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(T, 3, H, W) to (T, 3, height, width), bilinear, antialiased when it shrinks."""
    if images.shape[-2:] == (height, width):
        return images
    shrinks = height < images.shape[-2] or width < images.shape[-1]
    return F.interpolate(images, (height, width), mode="bilinear", antialias=shrinks)


def normalize(images: torch.Tensor, spec: ClipSpec) -> torch.Tensor:
    """(T, 3, H, W) in [0, 1] to the normalised (3, T, H, W) float32 clip."""
    mean = images.new_tensor(spec.mean).view(3, 1, 1, 1)
    std = images.new_tensor(spec.std).view(3, 1, 1, 1)
    return ((images.transpose(0, 1) - mean) / std).contiguous()
