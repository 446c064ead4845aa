"""Pictures of a run and of a model: confusion matrix, training curves, where tokens look.

Figures are built without pyplot, so nothing is global and any thread may draw.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vmf.training.files import atomic_write

_BLUE, _ORANGE, _GREY = "#2563a8", "#d9722b", "#6b7280"
# Beyond this many classes, numbers in the cells of a confusion matrix and names cannot be read.
_MOST_NUMBERS, _MOST_NAMES = 24, 60


def confusion_matrix_png(path: str | Path, matrix: npt.ArrayLike, classes: Sequence[str]) -> None:
    """Draws a confusion matrix; colours show the share of each true class.

    Args:
        path: PNG file.
        matrix: (K, K) counts; row: true class, column: predicted class.
        classes: K names.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    total = counts.sum(1, keepdims=True)
    share = counts / np.maximum(total, 1)
    size = float(np.clip(2.2 + 0.55 * len(classes), 4.5, 16))
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= _MOST_NUMBERS:
        for row, column in zip(*counts.nonzero(), strict=True):
            ink = "white" if share[row, column] > 0.55 else "#1f2937"
            axes.text(column, row, counts[row, column], ha="center", va="center", color=ink)
        axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="#e5e7eb", linewidth=0.8)
    if len(classes) <= _MOST_NAMES:
        axes.set_xticks(
            range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor"
        )
        axes.set_yticks(range(len(classes)), classes)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    correct = int(np.trace(counts))
    accuracy = correct / max(int(counts.sum()), 1)
    axes.set_title(f"{accuracy:.1%} right ({correct} of {counts.sum()})", loc="left", weight="bold")
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, format=PercentFormatter(1))
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    _save(figure, path)


def curves_png(path: str | Path, csv_path: str | Path) -> None:
    """Draws loss, accuracy and learning rate of a run over its epochs.

    Args:
        path: PNG file.
        csv_path: metrics.csv of the run: columns step, epoch, loss, lr, grad_norm, clips_per_s,
            val_loss, top1, top5; fields may be empty.
    """
    with open(csv_path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def column(name: str) -> tuple[np.ndarray, np.ndarray]:
        points = [(float(row["epoch"]), float(row[name])) for row in rows if row.get(name)]
        epochs, values = np.array(points, dtype=float).reshape(-1, 2).T
        return epochs, values

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs, values = column("loss")
    if len(values):
        loss.plot(epochs, values, color=_BLUE, alpha=0.3, linewidth=1)
        loss.plot(epochs, _smoothed(values), color=_BLUE, label="training")
    _plot_points(loss, *column("val_loss"), _ORANGE, "validation")
    loss.set_title("Loss", loc="left", weight="bold")
    loss.set_ylim(bottom=0)
    epochs, top1 = column("top1")
    _plot_points(accuracy, epochs, top1, _ORANGE, "top-1")
    _plot_points(accuracy, *column("top5"), _GREY, "top-5")
    best = f", best top-1 {top1.max():.1%}" if len(top1) else ""
    accuracy.set_title(f"Validation accuracy{best}", loc="left", weight="bold")
    accuracy.set_ylim(0, 1.02)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    rate.plot(*column("lr"), color=_GREY)
    rate.set_title("Learning rate", loc="left", weight="bold")
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_formatter("{x:g}")
    for axes in (loss, accuracy, rate):
        axes.set_xlabel("epoch")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False)
    _save(figure, path)


def attention_png(
    path: str | Path,
    frames: torch.Tensor | npt.ArrayLike,
    attention: torch.Tensor | npt.ArrayLike,
    title: str = "",
) -> None:
    """Shows over the frames of a clip where each token looks: a row per token, a column per frame.

    Colours compare within a row: a token's brightest spot is its strongest weight in the clip.

    Args:
        path: PNG file.
        frames: (T, H, W, 3) uint8.
        attention: (M, T', H', W') weights of M tokens; T' divides or equals T.
        title: A line above the picture.
    """
    images = torch.as_tensor(frames).permute(0, 3, 1, 2).double() / 255
    weights = torch.as_tensor(attention).detach().double().cpu()
    num_frames, _, height, width = images.shape
    num_tokens = len(weights)
    zoom = max(1, round(160 / height))
    size = (num_frames, height * zoom, width * zoom)
    smooth = F.interpolate(weights[None], size, mode="trilinear")[0]
    heat = (smooth / smooth.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)).numpy()
    images = F.interpolate(images, size[1:], mode="bicubic").clamp(0, 1)
    pictures = images.permute(0, 2, 3, 1).numpy()

    cell, margin, top, bottom = min(1.25, 20 / num_frames), 0.95, 0.6, 0.5
    rows, columns = num_tokens + 1, num_frames
    cell_height = cell * height / width
    figure_width = margin + columns * cell + 0.1
    figure_height = top + rows * cell_height + bottom
    figure = Figure(figsize=(figure_width, figure_height))
    grid = figure.add_gridspec(
        rows, columns, wspace=0.04, hspace=0.04,
        left=margin / figure_width, right=1 - 0.1 / figure_width,
        top=1 - top / figure_height, bottom=bottom / figure_height,
    )  # fmt: skip
    for row in range(rows):
        for column in range(columns):
            axes = figure.add_subplot(grid[row, column])
            picture = pictures[column]
            if row:
                picture = _with_heat(picture, heat[row - 1, column])
            axes.imshow(picture)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(f"frame {column + 1}", fontsize=9, color=_GREY, pad=3)
            if column == 0:
                name = f"token {row - 1}" if row else "clip"
                axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    figure.text(
        margin / figure_width, 1 - 0.12 / figure_height, title, weight="bold", va="top", fontsize=11
    )
    _add_scale(figure, [margin / figure_width, 0.3 / figure_height, 2.4 / figure_width])
    _save(figure, path)


def _with_heat(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A greyed (H, W, 3) picture under colours that cover more where the heat is greater."""
    grey = picture @ np.array([0.299, 0.587, 0.114])
    base = 0.75 * np.repeat(grey[..., None], 3, 2)
    cover = 0.85 * heat[..., None] ** 0.7
    return (1 - cover) * base + cover * colormaps["inferno"](0.25 + 0.75 * heat)[..., :3]


def _add_scale(figure: Figure, place: list[float]) -> None:
    left, bottom, width = place
    axes = figure.add_axes((left, bottom, width, 0.1 / figure.get_figheight()))
    ramp = np.linspace(0, 1, 128)[None]
    axes.imshow(_with_heat(np.full((1, 128, 3), 0.5), ramp), aspect="auto")
    axes.set_xticks([0, 127], ["looks away", "looks most"], fontsize=8, color=_GREY)
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    axes.set_yticks([])
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)


def _plot_points(
    axes: Axes, epochs: np.ndarray, values: np.ndarray, color: str, label: str
) -> None:
    if len(values):
        axes.plot(epochs, values, color=color, label=label, marker="o", markersize=3)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Running mean with a memory of about ten values, unbiased at the start."""
    smooth, weight, result = 0.0, 0.0, []
    for value in values:
        smooth, weight = 0.9 * smooth + 0.1 * value, 0.9 * weight + 0.1
        result.append(smooth / weight)
    return np.array(result)


def _save(figure: Figure, path: str | Path) -> None:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, format="png", dpi=130)
    atomic_write(path, buffer.getvalue())
