"""Parts of a training step, timed alone."""

import csv
from pathlib import Path

import pytest
import torch

from bench import parts
from bench.ops.depthwise_conv3d import BENCH

SMALL = r"vmf_151m_8x112 4x768x8x4x4 "


def test_every_part_computes_what_pytorch_does():
    case = next(c for c in BENCH.cases() if str(c).startswith(SMALL))
    found = dict(parts.calls(case, torch.float32, "cpu"))
    kinds = parts.kinds("cpu")
    assert "pytorch" in kinds and len(found) == 2 * len(parts.PARTS) * len(kinds)
    for layout, part, name in found:
        ours, theirs = found[layout, part, name](), found[layout, part, "pytorch"]()
        pick = {"forward": None, "input gradient": 0, "weight gradient": 1}[part]
        ours = ours[0] if part == "weight gradient" and name != "pytorch" else ours
        if pick is not None:
            theirs = theirs[pick]
            ours = ours[pick] if name == "pytorch" else ours
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_run_writes_a_row_for_each_part(tmp_path: Path, capsys):
    path = tmp_path / "parts.csv"
    arguments = ["--only", SMALL, "--dtype", "float32", "--sample", "1", "--out", str(path)]
    assert parts.main(arguments) == 0
    rows = list(csv.DictReader(path.open()))
    assert {row["part"] for row in rows} == set(parts.PARTS)
    assert all(float(row["us"]) > 0 and float(row["pass_us"]) > 0 for row in rows)
    assert "by time" in capsys.readouterr().out


def test_a_sample_begins_with_a_layer_of_every_kind():
    cases = BENCH.cases()

    def kinds(some):
        return {(case.kernel, case.stride, case.multiplier > 1) for case in some}

    sample = parts.chosen_layers(cases, 2)
    count = len(kinds(cases))
    assert len(kinds(sample[:count])) == count
    assert count < len(sample) <= 2 * count and len(set(sample)) == len(sample)


def test_kinds_of_kernels_on_a_gpu_are_asked_for_by_name(monkeypatch):
    monkeypatch.setattr(parts._cuda, "missing", lambda: None)
    names = {name: found and found.forward.name for name, found in parts.kinds("cuda").items()}
    assert names == {
        "pytorch": None,
        "triton": "depthwise_conv3d_triton",
        "cuda": "depthwise_conv3d_cuda",
    }


class Refusing:
    """An operator whose kernels are not for the call."""

    def refusal(self, *arguments):
        return "not for it"

    def __call__(self, *arguments):
        raise AssertionError("the reference would be timed")


def test_what_kernels_leave_to_the_reference_is_not_timed():
    assert parts._operator(Refusing(), "cuda", ()) is None


def test_kinds_are_compared_on_the_layers_that_all_ran():
    names = ("float32", "contiguous", "forward")
    rows = [
        dict(zip(parts.COLUMNS, (case, *names, kind, us, "2"), strict=True))
        for case, kind, us in (("a", "x", "4"), ("a", "y", "6"), ("b", "x", "100"))
    ]
    lines = parts.summary(rows).splitlines()[1:]
    assert [line.split()[3:] for line in lines] == [
        ["x", "1", "2.00", "2.00"],
        ["y", "1", "3.00", "3.00"],
    ]


def test_no_layer_is_an_error(capsys):
    with pytest.raises(SystemExit):
        parts.main(["--only", "no such layer"])
    assert "no layer matches" in capsys.readouterr().err
