"""Which frames of a video become a clip."""

from __future__ import annotations

import numpy as np

from vmf.data.spec import ClipSpec


def train_indices(num_frames: int, spec: ClipSpec, rng: np.random.Generator) -> np.ndarray:
    """T frames ``stride`` apart from a random start.

    Args:
        num_frames: Frames of the video, at least ``spec.frames``.
        spec: The clip.
        rng: Source of the start.

    Returns:
        (T,) int64 frame numbers. A video shorter than ``spec.span`` has its T frames spread evenly
        from its first to its last instead: they keep their order and none is invented.
    """
    if num_frames < spec.span:
        return _spread(num_frames, spec)
    start = int(rng.integers(0, num_frames - spec.span + 1))
    return start + spec.stride * np.arange(spec.frames)


def view_indices(num_frames: int, spec: ClipSpec, views: int) -> np.ndarray:
    """(views, T) frame numbers of ``views`` evenly spaced clips; a single one is centred."""
    if num_frames < spec.span:
        return np.tile(_spread(num_frames, spec), (views, 1))
    room = num_frames - spec.span
    starts = [room / 2] if views == 1 else np.linspace(0, room, views)
    starts = np.floor(np.asarray(starts) + 0.5).astype(np.int64)
    return starts[:, None] + spec.stride * np.arange(spec.frames)


def _spread(num_frames: int, spec: ClipSpec) -> np.ndarray:
    return np.floor(np.linspace(0, num_frames - 1, spec.frames) + 0.5).astype(np.int64)
