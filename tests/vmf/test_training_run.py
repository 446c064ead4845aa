"""Whole runs: they learn, keep what they should, and go on exactly where they stopped."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vmf
from vmf.training import (
    Stopped,
    TrainConfig,
    evaluate,
    load_weights,
    resumed_config,
    save_weights,
    train,
)
from vmf.training import files as training_files
from vmf.training.checkpoint import STATE_FILE
from vmf.training.logs import Logs, read_log

TIMING = {"clips_per_s"}


def figures(folder: str | Path) -> list[dict]:
    """The log, without what depends on the clock."""
    rows = read_log(Path(folder) / "metrics.csv")
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows]


def same_tensors(first: Path, second: Path) -> bool:
    one, two = load_file(first), load_file(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def assert_same_run(one: str | Path, other: str | Path) -> None:
    """Every logged figure, every weight, every moment of the optimizer."""
    assert figures(one) == figures(other)
    for name in ("last.safetensors", "best.safetensors", STATE_FILE):
        assert same_tensors(Path(one) / name, Path(other) / name), name


@pytest.fixture(scope="module")
def once(small_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with `settings` that nothing happened to. Not to be changed."""
    return train(**small_run(tmp_path_factory.mktemp("once") / "run")).folder


@pytest.fixture
def unbroken(once: Path, tmp_path: Path) -> Path:
    """A copy of `once` that may be changed."""
    return Path(shutil.copytree(once, tmp_path / "unbroken"))


def test_it_learns_which_way_things_move(settings, clips):
    plain = {"mixup": 0.0, "cutmix": 0.0, "drop_rate": 0.0, "drop_path_rate": 0.0, "ema": 0.0}
    learning = {"epochs": 30, "lr": 0.01, "label_smoothing": 0.0, "save_every": 0}
    still = {"augment": vmf.data.AugmentOptions(crop_scale=(0.9, 1), flip=0, color_jitter=0)}
    result = train(**settings | plain | learning | still)
    losses = [float(row["loss"]) for row in figures(result.folder) if row["loss"]]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert result.steps == len(losses) == 90
    assert result.weights == result.folder / "best.safetensors"
    again = evaluate(result.folder, clips, workers=0, device="cpu")
    assert again.top1 == result.top1 > 0.6  # chance is a third
    assert again.count == 6


def test_a_run_leaves_what_it_says(settings):
    result = train(**settings | {"tensorboard": True, "epochs": 2, "eval_every": 2})
    names = {path.name for path in result.folder.iterdir()}
    assert names == {
        "best.safetensors",
        "config.yaml",
        "curves.png",
        "last.safetensors",
        "metrics.csv",
        "state.safetensors",
        "tensorboard",
    }
    assert (result.folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert any((result.folder / "tensorboard").iterdir())
    rows = figures(result.folder)
    assert [row["step"] for row in rows if row["loss"]] == ["1", "2", "3", "4", "5", "6"]
    assert [row["epoch"] for row in rows if row["top1"]] == ["2"]
    weights = load_weights(result.folder)
    assert weights.classes == ["left", "right", "still"]
    assert (weights.clip.frames, weights.clip.stride, weights.clip.size) == (4, 1, 16)
    assert weights.info["step"] == 6
    assert weights.model.config.token_dim == 8
    assert weights.info["config"]["lr"] == 1e-3


def test_kept_weights_are_the_ema(settings):
    result = train(**settings | {"epochs": 1})
    state = load_file(result.folder / STATE_FILE)
    kept = load_file(result.folder / "last.safetensors")
    assert all(torch.equal(kept[name], state[f"ema.{name}"]) for name in kept)
    assert not all(torch.equal(kept[name], state[f"model.{name}"]) for name in kept)


def test_workers_change_nothing(settings, unbroken):
    result = train(**settings | {"workers": 2})
    assert_same_run(unbroken, result.folder)


class Crash(BaseException):
    """The process is gone: nothing may catch this."""


@pytest.mark.parametrize(
    ("write", "moment"),
    [(3, "before"), (4, "before"), (4, "after"), (7, "after"), (8, "after"), (9, "after")],
)
def test_going_on_after_a_crash_at_any_write_is_exact(
    settings, unbroken, monkeypatch, write, moment
):
    """Writes 3 and 4: weights and state of step 1; 7 to 9: best, last and state of an epoch."""
    replace, count = os.replace, 0

    def crashing(source, target):
        nonlocal count
        count += 1
        if count == write and moment == "before":
            raise Crash
        replace(source, target)
        if count == write:
            raise Crash

    monkeypatch.setattr(training_files.os, "replace", crashing)
    with pytest.raises(Crash):
        train(**settings)
    monkeypatch.undo()
    state = Path(settings["out"]) / STATE_FILE
    train(**settings | {"resume": "auto", "overwrite": not state.exists()})
    assert_same_run(unbroken, settings["out"])


def test_going_on_after_kill_9_at_a_random_moment_is_exact(settings, tmp_path):
    settings |= {"epochs": 15}
    unbroken = train(**settings | {"out": str(tmp_path / "unbroken")}).folder
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TrainConfig(**settings).to_dict()))
    command = [sys.executable, "-m", "vmf", "train", "--config", str(config), "--resume", "auto"]
    state = Path(settings["out"]) / STATE_FILE
    moments = [random.SystemRandom().uniform(0, 0.5) for _ in range(2)]
    for moment in moments:
        before = state.stat().st_mtime_ns if state.exists() else 0
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while run.poll() is None and not (state.exists() and state.stat().st_mtime_ns > before):
            time.sleep(0.005)
        time.sleep(moment)
        run.kill()
        assert run.wait() == -signal.SIGKILL, f"it ended before it was killed ({moments})"
    result = train(resumed_config(settings["out"]))
    assert result.steps == 45
    assert_same_run(unbroken, settings["out"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_at_the_end_of_a_step_and_going_on_is_exact(
    settings, unbroken, monkeypatch, number
):
    settings |= {"save_every": 0}
    step = Logs.step

    def signalled(logs, epoch, batch_size):
        step(logs, epoch, batch_size)
        if epoch == 1:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Logs, "step", signalled)
    handler = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        train(**settings)
    assert signal.getsignal(number) is handler
    assert (stopped.value.signal, stopped.value.folder) == (number, settings["out"])
    monkeypatch.undo()
    result = train(resumed_config(stopped.value.folder))
    assert figures(result.folder) == figures(unbroken)
    assert same_tensors(result.folder / "best.safetensors", unbroken / "best.safetensors")


def test_a_resumed_run_keeps_a_whole_log(settings, unbroken):
    """Rows of steps that will be taken again go, and so does half a row."""
    folder = Path(settings["out"])
    train(**settings | {"epochs": 1})
    with open(folder / "metrics.csv", "a", encoding="utf-8") as file:
        file.write("4,1.3333,0.5,0.1,1,9,,,\n5,1.6")
    train(resumed_config(folder))
    assert [row["step"] for row in figures(folder)] == ["1", "2", "3", "3"]


def test_a_finished_run_that_goes_on_is_left_as_it_is(settings, unbroken):
    before = {p.name: p.read_bytes() for p in unbroken.iterdir() if p.suffix == ".safetensors"}
    result = train(resumed_config(unbroken))
    assert result.steps == 6
    assert result.top1 is not None and result.loss > 0
    assert all((unbroken / name).read_bytes() == data for name, data in before.items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.5}, "lr 0.001 became 0.5"),
        ({"epochs": 9}, "epochs 2 became 9"),
        ({"overrides": {}}, "overrides"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(unbroken, changed, message):
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(resumed_config(unbroken), **changed))


