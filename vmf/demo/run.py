"""The demo from films to figures: clips, training, evaluation on the held-out film, prediction."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmf.data import AugmentOptions
from vmf.demo.camera import FLIP_PAIRS, MOTIONS
from vmf.demo.footage import Footage, write_footage
from vmf.training import TrainConfig, bench, evaluate, predict, train

# The clip of the attention picture.
_SHOWN = "val/zoom_in/0000.mp4"


@dataclass
class DemoResult:
    """What the demo found.

    Attributes:
        top1: On clips of the held-out film, 0 to 1.
        correct: Clips classified correctly.
        count: Clips of the held-out film.
        per_class: Top-1 of each class.
        prediction: Best class of the clip shown, with its probability.
        clips_per_second: Of a training step, by backend: "ours" and "PyTorch".
        seconds: Wall time of each part, and "in all".
        confusion: PNG of the confusion matrix.
        attention: PNG of where the tokens look.
        weights: The trained weights; curves.png lies beside them.
    """

    top1: float
    correct: int
    count: int
    per_class: dict[str, float | None]
    prediction: tuple[str, float]
    clips_per_second: dict[str, float]
    seconds: dict[str, float]
    confusion: Path
    attention: Path
    weights: Path


def training_config(
    clips: Path, run: Path, *, epochs: int, seed: int, kernel_size_t: int
) -> TrainConfig:
    """The recipe of the demo."""
    augment = AugmentOptions(
        crop_scale=(0.64, 1.0),
        crop_ratio=(0.9, 1 / 0.9),
        flip_pairs=FLIP_PAIRS,
        color_jitter=0.3,
    )
    return TrainConfig(
        data=str(clips),
        model="vmf_tiny",
        overrides={"kernel_size_t": kernel_size_t},
        augment=augment,
        epochs=epochs,
        batch_size=16,
        lr=2e-3,
        warmup_epochs=1.0,
        out=str(run),
        overwrite=True,
        seed=seed,
        tensorboard=False,
    )


def run_demo(
    out: Path, footage: Footage, *, epochs: int, seed: int = 0, kernel_size_t: int = 3
) -> DemoResult:
    """Runs the demo and leaves its files in a folder.

    Args:
        out: The folder: clips/ (reused by the next run), run/, confusion.png, results.json and
            attention.png.
        footage: Which clips to film.
        epochs: Passes over the training clips.
        seed: Of the training run.
        kernel_size_t: Temporal size of the depthwise kernels; 1 is blind to the order of frames.
    """
    clock = _Clock()
    others = f"{footage.train * len(MOTIONS)} clips of the other films to train on"
    _say(1, f"films: {footage.val * len(MOTIONS)} clips of {footage.held_out}, held out; {others}")
    clips = out / "clips"
    count, written = write_footage(clips, footage)
    print(f"{written} clips written, {count - written} already there, in {clips}")
    clock.lap("filming")

    _say(2, "training")
    run = out / ("run" if kernel_size_t == 3 else f"run_kernel_size_t_{kernel_size_t}")
    config = training_config(clips, run, epochs=epochs, seed=seed, kernel_size_t=kernel_size_t)
    # Not the best weights: they would be chosen by the very film that is to judge them.
    weights = train(config).folder / "last.safetensors"
    clock.lap("training")

    _say(3, f"evaluation on {footage.held_out}, which training never saw")
    results = out if kernel_size_t == 3 else run
    result = evaluate(weights, clips, out=results)
    correct = sum(row[label] for label, row in enumerate(result.confusion))
    for name, share in result.per_class.items():
        print(f"  {name:12} {0.0 if share is None else share:6.1%}")
    clock.lap("evaluation")

    _say(4, f"prediction of {clips / _SHOWN}")
    shown = next(predict([clips / _SHOWN], weights, attention=results / "attention.png", top=3))
    for name, probability in shown.classes:
        print(f"  {name:12} {probability:6.1%}")
    clock.lap("prediction")

    _say(5, "speed of a training step, our kernels against PyTorch's")
    speed = training_speed(config)
    clock.lap("timing")
    return DemoResult(
        top1=result.top1,
        correct=correct,
        count=result.count,
        per_class=result.per_class,
        prediction=shown.classes[0],
        clips_per_second=speed,
        seconds=clock.laps(),
        confusion=results / "confusion.png",
        attention=results / "attention.png",
        weights=weights,
    )


def training_speed(config: TrainConfig) -> dict[str, float]:
    """Clips per second of the same training step with our kernels and with the reference."""
    batch: dict[str, Any] = {"batch_size": config.batch_size, "num_classes": len(MOTIONS)}
    timings = bench(config.model, rounds=3, **batch).timings
    return {t.backend: t.clips_per_second for t in timings if t.phase == "train step"}


def summary(result: DemoResult, held_out: str) -> str:
    """The closing lines of the demo."""
    ours, theirs = result.clips_per_second["ours"], result.clips_per_second["PyTorch"]
    name, probability = result.prediction
    laps = ", ".join(
        f"{part} {_duration(seconds)}"
        for part, seconds in result.seconds.items()
        if part != "in all"
    )
    chance = 1 / len(MOTIONS)
    rows = {
        f"accuracy on {held_out}": f"{result.top1:.1%} ({result.correct} of {result.count} clips; "
        f"chance is {chance:.0%})",
        "confusion matrix": str(result.confusion),
        "where the tokens look": f"{result.attention} ({name} {probability:.0%})",
        "training curves": str(result.weights.with_name("curves.png")),
        "weights": str(result.weights),
        "training step": f"{ours:.0f} clips/s with our kernels, {theirs:.0f} with PyTorch's "
        f"({ours / theirs:.1f} times as fast)",
        "wall time": f"{_duration(result.seconds['in all'])} ({laps})",
    }
    width = max(map(len, rows))
    return "\n".join(f"  {name:{width}}  {value}" for name, value in rows.items())


class _Clock:
    """Wall time of one part after the other."""

    def __init__(self) -> None:
        self._start = self._mark = time.monotonic()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self._laps[name] = now - self._mark
        self._mark = now

    def laps(self) -> dict[str, float]:
        return {**self._laps, "in all": self._mark - self._start}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _say(number: int, what: str) -> None:
    print(f"\n[{number}/5] {what}", flush=True)
