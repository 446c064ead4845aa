"""Whole runs on small cases, through the command line."""

import csv
import dataclasses
import os
import re
import signal
from pathlib import Path

import pytest
import torch

from bench import cli, onnx_peer, options, red
from bench.cases import AttentionCase, Case, DepthwiseCase, ReluCase, TransposeCase
from bench.networks import ModelCase
from bench.op import OpBench
from bench.ops import BENCHES
from bench.timing import Effort

TINY: dict[str, Case] = {
    "depthwise_conv3d": DepthwiseCase(
        "net", 2, 1, 4, 2, (3, 5, 6), (3, 3, 3), (1, 2, 2), (1, 1, 1)
    ),
    "depthwise_conv_transpose3d": TransposeCase(
        "net", 2, 1, 4, 2, (3, 3, 3), (3, 3, 3), (1, 2, 2), (1, 1, 1)
    ),
    "few_query_attention": AttentionCase("net", 2, 1, 4, (2, 3, 3), 3, 2),
    "few_key_attention": AttentionCase("net", 2, 1, 4, (2, 3, 3), 3, 2),
    "dynamic_relu": ReluCase("net", 2, 1, 4, (2, 3, 3)),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """One small case for each op, a small network, and a moment of measuring."""
    benches = {
        name: dataclasses.replace(bench, cases=lambda case=TINY[name]: (case,))
        for name, bench in BENCHES.items()
    }
    monkeypatch.setattr(cli, "BENCHES", benches)
    monkeypatch.setattr(options, "QUICK", Effort(0.0, 2, 2, sample_seconds=0.0))
    monkeypatch.setattr(onnx_peer, "find_spec", lambda name: None)  # as where it is not installed
    networks = {"cpu": (ModelCase("vmf_tiny", 3, 1, (2, 32, 32)),)}
    monkeypatch.setattr("bench.networks.CASES", networks)
    return benches


def test_every_op_in_every_layout_and_mode(capsys, tmp_path: Path):
    assert cli.main(["--quick", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for op in BENCHES:
        for mode in ("forward", "forward+backward"):
            assert f"### {op}: {mode}, float32" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        "ops-cpu-quick.csv",
        "ops-cpu-quick.md",
    }
    assert (tmp_path / "ops-cpu-quick.md").read_text() == text
    lines = (tmp_path / "ops-cpu-quick.csv").read_text().splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    ran = [row for row in rows if row["status"] == "ran"]
    ours = [row for row in ran if row["contender"] == "ours"]
    assert len(ours) == len(BENCHES) * 2 * 2 and all(float(row["speedup"]) > 0 for row in ours)
    assert {row["contender"] for row in ran} == {"ours", "eager", "matmul form", "SDPA"}
    assert "# revision: " in "\n".join(lines)


def test_every_optional_peer_that_needs_no_compiler_gives_the_same_numbers(tiny, monkeypatch):
    # Compiling takes too long for a test: the plain function stands in for the compiled one.
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    for arguments in (["--only", "."], ["--dtype", "bfloat16"]):
        assert cli.main(["--quick", "--peers", "all", *arguments]) == 0


def test_16_bit_dtypes(capsys):
    assert cli.main(["--quick", "--dtype", "bfloat16", "--dtype", "float16"]) == 0
    text = capsys.readouterr().out
    assert "### depthwise_conv3d: forward, bfloat16" in text
    assert "eager via float32 contiguous ms" in text


def test_only_selects_by_op_shape_and_mode(capsys):
    assert cli.main(["--quick", "--check-only", "--only", r"depthwise_conv3d .*backward"]) == 0
    told = capsys.readouterr()
    assert "[1/1] depthwise_conv3d net 2x4x3x5x6 k3x3x3 s1x2x2 m2 forward+backward" in told.err
    assert "dynamic_relu" not in told.out
    assert "only the numbers of ours were checked" in told.out


def test_nothing_selected_is_said(capsys):
    assert cli.main(["--quick", "--check-only", "--only", "no such case"]) == 0
    assert "No case matches --only." in capsys.readouterr().out


def broken(bench: OpBench, spoil) -> OpBench:
    def function(*args):
        return spoil(bench.function(*args))

    function.__name__ = bench.name
    return dataclasses.replace(bench, function=function)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda y: y * 1.001, "the output is off by 1.0e-03"),
        (lambda y: y + torch.zeros_like(y).index_fill_(0, torch.tensor(1), float("nan")), "nan"),
        (lambda y: y[:, :1], "the output has shape"),
        (lambda y: y.detach() * 2 - y, "the gradient of input 0 is off by 2.0e+00"),
        (lambda y: 1 // 0, "ZeroDivisionError: "),
    ],
)
def test_wrong_numbers_print_no_speedup_and_fail(spoil, told: str, tiny, capsys):
    tiny["dynamic_relu"] = broken(tiny["dynamic_relu"], spoil)
    assert cli.main(["--quick", "--only", "dynamic_relu.*backward"]) == 1
    printed = capsys.readouterr()
    assert told in printed.out and "WRONG" in printed.out and "WRONG" in printed.err
    assert "all cases" not in printed.out


