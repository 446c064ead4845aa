"""Clips and settings small enough to train on within a test."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vmf.data import write_video

SPEED = {"left": 2, "right": -2, "still": 0}

# The smallest network with every kind of block.
SMALL = {
    "stem": 8,
    "blocks": "L1-8 | D2-8 M1-8",
    "num_tokens": 2,
    "token_dim": 8,
    "head_features": 16,
}


def write_clips(folder: Path, number: int, seed: int) -> None:
    """`number` videos for each class: a random pattern that moves left, right or not at all."""
    for name, speed in SPEED.items():
        for index in range(number):
            random = np.random.default_rng([seed, index, speed + 2])
            pattern = random.integers(0, 256, (4, 12, 3), dtype=np.uint8)
            scene = pattern.repeat(8, axis=0).repeat(8, axis=1)
            frames = np.stack([np.roll(scene, speed * t, axis=1)[:, :32] for t in range(9)])
            write_video(folder / name / f"{index}.mp4", frames, crf=10)


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: 18 training and 6 validation videos in 3 classes. Not to be changed."""
    root = tmp_path_factory.mktemp("clips")
    write_clips(root / "train", 6, seed=0)
    write_clips(root / "val", 2, seed=1)
    return root


@pytest.fixture(scope="session")
def small_run(clips: Path) -> Callable[[Path], dict]:
    """Settings, for a given folder, of a run of 6 steps with every random part switched on."""

    def settings(out: Path) -> dict:
        return {
            "data": str(clips),
            "model": "vmf_tiny",
            "overrides": SMALL,
            "frames": 4,
            "stride": 1,
            "size": 16,
            "epochs": 2,
            "batch_size": 6,
            "warmup_epochs": 1.0,
            "drop_rate": 0.1,
            "drop_path_rate": 0.1,
            "mixup": 0.8,
            "cutmix": 1.0,
            "ema": 0.9,
            "workers": 0,
            "log_every": 1,
            "save_every": 1,
            "tensorboard": False,
            "device": "cpu",
            "out": str(out),
        }

    return settings


@pytest.fixture
def settings(small_run: Callable[[Path], dict], tmp_path: Path) -> dict:
    """`small_run` in a folder of the test."""
    return small_run(tmp_path / "run")
