"""A virtual camera that moves over a film: nine ways to move, and the pictures it takes.

The camera sees a square window of the film. What a class is called is what the *camera* does, as in
film making; the picture does the opposite:

=========== ============================================== ==========================
class       the window                                     what is seen
=========== ============================================== ==========================
still       stays                                          stays
pan_left    moves towards the film's left edge             moves right
pan_right   moves towards the film's right edge            moves left
tilt_up     moves towards the film's upper edge            moves down
tilt_down   moves towards the film's lower edge            moves up
zoom_in     shrinks                                        grows
zoom_out    grows                                          shrinks
roll_left   turns counter-clockwise                        turns clockwise
roll_right  turns clockwise                                turns counter-clockwise
=========== ============================================== ==========================

Poses are drawn for the middle of a clip and the motion runs evenly before and after it. So a motion
and its opposite pass through the same poses, in opposite order: no single frame tells them apart,
only their order does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

# Class: (move right, move down, grow, turn clockwise); the sign of each part, in its own unit.
MOTIONS = {
    "pan_left": (-1, 0, 0, 0),
    "pan_right": (1, 0, 0, 0),
    "roll_left": (0, 0, 0, -1),
    "roll_right": (0, 0, 0, 1),
    "still": (0, 0, 0, 0),
    "tilt_down": (0, 1, 0, 0),
    "tilt_up": (0, -1, 0, 0),
    "zoom_in": (0, 0, -1, 0),
    "zoom_out": (0, 0, 1, 0),
}

# A horizontal flip of the picture turns these into each other.
FLIP_PAIRS = (("pan_left", "pan_right"), ("roll_left", "roll_right"))

# Slowest and fastest, per frame: shift in windows, growth as the logarithm of the scale, turn in
# radians.
_SHIFT = (0.010, 0.032)
_GROWTH = (0.014, 0.036)
_TURN = (math.radians(1.0), math.radians(2.6))
# A hand's unsteadiness: deviation of the same four quantities from the path, smooth over frames.
_SHAKE = np.array([0.003, 0.003, 0.002, math.radians(0.2)])
# Width of the window in the middle of the clip, as a share of the film's height.
_WINDOW = (0.45, 0.7)
# The camera need not be held level.
_TILT = math.radians(10)


@dataclass(frozen=True)
class Path:
    """Where the window is at each frame; lengths in pixels of the film.

    Attributes:
        x: (T,) centre, from the film's left edge.
        y: (T,) centre, from the film's upper edge.
        width: (T,) side of the window.
        angle: (T,) clockwise turn, in radians.
    """

    x: np.ndarray
    y: np.ndarray
    width: np.ndarray
    angle: np.ndarray

    def corners(self) -> np.ndarray:
        """(T, 4, 2) corners (x, y) of the window, clockwise from its upper left."""
        unit = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
        moved = np.einsum("tij,kj->tki", turn, unit) * self.width[:, None, None]
        return moved + np.stack([self.x, self.y], -1)[:, None]

    def fits(self, width: int, height: int) -> bool:
        """Whether the window stays inside the film throughout."""
        corners = self.corners()
        return bool((corners >= 0).all() and (corners <= [width, height]).all())


def draw_path(
    motion: str, num_frames: int, width: int, height: int, rng: np.random.Generator
) -> Path:
    """Draws place, size, speed and shake of a motion so that the window stays inside the film.

    Args:
        motion: One of `MOTIONS`.
        num_frames: T, length of the clip.
        width: Of the film, in pixels.
        height: Of the film, in pixels.
        rng: Source of the draws.
    """
    sign = np.array(MOTIONS[motion], dtype=float)
    while True:
        size = height * rng.uniform(*_WINDOW)
        speed = [math.exp(rng.uniform(*np.log(bounds))) for bounds in (_SHIFT, _GROWTH, _TURN)]
        step = sign * [speed[0], speed[0], speed[1], speed[2]]
        time = np.arange(num_frames) - (num_frames - 1) / 2
        path = time[:, None] * step + _shake(num_frames, rng)
        tilt = rng.uniform(-_TILT, _TILT)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        # The camera's own right and down, not the film's.
        right, down = path[:, 0] * size, path[:, 1] * size
        found = Path(
            x + math.cos(tilt) * right - math.sin(tilt) * down,
            y + math.sin(tilt) * right + math.cos(tilt) * down,
            size * np.exp(path[:, 2]),
            tilt + path[:, 3],
        )
        if found.fits(width, height):
            return found


def _shake(num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """(T, 4) smooth noise of a strength that differs from clip to clip."""
    kernel = np.array([1, 3, 4, 3, 1]) / 6  # keeps a deviation of 1
    noise = rng.standard_normal((num_frames + 4, 4))
    smooth = np.stack([np.convolve(column, kernel, "valid") for column in noise.T], -1)
    return smooth * _SHAKE * rng.uniform(0, 1)


def take_pictures(film: torch.Tensor, path: Path, size: int) -> np.ndarray:
    """What the camera sees.

    Args:
        film: (T, H, W, 3) uint8.
        path: Of T frames.
        size: Height and width of a picture in pixels.

    Returns:
        (T, size, size, 3) uint8.
    """
    corners = path.corners()
    left, top = np.floor(corners.min((0, 1))).astype(int).clip(0)
    right, bottom = np.ceil(corners.max((0, 1))).astype(int) + 1
    part = film[:, top:bottom, left:right].permute(0, 3, 1, 2).float()
    # Bilinear sampling alone would skip pixels of a window much larger than the picture.
    shrink = max(1, int(path.width.min() / size))
    part = F.avg_pool2d(part, shrink, ceil_mode=True, count_include_pad=False)
    height, width = part.shape[-2:]
    centre = np.stack([path.x - left, path.y - top], -1)
    scale = np.array([width, height]) * shrink / 2
    cos, sin, half = np.cos(path.angle), np.sin(path.angle), path.width / 2
    theta = np.empty((len(path.x), 2, 3))
    theta[:, 0, 0], theta[:, 0, 1] = half * cos / scale[0], -half * sin / scale[0]
    theta[:, 1, 0], theta[:, 1, 1] = half * sin / scale[1], half * cos / scale[1]
    theta[:, :, 2] = centre / scale - 1
    grid = F.affine_grid(
        torch.from_numpy(theta).float(), [len(path.x), 3, size, size], align_corners=False
    )
    seen = F.grid_sample(part, grid, padding_mode="border", align_corners=False)
    return seen.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