def test_a_peer_that_fails_is_listed_with_its_reason(tiny, capsys):
    def fails(case, *inputs):
        raise RuntimeError("no such instruction\nsecond line")

    bench = tiny["dynamic_relu"]
    wrong = dataclasses.replace(bench.peers[0], name="other op", run=lambda case, x, a, b: 3 * x)
    failing = dataclasses.replace(bench.peers[0], name="failing", run=fails)
    tiny["dynamic_relu"] = dataclasses.replace(bench, peers=(*bench.peers, failing, wrong))
    assert cli.main(["--quick", "--only", "dynamic_relu.*forward$"]) == 0
    text = capsys.readouterr().out
    assert "failing (channels_last_3d, contiguous), 1 of 1 rows: RuntimeError: no such" in text
    assert re.search(r"other op \(.*\), 1 of 1 rows: the output is off by", text)
    assert "second line" not in text


def test_an_op_with_red_tests_gets_no_speedup(tiny, monkeypatch, capsys):
    monkeypatch.setattr(options, "FULL", Effort(0.0, 1, 1, sample_seconds=0.0))
    monkeypatch.setattr(cli, "red_ops", lambda ops, tell: {"dynamic_relu": "its tests are red: 1"})
    assert cli.main(["--only", "dynamic_relu|few_key"]) == 1
    text = capsys.readouterr().out
    assert "its tests are red: 1" in text
    few_key, relu, targets = text.split("\n## ")[1:]
    assert "all cases" in few_key and "all cases" not in relu
    assert "few_key_attention: all" in targets and "dynamic_relu" not in targets


def test_red_and_missing_tests_are_found(tmp_path: Path, monkeypatch):
    folder = tmp_path / "tests" / "ops"
    folder.mkdir(parents=True)
    (folder / "test_good.py").write_text("def test_it(): pass\n")
    (folder / "test_all.py").write_text("def test_bad(): assert False\ndef test_good(): pass\n")
    monkeypatch.setattr(red, "ROOT", tmp_path)
    found = red.red_ops(["good", "bad", "missing"], lambda line: None)
    assert list(found) == ["bad", "missing"]
    assert "1 failed, 2 deselected" in found["bad"]
    assert "3 deselected" in found["missing"]


def test_networks_both_phases_and_layouts(capsys, tmp_path: Path):
    assert cli.main(["--suite", "model", "--quick", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    networks, parts = text.split("## Where the time goes")
    rows = [line for line in networks.splitlines() if line.startswith("| vmf_tiny")]
    assert len(rows) == 8 and all("2x3x2x32x32 (of 3)" in row for row in rows)
    for part in ("depthwise convolution", "attention and tokens", "dynamic ReLU", "norm"):
        for ending in (" ", ", forward ", ", backward "):
            assert f"| {part}{ending}" in parts
    assert "inductor (channels_last_3d), 2 of 2 rows: only with --peers all" in text
    for phase in ("inference", "training step"):
        for contender in ("ours ", "eager"):
            for layout in ("contiguous ", "channels_last_3d"):
                assert any(phase in r and contender in r and layout in r for r in rows)
    assert (tmp_path / "model-cpu-quick.csv").exists()
    told = (tmp_path / "model-cpu-quick-breakdown.csv").read_text()
    assert "training step,float32,ours," in told.replace("2x3x2x32x32,", "") and "# cpu: " in told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_what_was_measured_before_a_signal_is_shown_and_kept(
    number: int, tmp_path: Path, capsys, monkeypatch
):
    begun = []

    def compare(task, plan):
        if begun:
            os.kill(os.getpid(), number)
        begun.append(task)
        return original(task, plan)

    original = cli.suite.compare
    monkeypatch.setattr(cli.suite, "compare", compare)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # `nohup ... &` ignores it
    try:
        assert cli.main(["--quick", "--only", "dynamic_relu", "--out", str(tmp_path)]) == 130
    finally:
        signal.signal(signal.SIGINT, inherited)
    text = capsys.readouterr().out
    assert "interrupted: not all cases" in text and "### dynamic_relu: forward, float32" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        "ops-cpu-quick-interrupted.csv",
        "ops-cpu-quick-interrupted.md",
    }
    assert "interrupted" in (tmp_path / "ops-cpu-quick-interrupted.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "("], "--only: not a regular expression"),
        (["--out", "/dev/null/results"], "--out /dev/null/results: Not a directory"),
        (["--threads", "0"], "must be at least 1 (got 0)"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_a_users_mistake_is_one_line(arguments: list[str], told: str, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--device", "cuda"])
    assert "--device cuda: torch sees no CUDA device" in capsys.readouterr().err


@pytest.mark.gpu
def test_cuda_clock_and_roofline(capsys):
    assert cli.main(["--device", "cuda", "--quick", "--sample", "1"]) == 0
    assert "### depthwise_conv3d: forward+backward, bfloat16" in capsys.readouterr().out
