"""bench.kernel_traffic: what kernels request and execute, counted in the interpreter."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import kernel_traffic
from bench.cases import ReluCase
from bench.op import LAYOUTS, MODES, TRAINING
from bench.ops import BENCHES
from bench.results import read
from tests.triton.conftest import DEVICE

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = pytest.importorskip("triton.language")

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="counts in the interpreter, on a CPU")


@triton.jit
def _kernel(x_ptr, y_ptr, size, SIZE: tl.constexpr):
    rows = tl.program_id(0) * 16 + tl.arange(0, 16)
    columns = tl.arange(0, SIZE)
    at = rows[:, None] * size + columns[None, :]
    x = tl.load(x_ptr + at, columns[None, :] < size, other=0)  # 16 x size
    products = tl.dot(x, tl.trans(x))  # 2 x 16 x 16 x SIZE
    sums = tl.sum(products, 1)  # 16 x 15
    tl.store(y_ptr + rows, tl.exp(sums * 0.5) - 1)  # 3 x 16


def test_a_kernel_with_known_counts():
    x, y = torch.randn(40 * 16, 20), torch.full((40 * 16,), torch.nan)
    with kernel_traffic.counting(programs=3) as found:
        _kernel[(40,)](x, y, 20, SIZE=32)
    assert found.loaded == 40 * 16 * 20 * 4
    assert found.stored == 40 * 16 * 4
    assert found.flops == 40 * (2 * 16 * 16 * 32 + 16 * 15 + 3 * 16)
    assert (~y.isnan()).sum() == 3 * 16  # the others did not run
    _kernel[(40,)](x, y, 20, SIZE=32)
    assert not y.isnan().any()
    assert found.stored == 40 * 16 * 4  # and nothing counts any longer


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_op_stores_its_output_once(layout: str):
    case = ReluCase("net", 2, 3, 24, (4, 7, 9))
    bench = BENCHES["dynamic_relu"]
    elements = 2 * 24 * 4 * 7 * 9
    found = kernel_traffic.count(bench, case, "forward", torch.bfloat16, layout, programs=10**6)
    assert found.stored == 2 * elements
    assert found.loaded >= 2 * (elements + 2 * 2 * 24)
    assert found.flops >= 2 * elements
    some = kernel_traffic.count(bench, case, "forward", torch.bfloat16, layout, programs=4)
    assert some.stored == pytest.approx(found.stored, rel=0.5)


def test_the_table_has_every_case_and_none_below_what_is_unavoidable():
    expected, least = set(), {}
    for bench in BENCHES.values():
        for case in bench.cases():
            for mode in MODES:
                for dtype in kernel_traffic.DTYPES:
                    which = (bench.name, case.label, mode, str(dtype).removeprefix("torch."))
                    least[which] = bench.traffic(case, mode, dtype.itemsize)
                    expected |= {(*which, layout) for layout in LAYOUTS}
    table = read(kernel_traffic.PATH).rows
    assert {kernel_traffic.key_of(row) for row in table} == expected
    for op, shape, mode, dtype, layout in expected:
        found = kernel_traffic.committed(op, shape, mode, dtype)[layout]
        # Some programs stand for all of them: those at a border count for more or for less.
        assert found.bytes > 0.95 * least[op, shape, mode, dtype].bytes, (op, shape, mode, dtype)


@pytest.mark.parametrize("op", BENCHES)
def test_the_table_is_of_these_kernels(op: str):
    """If not: `python -m bench.kernel_traffic` writes it anew."""
    bench = BENCHES[op]
    case = min(
        bench.cases(), key=lambda c: c.batch * c.elements * math.prod(getattr(c, "kernel", ()))
    )
    for layout in LAYOUTS:
        found = kernel_traffic.count(bench, case, TRAINING, torch.float32, layout)
        which = (op, case.label, TRAINING, "float32", layout)
        [row] = [r for r in read(kernel_traffic.PATH).rows if kernel_traffic.key_of(r) == which]
        told = (row["loaded_bytes"], row["stored_bytes"], row["flops"])
        assert told == (f"{found.loaded:.0f}", f"{found.stored:.0f}", f"{found.flops:.0f}")


def test_command_line(tmp_path: Path):
    out = tmp_path / "table.csv"
    only = ["--only", "^dynamic_relu vmf_1g .* forward$", "--sample", "1", "--out", str(out)]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.kernel_traffic", *only]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = read(out).rows
    assert len(rows) == len(kernel_traffic.DTYPES) * len(LAYOUTS)
    assert {row["op"] for row in rows} == {"dynamic_relu"}
    assert "[4/4] dynamic_relu" in done.stderr and "of the least bytes" in done.stderr


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--only", "no_such_op", "found in no case"),
        ("--only", "[", "not a regular expression"),
        ("--sample", "0", "must be at least 1"),
    ],
)
def test_command_line_refuses(
    option: str, value: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    out = tmp_path / "table.csv"
    with pytest.raises(SystemExit) as stopped:
        kernel_traffic.main([option, value, "--out", str(out)])
    assert stopped.value.code == 2 and not out.exists()
    told = capsys.readouterr().err
    assert f"{option}: " in told and words in told and value in told
