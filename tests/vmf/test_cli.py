"""Each `vmf` command, as it is typed."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

import vmf
from vmf.cli.main import COMMANDS, main
from vmf.data import load_clip
from vmf.training import load_weights, train


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory) -> Path:
    """A finished run. Not to be changed."""
    return train(**small_run(tmp_path_factory.mktemp("cli") / "run")).folder


def test_the_command_lists_its_commands(capsys):
    assert main([]) == main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_and_ends_with_examples(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: vmf {command} [options]\n\n")
    examples = text.split("\nexamples:\n")[1]
    assert f"vmf {command} " in examples
    body = text.split("\nexamples:\n")[0]
    assert "_" not in "".join(word for word in body.split() if word.startswith("--"))
    lines = body.split("\n")
    for line, following in pairwise(lines):
        if line.startswith("  --"):
            explained = len(line.split("  ")) > 2 or following.startswith(" " * 20)
            assert explained, f"{line!r} is not explained"


def test_it_runs_as_a_module():
    ran = subprocess.run([sys.executable, "-m", "vmf", "nope"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"vmf: no command 'nope' (known: {', '.join(COMMANDS)})\n"


def test_models_tells_the_table_of_costs(capsys):
    assert main(["models"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[1:]}
    assert list(rows) == vmf.list_models()
    assert rows["vmf_1g"].split() == [
        *["vmf_1g", "8", "x", "224", "x", "224", "4", "x", "128", "3.88M", "0.868"]
    ]


def options(settings: dict) -> list[str]:
    """Settings as they are typed."""
    typed = []
    for name, value in settings.items():
        if name == "overrides":
            typed += [f"--overrides.{key.replace('_', '-')}={v}" for key, v in value.items()]
        elif value is not True:
            typed += [f"--{name.replace('_', '-')}", str(value)]
        else:
            typed.append(f"--{name.replace('_', '-')}")
    return typed


def test_train_then_resume_then_train_from_its_config(settings, run, tmp_path, capsys):
    assert main(["train", *options(settings)]) == 0
    told = capsys.readouterr().out
    assert "vmf_tiny: 0.0" in told and "18 clips of 4 x 16 x 16, 6 steps of 6" in told
    assert "epoch   2/2  loss " in told and "top-1 " in told
    assert f"{settings['out']}/best.safetensors: loss " in told
    # The same settings through Python gave the same run.
    for name in ("last.safetensors", "best.safetensors"):
        one, other = load_weights(run / name), load_weights(Path(settings["out"]) / name)
        for ours, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    assert main(["train", "--resume", settings["out"]]) == 0
    assert "going on after step 6" in capsys.readouterr().out

    config = f"{settings['out']}/config.yaml"
    again = ["--config", config, "--out", str(tmp_path / "again"), "--epochs", "1"]
    assert main(["train", *again, "--augment.flip-pairs", "[[left, right]]"]) == 0
    written = yaml.safe_load((tmp_path / "again" / "config.yaml").read_text())
    assert written["augment"]["flip_pairs"] == [["left", "right"]]
    assert (written["epochs"], written["size"]) == (1, 16)

    assert main(["train", *again, "--overwrite"]) == 0


def test_train_on_list_files(settings, clips, tmp_path, capsys):
    names = tmp_path / "classes.txt"
    names.write_text("left\nright\nstill\n")
    lists = {}
    for split in ("train", "val"):
        lists[split] = tmp_path / f"{split}.txt"
        lists[split].write_text(
            "".join(
                f"{path.relative_to(clips)} {label}\n"
                for label, name in enumerate(("left", "right", "still"))
                for path in sorted((clips / split / name).iterdir())
            )
        )
    files = ["--train-list", str(lists["train"]), "--val-list", str(lists["val"])]
    settings |= {"epochs": 1}
    assert main(["train", *options(settings), *files]) == 0
    assert load_weights(settings["out"]).classes == ["0", "1", "2"]
    settings |= {"out": str(tmp_path / "named")}
    assert main(["train", *options(settings), *files, "--classes", str(names)]) == 0
    assert load_weights(settings["out"]).classes == ["left", "right", "still"]
    weights = ["--weights", settings["out"], "--data", str(clips), "--workers", "0"]
    assert main(["eval", *weights, "--list-file", str(lists["val"])]) == 0
    assert "videos 6" in capsys.readouterr().out


def test_eval_averages_views_and_writes_results(run, clips, tmp_path, capsys):
    out = tmp_path / "results"
    views = ["--views", "3", "--crops", "3", "--batch-size", "4", "--workers", "0"]
    arguments = ["--weights", str(run), "--data", str(clips), "--out", str(out), *views]
    assert main(["eval", *arguments]) == 0
    told = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert f"top-1 {results['top1']:.1%}  top-5 100.0%" in told
    assert (results["count"], results["views"], results["crops"]) == (6, 3, 3)
    assert list(results["per_class"]) == ["left", "right", "still"]
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")

    loaded, right, confusion = load_weights(run), 0, torch.zeros(3, 3, dtype=torch.int64)
    for label, name in enumerate(loaded.classes):
        for path in (clips / "val" / name).iterdir():
            views, _ = load_clip(path, loaded.clip, views=3, crops=3)
            with torch.no_grad():
                best = loaded.model(views).softmax(1).mean(0).argmax()
            confusion[label, best] += 1
            right += best == label
    assert results["confusion"] == confusion.tolist()
    assert results["top1"] == pytest.approx(right / 6)


def test_predict_tells_the_best_classes_and_draws(run, clips, tmp_path, capsys):
    video = str(clips / "val" / "left" / "0.mp4")
    picture = tmp_path / "new" / "where.png"
    arguments = [video, "--weights", str(run), "--attention", str(picture), "--top", "2"]
    assert main(["predict", *arguments]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == video
    assert len(told) == 4 and all(line.endswith("%") for line in told[1:3])
    assert picture.read_bytes().startswith(b"\x89PNG")

    loaded = load_weights(run)
    with torch.no_grad():
        scores = loaded.model(load_clip(video, loaded.clip)[0]).softmax(1)[0]
    best = loaded.classes[scores.argmax()]
    assert told[1].split() == [best, f"{scores.max():.1%}"]


def test_predict_of_several_files(run, clips, tmp_path, capsys):
    videos = [str(clips / "val" / name / "0.mp4") for name in ("left", "right")]
    picture = ["--attention", str(tmp_path / "where.png")]
    arguments = [*videos, "--weights", str(run / "last.safetensors"), "--json", *picture]
    assert main(["predict", *arguments]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["file"] for line in told] == videos
    assert sum(value for _, value in told[0]["classes"]) == pytest.approx(1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["where-1-0.png", "where-2-0.png"]


_RUNS_ALONE = """
import sys, torch
more = {"vmf.json": ""}
program = torch.export.load(sys.argv[1], extra_files=more).module()
clips, logits = torch.load(sys.argv[2], weights_only=True)
for batch in (1, 5):
    torch.testing.assert_close(program(clips[:batch]), logits[:batch], rtol=1e-4, atol=1e-5)
