"""`make gpu-check`, as far as a machine without a GPU can tell."""

import re
import subprocess
import sys

import pytest
import torch

from bench import gpu_check, machine
from bench.gpu_check import Step
from bench.ops import BENCHES

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@NO_GPU
def test_without_a_gpu_one_line_says_what_is_missing(capsys):
    assert gpu_check.main([]) == 1
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1
    assert told.err.startswith("gpu-check: torch ") and "CUDA" in told.err


def test_dry_run_prints_every_command(capsys):
    assert gpu_check.main(["--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "-m pytest -q -m gpu" in text
    assert "tests/triton\n" in text
    assert "compute-sanitizer --tool racecheck" in text
    assert "compute-sanitizer --tool memcheck" in text.replace(str(gpu_check.SANITIZER.parent), "")
    assert "-m bench --device cuda --skip-tests --out bench/results/" in text
    assert "-m bench --device cuda --suite model --out bench/results/" in text


def test_the_printed_benchmark_commands_are_accepted(monkeypatch):
    from bench import cli, options

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(options, "CudaClock", lambda: None)
    monkeypatch.setattr(cli.Session, "run", lambda self: 0)
    monkeypatch.setattr(options, "check_folder", lambda parser, folder: None)
    commands = [c for step in gpu_check.steps("results") for c in step.commands if "bench" in c]
    assert len(commands) > 6
    for command in commands:
        assert cli.main(command[command.index("bench") + 1 :]) == 0


def test_the_parts_are_all_layers():
    for name, bench in BENCHES.items():
        for case in bench.cases():
            matching = [p for p in gpu_check._parts() if re.search(p, f"{name} {case} forward")]
            assert len(matching) == 1, (name, case)


def test_the_sanitizers_see_every_kernel():
    (command,) = next(s for s in gpu_check.steps("results") if "memcheck" in s.title).commands
    arguments = command[command.index("tests/triton") :]
    told = subprocess.run(
        (sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments),
        capture_output=True, text=True, cwd=machine.ROOT,
    ).stdout  # fmt: skip
    for name in BENCHES:
        assert f"test_{name}.py::test_numbers[" in told, told


def code(status: int) -> tuple[tuple[str, ...], ...]:
    return ((sys.executable, "-c", f"raise SystemExit({status})"),)


def test_all_steps_run_and_any_failure_counts(capfd):
    steps = [
        Step("first", code(0)),
        Step("second", code(3)),
        Step("absent", (("no-such-program",),), missing="there is none"),
        Step("two at once", code(0) + code(4)),
        Step("last", ((*code(gpu_check.NO_TESTS)[0], "pytest"),)),
    ]
    assert gpu_check._run(steps) == 1
    told = capfd.readouterr().out.split("== gpu-check\n")[1].splitlines()
    summary = [re.sub(r" \(\d+ s\)$", "", line) for line in told]
    assert summary == [
        "first: ok",
        "second: FAILED with status 3",
        "absent: left out: there is none",
        "two at once: FAILED with status 4",
        "last: FAILED: no test carries the marker gpu, so nothing was tested",
    ]
    assert gpu_check._run([steps[0], steps[2]]) == 0
