"""The data sets of training and evaluation, and single clips for prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from vmf.data.decode import VideoError, read_frames
from vmf.data.listing import Sample
from vmf.data.sampling import train_indices, view_indices
from vmf.data.spec import AugmentOptions, ClipSpec
from vmf.data.transforms import augment_clip, normalize, resize, view_boxes

Item = dict[str, Any]  # "clip", "label" and "index", or "error" and "index"


class TrainClips(Dataset[Item]):
    """Randomly placed, augmented clips.

    Everything random about an item follows from (seed, epoch, index) alone, so neither the number
    of workers nor a resumed run changes what a training run sees.

    Args:
        samples: ``(path, label)`` of every video.
        classes: Class names in label order, for ``augment.flip_pairs``.
        spec: The clip.
        augment: The augmentation.
        seed: Seed of the run.

    Raises:
        ValueError: ``augment.flip_pairs`` names an unknown class.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        classes: Sequence[str],
        spec: ClipSpec,
        augment: AugmentOptions,
        seed: int = 0,
    ) -> None:
        self.samples = list(samples)
        self.spec = spec
        self.augment = augment
        self.seed = seed
        self.flipped_label = _flipped_labels(classes, augment)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """The clip of video ``index`` in epoch ``epoch``, for ``key = (epoch, index)``.

        Returns:
            ``clip`` (3, T, size, size) float32, ``label`` and ``index``; or, for a file that
            cannot serve, ``error`` and ``index``.
        """
        epoch, index = key
        path, label = self.samples[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        # The smallest crop of the largest frame we keep is still as large as the clip.
        short_side = math.ceil(self.spec.size / math.sqrt(self.augment.crop_scale[0]))
        choose = _long_enough(path, self.spec, lambda n: train_indices(n, self.spec, rng))
        try:
            frames = read_frames(path, choose, short_side)
        except VideoError as error:
            return {"error": str(error), "index": index}
        clip, flipped = augment_clip(frames, self.spec, self.augment, rng)
        return {
            "clip": clip,
            "label": self.flipped_label[label] if flipped else label,
            "index": index,
        }


class EvalClips(Dataset[Item]):
    """Every video as ``views`` evenly spaced clips times ``crops`` evenly spaced crops.

    Args:
        samples: ``(path, label)`` of every video.
        spec: The clip.
        views: Clips per video, along time.
        crops: 1 (centre) or 3 (along the longer side).

    Raises:
        ValueError: ``views`` or ``crops`` out of range.
    """

    def __init__(
        self, samples: Sequence[Sample], spec: ClipSpec, views: int = 1, crops: int = 1
    ) -> None:
        _check_views(views, crops)
        self.samples = list(samples)
        self.spec = spec
        self.views = views
        self.crops = crops

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        """``clip`` (views * crops, 3, T, size, size), ``label`` and ``index``, or ``error``."""
        path, label = self.samples[index]
        try:
            clips, _ = load_clip(path, self.spec, self.views, self.crops)
        except VideoError as error:
            return {"error": str(error), "index": index}
        return {"clip": clips, "label": label, "index": index}


def load_clip(
    path: str | Path, spec: ClipSpec, views: int = 1, crops: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The evaluation clips of one video.

    Args:
        path: The file.
        spec: The clip.
        views: Evenly spaced clips along time.
        crops: 1 (centre) or 3 (along the longer side).

    Returns:
        (V, 3, T, size, size) normalised float32 with V = views * crops, crops varying fastest, and
        the same frames for pictures, (V, T, size, size, 3) uint8.

    Raises:
        VideoError: The file cannot serve.
        ValueError: ``views`` or ``crops`` out of range.
    """
    _check_views(views, crops)
    choose = _long_enough(path, spec, lambda n: view_indices(n, spec, views).ravel())
    frames = read_frames(path, choose, short_side=spec.size)
    images = frames.permute(0, 3, 1, 2).float().div_(255).unflatten(0, (views, spec.frames))
    clips, pictures = [], []
    for view in images:
        for top, left, height, width in view_boxes(view.shape[-2], view.shape[-1], crops):
            crop = view[..., top : top + height, left : left + width]
            crop = resize(crop, spec.size, spec.size)
            clips.append(normalize(crop, spec))
            pictures.append((crop * 255).round().to(torch.uint8).permute(0, 2, 3, 1))
    return torch.stack(clips), torch.stack(pictures)


def collate(items: Sequence[Item]) -> dict[str, Any]:
    """Stacks items into a batch, leaving out those that failed.

    Returns:
        ``clip`` (B, ...) float32 or None if none is left, ``label`` and ``index`` (B,) int64, and
        ``errors``, the messages of the files that failed.
    """
    good = [item for item in items if "error" not in item]
    return {
        "clip": torch.stack([item["clip"] for item in good]) if good else None,
        "label": torch.tensor([item["label"] for item in good], dtype=torch.int64),
        "index": torch.tensor([item["index"] for item in good], dtype=torch.int64),
        "errors": [str(item["error"]) for item in items if "error" in item],
    }


def _long_enough(
    path: str | Path, spec: ClipSpec, choose: Callable[[int], np.ndarray]
) -> Callable[[int], np.ndarray]:
    def checked(num_frames: int) -> np.ndarray:
        if num_frames < spec.frames:
            rule = "the video must have at least as many frames as the clip"
            raise VideoError(path, f"{rule} (got {num_frames}, asked for {spec.frames})")
        return choose(num_frames)

    return checked


def _flipped_labels(classes: Sequence[str], augment: AugmentOptions) -> list[int]:
    """The label that each class has after a horizontal flip."""
    labels = list(range(len(classes)))
    names = list(classes)
    for pair in augment.flip_pairs:
        for name in pair:
            if name not in names:
                raise ValueError(
                    f"AugmentOptions: flip_pairs must name known classes (got {name!r})"
                )
        first, second = (names.index(name) for name in pair)
        labels[first], labels[second] = second, first
    return labels


def _check_views(views: int, crops: int) -> None:
    if views < 1:
        raise ValueError(f"views must be at least 1 (got {views})")
    if crops not in (1, 3):
        raise ValueError(f"crops must be 1 or 3 (got {crops})")
