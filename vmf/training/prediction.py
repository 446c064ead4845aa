"""The classes of single videos, and where the tokens look."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vmf.data import VideoError, load_clip
from vmf.training.checkpoint import load_weights
from vmf.training.distributed import pick_device
from vmf.training.evaluation import view_scores
from vmf.training.precision import autocast, pick_precision


@dataclass
class Prediction:
    """What `predict` says of one video.

    Attributes:
        file: The video.
        classes: (name, probability) of the best classes, best first; empty if there is an error.
        error: One line on why the video cannot be read, or None.
        attention: The picture that was written, or None.
    """

    file: str
    classes: list[tuple[str, float]]
    error: str | None = None
    attention: Path | None = None


def predict(
    files: Sequence[str | Path],
    weights: str | Path,
    *,
    views: int = 1,
    crops: int = 1,
    top: int = 5,
    attention: str | Path | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Iterator[Prediction]:
    """Classifies videos, one after the other.

    Args:
        files: The videos.
        weights: A weights file, or the folder of a run (its best weights).
        views: Clips a video, spread evenly over time; their scores are averaged.
        crops: 1 (centre) or 3, along the longer side; their scores are averaged.
        top: How many classes to tell.
        attention: PNG file to draw the tokens' attention in. With several videos, each one's
            name is added to it.
        device: auto, cpu or cuda.
        precision: auto (bf16 on a GPU that has it, else fp32), fp32, bf16 or fp16.

    Yields:
        For each video its best classes, or why it cannot be read.

    Raises:
        ValueError: The weights cannot be used, or an argument is out of range.
    """
    if not files:
        raise ValueError("files: there must be at least one video (got none)")
    if top < 1:
        raise ValueError(f"top: must be at least 1 (got {top})")
    place = pick_device(device)
    precision = pick_precision(precision, place)
    loaded = load_weights(weights)
    model = loaded.model.to(place)
    pictures = _picture_names(attention, files)
    for file, picture in zip(files, pictures, strict=True):
        try:
            clips, frames = load_clip(file, loaded.clip, views, crops)
        except VideoError as error:
            yield Prediction(str(file), [], error=str(error))
            continue
        clips = clips.to(place)
        scores = view_scores(model, clips[None], precision, at_once=16)[0]
        best = scores.topk(min(top, len(loaded.classes)))
        classes = [
            (loaded.classes[index], value)
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        if picture is not None:
            # The middle view's first or only crop: what a viewer would take for the video.
            middle = views // 2 * crops + crops // 2
            with torch.no_grad(), autocast(precision, place):
                where = model.token_attention(clips[middle : middle + 1])[0]
            name, value = classes[0]
            _draw(picture, frames[middle], where, f"{Path(file).name}: {name} {value:.0%}")
        yield Prediction(str(file), classes, attention=picture)


def _picture_names(attention: str | Path | None, files: Sequence[str | Path]) -> list[Path | None]:
    if attention is None:
        return [None] * len(files)
    target = Path(attention)
    if len(files) == 1:
        return [target]
    names: list[Path | None]
    names = [target.with_name(f"{target.stem}-{Path(f).stem}{target.suffix}") for f in files]
    if len(set(names)) == len(names):
        return names
    return [
        target.with_name(f"{target.stem}-{number}-{Path(f).stem}{target.suffix}")
        for number, f in enumerate(files, 1)
    ]


def _draw(path: Path, frames: torch.Tensor, attention: torch.Tensor, title: str) -> None:
    # Imported here: matplotlib takes half a second.
    from vmf.visualize import attention_png

    path.parent.mkdir(parents=True, exist_ok=True)
    attention_png(path, frames, attention.float().cpu(), title)
