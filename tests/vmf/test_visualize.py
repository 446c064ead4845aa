"""Pictures: they are PNGs of sensible size, show what they are given, and replace files whole."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vmf.visualize import attention_png, confusion_matrix_png, curves_png

HEADER = "step,epoch,loss,lr,grad_norm,clips_per_s,val_loss,top1,top5\n"


def picture(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


@pytest.mark.parametrize("count", [1, 2, 9, 70])
def test_confusion_matrix_of_any_size(tmp_path, count):
    path = tmp_path / "confusion.png"
    names = [f"class {number}" for number in range(count)]
    confusion_matrix_png(path, np.eye(count, dtype=int), names)
    right = picture(path)
    confusion_matrix_png(path, np.zeros((count, count), int).tolist(), names)
    assert 400 < right.shape[1] < 2600
    assert not np.array_equal(right, picture(path))
    assert [item.name for item in tmp_path.iterdir()] == ["confusion.png"]


def test_confusion_matrix_colours_shares_of_the_true_class(tmp_path):
    """Twice the counts in all of a row is the same row: only the printed numbers differ."""
    names = [f"class {number}" for number in range(30)]  # too many for numbers in the cells
    matrix = np.random.default_rng(0).integers(1, 5, (30, 30))
    for name, counts in (("once", matrix), ("twice", 2 * matrix)):
        confusion_matrix_png(tmp_path / name, counts, names)
    once, twice = picture(tmp_path / "once"), picture(tmp_path / "twice")
    quarter = len(once) // 4  # past the title, which tells the counts
    assert np.array_equal(once[quarter:], twice[quarter:])


@pytest.mark.parametrize(
    "rows",
    [
        "",
        "10,0.5,2.1,0.001,1.0,90,,,\n",
        "10,0.5,2.1,0.001,1.0,90,,,\n20,1.0,,,,,1.9,0.4,0.9\n",
        "20,1.0,,,,,1.9,0.4,0.9\n",
    ],
    ids=["nothing yet", "training only", "both", "validation only"],
)
def test_curves_at_any_moment_of_a_run(tmp_path, rows):
    (tmp_path / "metrics.csv").write_text(HEADER + rows)
    curves_png(tmp_path / "curves.png", tmp_path / "metrics.csv")
    drawn = picture(tmp_path / "curves.png")
    blue = (drawn[..., 2] - drawn[..., 0] > 60).any()
    orange = (drawn[..., 0] - drawn[..., 2] > 100).any()
    assert (blue, orange) == ("2.1" in rows, "1.9" in rows)


@pytest.mark.parametrize("as_tensor", [True, False])
def test_attention_is_hot_where_a_token_looks(tmp_path, as_tensor):
    frames = np.full((4, 32, 32, 3), 128, np.uint8)
    weights = np.full((2, 4, 4, 4), 1e-3)
    weights[0, 0, 0, 0] = 1  # token 0: first frame, upper left
    weights[1, 3, 3, 3] = 1  # token 1: last frame, lower right
    if as_tensor:
        frames, weights = torch.from_numpy(frames), torch.from_numpy(weights).half()
    path = tmp_path / "attention.png"
    attention_png(path, frames, weights, "clip.mp4: pan_left 97%")
    drawn = picture(path)
    hot = (drawn[..., 0] - drawn[..., 2]) > 100
    hot[int(0.9 * len(hot)) :] = False  # the colour scale at the bottom
    rows, columns = np.nonzero(hot)
    height, width = hot.shape
    upper = rows < 0.6 * height
    assert upper.any() and (~upper).any()
    assert columns[upper].max() < 0.35 * width and columns[~upper].min() > 0.65 * width


def test_attention_of_fewer_positions_in_time_and_of_wide_frames(tmp_path):
    frames = np.zeros((8, 24, 48, 3), np.uint8)
    attention_png(tmp_path / "wide.png", frames, np.random.default_rng(0).random((1, 4, 2, 3)))
    height, width = picture(tmp_path / "wide.png").shape[:2]
    assert width > 2 * height


def test_unwritable_target_names_the_file(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        confusion_matrix_png(tmp_path / "nowhere" / "confusion.png", [[1]], ["a"])
