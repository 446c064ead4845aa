"""Writes the clips of the demo: real films, seen by a camera whose motion is the label."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vmf.data import write_video
from vmf.demo.camera import MOTIONS, draw_path, take_pictures
from vmf.demo.films import FILMS, Shot, film_file, shots


@dataclass(frozen=True)
class Footage:
    """Which clips to write.

    Args:
        held_out: The film of the validation clips; the others are for training.
        train: Training clips of each class.
        val: Validation clips of each class.
        frames: Length of a clip.
        size: Height and width of a clip in pixels, even.
        seed: Of every random choice.
    """

    held_out: str = "bigbuckbunny"
    train: int = 300
    val: int = 40
    frames: int = 20
    size: int = 80
    seed: int = 0


@dataclass(frozen=True)
class _Job:
    path: Path
    motion: str
    split: str
    number: int


def write_footage(root: Path, footage: Footage, workers: int | None = None) -> tuple[int, int]:
    """Writes `root/{train,val}/class/*.mp4`, leaving clips that are there already as they are.

    Args:
        root: Folder of the clips. Clips of other settings in it are replaced.
        footage: The settings.
        workers: Processes; one per core by default.

    Returns:
        Clips in the folder, and how many of them had to be written.
    """
    record = root / "footage.json"
    wanted = json.dumps(asdict(footage), indent=1)
    if not record.is_file() or record.read_text() != wanted:
        for split in ("train", "val"):
            shutil.rmtree(root / split, ignore_errors=True)
        root.mkdir(parents=True, exist_ok=True)
        record.write_text(wanted)
    jobs = list(_jobs(root, footage))
    missing = [job for job in jobs if not job.path.exists()]
    if missing:
        for name in FILMS:
            film_file(name)  # a missing film is told here, not by each process
        for _ in tqdm(_film(missing, footage, workers), "filming", len(missing), unit="clip"):
            pass
    return len(jobs), len(missing)


def _film(jobs: list[_Job], footage: Footage, workers: int | None) -> Iterator[None]:
    if workers == 1:
        _open_films(footage)
        yield from map(_write, jobs)
        return
    # A fresh interpreter each: forking after PyTorch has started its threads can hang.
    processes = workers or os.cpu_count() or 1
    with ProcessPoolExecutor(processes, get_context("spawn"), _start, (footage,)) as pool:
        yield from pool.map(_write, jobs, chunksize=8)


def _jobs(root: Path, footage: Footage) -> Iterator[_Job]:
    for split, count in (("train", footage.train), ("val", footage.val)):
        for motion in MOTIONS:
            for number in range(count):
                yield _Job(root / split / motion / f"{number:04d}.mp4", motion, split, number)


# Each process holds the films once.
_footage: Footage
_shots: dict[str, list[Shot]]


def _start(footage: Footage) -> None:
    torch.set_num_threads(1)
    _open_films(footage)


def _open_films(footage: Footage) -> None:
    global _footage, _shots
    _footage = footage
    held_out = shots(footage.held_out, footage.frames)
    others = [name for name in FILMS if name != footage.held_out]
    _shots = {"train": [s for n in others for s in shots(n, footage.frames)], "val": held_out}


def _write(job: _Job) -> None:
    split = ("train", "val").index(job.split)
    motion = list(MOTIONS).index(job.motion)
    rng = np.random.default_rng([_footage.seed, split, motion, job.number])
    choices = _shots[job.split]
    shot = choices[job.number % len(choices)].frames
    start = int(rng.integers(0, len(shot) - _footage.frames + 1))
    film = shot[start : start + _footage.frames]
    path = draw_path(job.motion, _footage.frames, film.shape[2], film.shape[1], rng)
    write_video(job.path, take_pictures(film, path, _footage.size))
