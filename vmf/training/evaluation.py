"""Accuracy of a network over a list of videos."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vmf.data import EvalClips
from vmf.training.batches import evaluation_batches
from vmf.training.checkpoint import load_weights
from vmf.training.distributed import Ranks, processes
from vmf.training.files import atomic_write
from vmf.training.metrics import Scores
from vmf.training.precision import autocast, pick_precision
from vmf.training.videos import default_workers, read_classes, videos


@dataclass
class EvalResult:
    """What `evaluate` found.

    Attributes:
        top1: Share of videos whose best score was right, 0 to 1.
        top5: Share of videos with their class among the five best.
        loss: Mean negative log-likelihood of the averaged scores.
        count: Videos counted.
        per_class: Top-1 of each class by name; None for a class with no video.
        confusion: (K, K) counts; row: true class, column: predicted class.
        classes: Class names in label order.
        errors: One line for each video that could not be read.
    """

    top1: float
    top5: float
    loss: float
    count: int
    per_class: dict[str, float | None]
    confusion: list[list[int]]
    classes: list[str]
    errors: list[str] = field(default_factory=list)


@torch.no_grad()
def view_scores(model: nn.Module, clip: Tensor, precision: str, at_once: int) -> Tensor:
    """Scores of videos, averaged over their views.

    Args:
        model: In evaluation mode.
        clip: (B, V, 3, T, H, W).
        precision: "fp32", "bf16" or "fp16".
        at_once: Most clips in one forward pass.

    Returns:
        (B, K) fp64 probabilities: the mean over views of the softmax.
    """
    with autocast(precision, clip.device):
        logits = [model(part) for part in clip.flatten(0, 1).split(at_once)]
    probability = torch.cat(logits).double().softmax(dim=1)
    return probability.unflatten(0, clip.shape[:2]).mean(dim=1)


def score(
    model: nn.Module,
    batches: DataLoader,
    num_classes: int,
    ranks: Ranks,
    precision: str,
    at_once: int,
) -> tuple[Scores, list[str]]:
    """Counts of all processes together, and the errors of all unreadable files."""
    scores, errors = Scores.empty(num_classes), []
    was_training = model.training
    model.eval()
    for batch in batches:
        errors += batch["errors"]
        if batch["clip"] is not None:
            clip = batch["clip"].to(ranks.device, non_blocking=True)
            scores.add(view_scores(model, clip, precision, at_once), batch["label"])
    model.train(was_training)
    everyones = ranks.gather(errors)
    return scores.total(ranks), sorted(line for lines in everyones for line in lines)


def evaluate(
    weights: str | Path,
    data: str | Path,
    *,
    split: str = "val",
    list_file: str | Path | None = None,
    classes: str | Path | None = None,
    views: int = 1,
    crops: int = 1,
    batch_size: int = 16,
    workers: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    max_bad_files: int = 10,
    out: str | Path | None = None,
) -> EvalResult:
    """Evaluates trained weights on a folder or list of videos.

    Args:
        weights: A weights file, or the folder of a run (its best weights).
        data: Folder of the videos.
        split: Folder under DATA that holds the class folders.
        list_file: List file to use instead of a split.
        classes: Text file of class names for a list that holds numbers other than the weights' own.
        views: Clips a video, spread evenly over time.
        crops: 1 (centre) or 3, along the longer side.
        batch_size: Most clips in one forward pass.
        workers: Processes that decode; by default one per core, at most 8.
        device: auto, cpu or cuda.
        precision: auto (bf16 on a GPU that has it, else fp32), fp32, bf16 or fp16.
        max_bad_files: Unreadable videos passed over before giving up.
        out: Folder for results.json and confusion.png; nothing is written without it.

    Returns:
        The figures. Under `torchrun` every process gets those of all.

    Raises:
        ValueError: Names the argument, file or value that is wrong.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: must be at least 1 (got {batch_size})")
    with processes(device) as ranks:
        loaded = load_weights(weights)
        names = loaded.classes if classes is None else read_classes(classes)
        if len(names) != len(loaded.classes):
            raise ValueError(
                f"{classes}: must name as many classes as the weights have "
                f"(got {len(names)}, the weights have {len(loaded.classes)})"
            )
        samples = videos(data, split, list_file, names)
        precision = pick_precision(precision, ranks.device)
        model = loaded.model.to(ranks.device)
        dataset = EvalClips(samples, loaded.clip, views=views, crops=crops)
        batches = evaluation_batches(
            dataset,
            max(1, batch_size // (views * crops)),
            ranks,
            default_workers(ranks.world) if workers is None else workers,
            pin=ranks.device.type == "cuda",
        )
        scores, errors = score(model, batches, len(names), ranks, precision, batch_size)
        check_bad_files(errors, max_bad_files)
        if scores.count == 0:
            raise ValueError(f"{data}: no readable video ({errors[0]})")
        result = EvalResult(
            scores.top1,
            scores.top5,
            scores.loss,
            scores.count,
            dict(zip(names, scores.per_class(), strict=True)),
            scores.confusion.tolist(),
            names,
            errors,
        )
        if out is not None and ranks.first:
            settings = {
                "weights": str(weights),
                "data": str(data),
                "split": split,
                "list_file": list_file and str(list_file),
                "views": views,
                "crops": crops,
            }
            write_result(Path(out), result, settings)
        return result


def write_result(folder: Path, result: EvalResult, settings: dict[str, Any]) -> None:
    """Writes `results.json` and `confusion.png` into a folder."""
    from vmf.visualize import confusion_matrix_png

    folder.mkdir(parents=True, exist_ok=True)
    record = {**settings, **vars(result)}
    atomic_write(folder / "results.json", json.dumps(record, indent=1) + "\n")
    confusion_matrix_png(folder / "confusion.png", result.confusion, result.classes)


def check_bad_files(errors: list[str], most: int) -> None:
    """Gives up when more videos are unreadable than allowed.

    Raises:
        ValueError: Says how many, and the first of them.
    """
    if len(errors) > most:
        raise ValueError(
            f"max_bad_files: at most {most} unreadable videos are passed over "
            f"(got {len(errors)}, the first: {errors[0]})"
        )