assert not any(name.startswith("vmf") for name in sys.modules)
print(more["vmf.json"])
"""


def test_export_writes_a_program_that_runs_without_this_package(run, tmp_path, capsys):
    out = tmp_path / "model.pt2"
    assert main(["export", "--weights", str(run), "--out", str(out)]) == 0
    assert f"{out}: 3 classes, clips of 3 x 4 x 16 x 16" in capsys.readouterr().out
    loaded = load_weights(run)
    clips = torch.randn(5, 3, 4, 16, 16)
    with torch.no_grad():
        torch.save((clips, loaded.model(clips)), tmp_path / "expected.pt")
    ran = subprocess.run(
        [sys.executable, "-I", "-c", _RUNS_ALONE, str(out), str(tmp_path / "expected.pt")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    record = json.loads(ran.stdout)
    assert record["classes"] == ["left", "right", "still"]
    assert record["clip"]["frames"] == 4


def test_bench_compares_the_two_backends(capsys):
    small = ["--frames", "2", "--size", "16", "--batch-size", "2", "--rounds", "1"]
    assert main(["bench", "--model", "vmf_tiny", *small, "--device", "cpu"]) == 0
    told = capsys.readouterr().out.splitlines()
    macs = vmf.count_macs(vmf.create_model("vmf_tiny"), (3, 2, 16, 16)) / 1e9
    assert f"{macs:.3f} GMACs a clip of 2 x 16 x 16; batches of 2 in fp32 on cpu" in told[0]
    rows = [" ".join(line.split()[:-3]) for line in told[2:]]
    assert rows == ["inference ours", "inference PyTorch", "train step ours", "train step PyTorch"]
    assert all(line.endswith("x") for line in told[2:])
