"""A user's mistake: one line that names it, exit code 2, and no file that was not there before."""

import errno
import json
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vmf
from vmf.cli.main import main
from vmf.data import ClipSpec, write_video
from vmf.training import TrainConfig, load_weights, save_weights, train
from vmf.training import files as training_files


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail, and checks how it does."""

    def run(*arguments, says: tuple[str, ...], code: int = 2) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        told = capsys.readouterr().err
        last = told.splitlines()[-1]
        assert last.startswith(f"vmf {arguments[0]}: "), told
        assert "Traceback" not in told
        others = told.splitlines()[:-1]
        assert all(line.startswith("passed over: ") for line in others), told
        for words in says:
            assert words in last, last
        return told

    return run


@pytest.fixture(scope="module")
def weights(small_run, tmp_path_factory) -> Path:
    """Weights of a network that was not trained. Not to be changed."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    config = small_run(path)
    model = vmf.create_model("vmf_tiny", 3, **config["overrides"])
    return save_weights(path, model, ["left", "right", "still"], ClipSpec(4, 1, 16))


def write_audio(path: Path) -> None:
    """A video file without a video stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for start in range(0, 8192, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), "float32"), "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def bad_videos(clips, tmp_path_factory) -> dict[str, Path]:
    """Each way in which a file is no clip."""
    folder = tmp_path_factory.mktemp("bad")
    kinds = ("missing", "empty", "text", "truncated", "audio", "short")
    files = {kind: folder / f"{kind}.mp4" for kind in kinds}
    files["empty"].touch()
    files["text"].write_text("no video " * 100)
    whole = (clips / "val" / "left" / "0.mp4").read_bytes()
    files["truncated"].write_bytes(whole[: len(whole) // 2])
    write_audio(files["audio"])
    write_video(files["short"], np.zeros((2, 32, 32, 3), np.uint8))
    return files


BAD_KINDS = ("missing", "empty", "text", "truncated", "audio", "short")


@pytest.mark.parametrize("kind", BAD_KINDS)
def test_predict_names_a_file_that_is_no_clip(kind, bad_videos, weights, clips, fails, tmp_path):
    picture = tmp_path / "where.png"
    arguments = ["--weights", weights, "--attention", picture]
    fails("predict", bad_videos[kind], *arguments, says=(str(bad_videos[kind]),))
    assert not picture.exists()


def test_predict_tells_the_other_files(bad_videos, weights, clips, capsys):
    good = clips / "val" / "left" / "0.mp4"
    files = [bad_videos["text"], good, bad_videos["audio"]]
    assert main(["predict", *map(str, files), "--weights", str(weights)]) == 2
    told = capsys.readouterr()
    assert [str(good)] == [line for line in told.out.splitlines() if not line.startswith(" ")]
    assert len(told.err.splitlines()) == 2


@pytest.fixture
def spoilt(bad_videos, clips, tmp_path) -> Path:
    """The clips, 5 of the 18 to train on and 5 of the 6 to validate on replaced by bad files."""
    root = Path(shutil.copytree(clips, tmp_path / "spoilt"))
    for split in ("train", "val"):
        targets = sorted((root / split).glob("*/*.mp4"))[:5]
        for target, kind in zip(targets, BAD_KINDS[1:], strict=True):
            target.write_bytes(bad_videos[kind].read_bytes())
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_training_passes_over_bad_files_and_counts_them(settings, spoilt, workers, capsys):
    result = train(**settings | {"data": str(spoilt), "workers": workers, "epochs": 1})
    assert len(result.bad_files) == 10
    told = capsys.readouterr().err
    assert told.count("passed over: ") == 10
    assert all(line in told for line in result.bad_files)
    assert result.steps == 3


def test_training_gives_up_past_a_number_of_bad_files(settings, spoilt, fails):
    config = config_of(settings | {"data": str(spoilt)})
    fails(
        *("train", "--config", config, "--max-bad-files", 3),
        says=("max_bad_files: at most 3 unreadable videos", str(spoilt)),
    )


def test_training_names_a_bad_file_if_there_is_no_other(settings, clips, tmp_path, fails):
    root = Path(shutil.copytree(clips, tmp_path / "broken"))
    for path in root.glob("train/*/*.mp4"):
        path.write_text("broken")
    config = config_of(settings | {"data": str(root)})
    fails(
        *("train", "--config", config, "--max-bad-files", 100),
        says=("must have readable videos", str(root)),
    )


def test_eval_passes_over_bad_files_and_gives_up_past_a_number(spoilt, weights, fails, capsys):
    arguments = ["eval", "--weights", str(weights), "--data", str(spoilt), "--workers", "0"]
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert told.err.count("passed over: ") == 5 and "videos 1" in told.out
    fails(*arguments, "--max-bad-files", 4, says=("at most 4 unreadable", "got 5", str(spoilt)))


def config_of(settings: dict) -> str:
    """Writes settings to a file beside the run."""
    path = Path(settings["out"]).with_name("config.json")
    path.write_text(json.dumps(TrainConfig(**settings).to_dict()))
    return str(path)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["--lr", "fast"], ("lr: ", "float", "fast")),
        (["--lr", "-1"], ("lr: must be at least 0 (got -1.0)",)),
        (["--lrr", "1"], ("--lrr",)),
        (["--precision", "fp64"], ("precision: ", "fp64", "bf16")),
        (["--precision", "fp16"], ("precision: fp16 needs a CUDA device",)),
        (["--device", "tpu"], ("device: must be auto, cpu or cuda (got tpu)",)),
        (["--device", "cuda:99"], ("device: cuda:99 is not there",)),
        (["--model", "vmf_huge"], ("vmf_huge",)),
        (["--overrides.depth", "3"], ("depth",)),
        (["--overrides.num-tokens", "few"], ("num_tokens", "few")),
        (["--batch-size", "7", "--accumulate", "2"], ("batch_size: must be a multiple", "7")),
        (["--batch-size", "20"], ("batch_size: ", "got 20, found 18")),
        (["--augment.flip", "2"], ("flip", "2")),
        (["--augment.flip-pairs", "[[left, up]]"], ("flip_pairs", "'up'")),
        (["--size", "0"], ("size must be at least 1",)),
        (["--data", "/no/such/folder"], ("/no/such/folder/train",)),
        (["--val-split", "test"], ("/test",)),
        (["--train-list", "/no/list.txt"], ("/no/list.txt",)),
        (["--classes", "/no/classes.txt"], ("/no/classes.txt",)),
        (["--init-from", "/no/weights.safetensors"], ("/no/weights.safetensors",)),
        (["--resume", "/no/run"], ("/no/run", "state.safetensors")),
        (["--config", "/no/config.yaml"], ("/no/config.yaml",)),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_train_names_a_wrong_option(typed, says, settings, fails):
    before = config_of(settings)
    fails("train", "--config", before, *typed, says=says)
    assert not Path(settings["out"]).exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: x\nlearning_rate: 1\n", ("learning_rate",)),
        ("data: x\naugment:\n  flop: 1\n", ("augment", "flop")),
        ("data: x\nepochs: many\n", ("epochs", "many")),
        ("data: [x\n", ("config",)),
        ("just words\n", ("just words",)),
    ],
)
def test_train_names_a_wrong_key_of_a_config_file(text, says, tmp_path, fails):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    fails("train", "--config", config, says=says)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_train_wants_data_and_predict_files(weights, fails):
    fails("train", says=("data: must name a folder of videos",))
    fails("predict", "--weights", weights, says=("files",))
    fails("predict", "x.mp4", says=("weights",))


def test_an_empty_class_folder_and_an_unknown_class_are_named(settings, clips, tmp_path, fails):
    root = Path(shutil.copytree(clips, tmp_path / "copy"))
    config = config_of(settings | {"data": str(root)})
    (root / "train" / "empty").mkdir()
    fails("train", "--config", config, says=(str(root / "train" / "empty"),))
    (root / "train" / "empty").rmdir()
    shutil.copytree(root / "val" / "left", root / "val" / "sideways")
    fails("train", "--config", config, says=("unknown labels", "sideways"))
    shutil.rmtree(root)
    root.mkdir()
    fails("train", "--config", config, says=(str(root),))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty list"),
        ("val/left/0.mp4 7\n", ":1: unknown label (got '7'"),
        ("val/left/0.mp4 left\nval/left/1.mp4 up\n", ":2: unknown label (got 'up'"),
        ("val/left/0.mp4\n", ":1: a line must read"),
    ],
)
def test_a_wrong_list_file_is_named(text, says, weights, clips, tmp_path, fails):
    path = tmp_path / "list.txt"
    path.write_text(text)
    data = ["--data", clips, "--list-file", path]
    fails("eval", "--weights", weights, *data, says=(str(path), says))


def test_eval_refuses_classes_that_are_not_the_weights_own(weights, clips, tmp_path, fails):
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    data = ["--data", clips, "--classes", names]
    fails("eval", "--weights", weights, *data, says=(str(names), "got 2, the weights have 3"))


def test_views_and_crops_out_of_range_are_named(weights, clips, fails):
    data = ["--weights", weights, "--data", clips, "--workers", "0"]
    fails("eval", *data, "--crops", "2", says=("crops must be 1 or 3 (got 2)",))
    fails("eval", *data, "--views", "0", says=("views must be at least 1 (got 0)",))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-50] ^= 255
    path.write_bytes(data)


def keep_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, keep_the_header])
def test_damaged_weights_are_named(damage, weights, clips, tmp_path, fails):
    path = tmp_path / "damaged.safetensors"
    shutil.copyfile(weights, path)
    damage(path)
    video = clips / "val" / "left" / "0.mp4"
    fails("predict", video, "--weights", path, says=(str(path),))
    fails("export", "--weights", path, says=(str(path),))
    assert [p.name for p in tmp_path.iterdir()] == ["damaged.safetensors"]


def test_files_that_are_no_weights_are_named(weights, clips, tmp_path, fails):
    pickled, plain = tmp_path / "pickled.pth", tmp_path / "plain.safetensors"
    torch.save({"weight": torch.ones(1)}, pickled)
    save_file({"weight": torch.ones(1)}, plain)
    data = ["--data", clips]
    for path in (pickled, plain, tmp_path, tmp_path / "missing.safetensors"):
        fails("eval", "--weights", path, *data, says=(str(path),))


class Malicious:
    def __reduce__(self):
        return (os.mkdir, ("pwned",))


def test_a_pickle_with_code_is_refused(settings, tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Malicious()}, tmp_path / "evil.pth")
    config = config_of(settings)
    fails("train", "--config", config, "--init-from", "evil.pth", says=("evil.pth",))
    assert not Path("pwned").exists()
    assert not Path(settings["out"]).exists()


def test_weights_of_another_model_are_named(settings, tmp_path, weights, fails):
    other = tmp_path / "other.safetensors"
    loaded = load_weights(weights)
    model = vmf.create_model("vmf_26m", 3)
    save_weights(other, model, loaded.classes, loaded.clip)
    config = config_of(settings)
    start = ["train", "--config", config, "--init-from"]
    fails(*start, other, says=(str(other), "vmf_26m", "vmf_tiny"))
    wider = ["--overrides.token-dim", "16"]
    fails(*start, weights, *wider, says=(str(weights), "another model", "must be"))


def test_a_damaged_state_is_named(settings, fails):
    folder = train(**settings | {"epochs": 1}).folder
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    flip_a_byte(folder / "state.safetensors")
    fails("train", "--resume", folder, says=("state.safetensors", "damaged"))
    before.pop(folder / "state.safetensors")
    assert all(path.read_bytes() == data for path, data in before.items())


def test_a_setting_that_cannot_change_on_resume_is_named(settings, fails):
    folder = train(**settings | {"epochs": 1}).folder
    resume = ["train", "--resume", folder]
    fails(*resume, "--lr", "0.5", says=("lr: cannot change", "got 0.5, it has 0.001"))
    fails(
        *resume,
        "--augment.flip",
        "0.1",
        says=(
            "augment.flip: cannot change",
            "got 0.1, it has 0.5",
        ),
    )
    assert main(["train", "--resume", str(folder), "--lr", "0.001", "--workers", "0"]) == 0


def test_a_loss_that_is_not_finite_is_named_and_keeps_the_last_state(settings, fails, monkeypatch):
    from vmf.training.step import Stepper

    take = Stepper.__call__

    def broken(stepper, step, lr, chunks):
        loss, norm = take(stepper, step, lr, chunks)
        return (loss * float("nan"), norm) if step == 4 else (loss, norm)

    monkeypatch.setattr(Stepper, "__call__", broken)
    config = config_of(settings)
    says = ("loss: must stay finite (got nan at step 5, learning rate",)
    fails("train", "--config", config, says=says)
    monkeypatch.undo()
    unbroken = train(**settings | {"out": settings["out"] + "-unbroken"})
    assert main(["train", "--resume", settings["out"]]) == 0
    for name in ("last", "best"):
        ours = load_weights(Path(settings["out"]) / f"{name}.safetensors").model.state_dict()
        theirs = load_weights(unbroken.folder / f"{name}.safetensors").model.state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_rate_that_breaks_the_network_is_named(settings, fails):
    config = config_of(settings | {"lr": 1e6, "warmup_epochs": 0.0, "clip_grad": 0.0, "epochs": 9})
    fails("train", "--config", config, says=("must stay finite", "learning rate"))


@pytest.mark.parametrize("write", [1, 3, 4, 8])
def test_a_full_disk_is_named_and_leaves_whole_files(settings, write, fails, monkeypatch):
    fsync, count = os.fsync, 0

    def full(descriptor):
        nonlocal count
        if os.path.isfile(f"/proc/self/fd/{descriptor}"):  # not the syncing of a folder
            count += 1
            if count >= write:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(training_files.os, "fsync", full)
    fails("train", "--config", config_of(settings), says=(settings["out"], "no space left on"))
    monkeypatch.undo()
    folder = Path(settings["out"])
    assert not list(folder.glob(".*")), "a temporary file was left"
    for path in folder.glob("*.safetensors"):
        if path.name != "state.safetensors":
            load_weights(path)
    if (folder / "state.safetensors").exists():
        assert main(["train", "--resume", str(folder)]) == 0


def test_a_full_disk_is_named_where_rows_are_appended(settings, fails, monkeypatch):
    from vmf.training.logs import CsvLog

    def full(log, **values):
        with open("/dev/full", "w") as file:
            file.write("row\n")

    monkeypatch.setattr(CsvLog, "write", full)
    fails("train", "--config", config_of(settings), says=("no space left on device",))


def test_a_file_where_a_folder_should_be_is_named(settings, weights, clips, tmp_path, fails):
    taken = tmp_path / "taken"
    taken.touch()
    config = config_of(settings)
    fails("train", "--config", config, "--out", taken / "run", says=(str(taken),))
    data = ["--data", clips, "--workers", "0"]
    fails("eval", "--weights", weights, *data, "--out", taken / "x", says=(str(taken),))


def test_export_and_bench_name_a_wrong_option(weights, tmp_path, fails):
    fails("export", "--weights", weights, "--out", tmp_path / "m.onnx", says=(".pt2", "m.onnx"))
    fails("bench", "--model", "vmf_1h", says=("vmf_1h", "vmf_1g"))
    fails("bench", "--batch-size", "1", says=("batch_size: must be at least 2 (got 1)",))
    fails("models", "--num-classes", "x", says=("num_classes", "x"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["jsonargparse", "av"])
def test_a_package_that_is_not_installed_is_named(package, fails, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    monkeypatch.setattr("vmf.cli.main.importlib.import_module", missing)
    fails("train", says=(f"needs the Python package {package}: pip install",))