def test_a_run_does_not_go_on_with_other_clips(settings, unbroken, tmp_path, clips):
    moved = shutil.copytree(clips, tmp_path / "moved")
    assert train(resumed_config(unbroken, data=str(moved))).steps == 6
    (moved / "train" / "left" / "0.mp4").rename(moved / "train" / "right" / "x.mp4")
    with pytest.raises(ValueError, match="training clips must be those the run began with"):
        train(resumed_config(unbroken, data=str(moved)))


def test_a_run_is_not_overwritten_unless_asked(settings, unbroken):
    settings |= {"out": str(unbroken), "epochs": 1}
    with pytest.raises(ValueError, match=r"already holds a run; continue it with --resume"):
        train(**settings)
    assert train(**settings, overwrite=True).steps == 3
    assert len(figures(unbroken)) == 4


def test_fine_tuning_starts_from_weights_and_changes_the_head(settings, unbroken, tmp_path):
    weights = load_weights(unbroken)
    path = tmp_path / "four.safetensors"
    model = vmf.create_model(**dataclasses.asdict(weights.model.config) | {"num_classes": 4})
    save_weights(path, model, list("abcd"), weights.clip)
    frozen = {"lr": 0.0, "min_lr": 0.0, "weight_decay": 0.0, "ema": 0.0, "epochs": 1}
    result = train(**settings | frozen | {"init_from": str(path)})
    tuned = load_weights(result.folder).model.state_dict()
    for name, parameter in model.named_parameters():
        assert torch.equal(tuned[name], parameter) != name.startswith("head.classifier"), name


def test_training_from_an_image_checkpoint(settings, clips):
    import numpy as np

    vectors = np.load(Path(__file__).parents[1] / "data" / "mobile_former_tiny.npz")
    image = {
        name.removeprefix("state/"): torch.from_numpy(vectors[name])
        for name in vectors.files
        if name.startswith("state/")
    }
    path = Path(settings["out"]).with_name("image.pth")
    torch.save({"state_dict": image}, path)
    network = {
        "stem": 8,
        "blocks": "L2-8 | D6-12 M3-12 | D6-16 M4-16 M4-20",
        "num_tokens": 3,
        "token_dim": 32,
        "head_features": 48,
    }
    frozen = {"lr": 0.0, "min_lr": 0.0, "weight_decay": 0.0, "ema": 0.0, "epochs": 1}
    result = train(**settings | frozen | {"init_from": str(path), "overrides": network})
    tuned = load_weights(result.folder).model.state_dict()
    assert torch.equal(tuned["tokens"], image["tokens.weight"])
    assert torch.equal(tuned["stem.conv.weight"][:, :, 0], image["stem.0.weight"])
    assert tuned["head.classifier.weight"].shape == (3, 48)


def test_bf16_trains(settings):
    result = train(**settings | {"precision": "bf16", "epochs": 1})
    assert 0 < result.loss < 10
    plain = train(**settings | {"epochs": 1, "out": settings["out"] + "32"})
    assert abs(result.loss - plain.loss) < 0.1 and result.loss != plain.loss


def test_gradient_checkpointing_changes_memory_alone(settings, unbroken):
    result = train(**settings | {"grad_checkpointing": True})
    for one, other in zip(figures(unbroken), figures(result.folder), strict=True):
        if one["loss"]:
            assert abs(float(one["loss"]) - float(other["loss"])) < 1e-4


def test_training_leaves_the_random_state_alone(settings):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(**settings | {"epochs": 1, "validate": False})
    assert torch.equal(torch.rand(2), expected)


def test_without_validation_the_last_weights_are_the_result(settings):
    result = train(**settings | {"epochs": 1, "validate": False, "val_split": "none"})
    assert result.top1 is None
    assert result.weights.name == "last.safetensors"
    assert not (result.folder / "best.safetensors").exists()
