"""The rules that leave a forward to PyTorch, against the measurements that they come from."""

import csv
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vmf_kernels import depthwise_conv3d, explain, use_backend

MEASURED = (
    Path(__file__).parents[2]
    / "bench/results/amd-epyc-avx512-2-cores/depthwise_conv3d-crossover.csv"
)
SLOWER = {"lanes": (2, 12, 8, 28, 28), "few taps": (2, 768, 8, 14, 14)}
SAME = (0, 0, 1, 1, 1, 1)


@pytest.fixture
def isa(extension: ModuleType) -> Iterator[ModuleType]:
    """The extension; its instruction set is restored afterwards."""
    before = extension.current_isa()
    yield extension
    extension.set_isa(before)


def reason(
    extension: ModuleType,
    shape: tuple[int, ...],
    kernel: tuple[int, ...] = (1, 3, 3),
    stride: tuple[int, ...] = (1, 1, 1),
    padding: tuple[int, ...] = SAME,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> str | None:
    order = torch.channels_last_3d if channels_last else torch.contiguous_format
    x = torch.empty(shape, dtype=dtype, memory_format=order)
    weight = x.new_empty(shape[1], 1, *kernel)
    found: str | None = extension.slower_depthwise_conv3d(
        x, weight, None, stride, padding, (1, 1, 1)
    )
    return found


def test_no_rule_names_a_call_that_was_measured_faster(isa: ModuleType) -> None:
    named = 0
    with MEASURED.open() as file:
        for row in csv.DictReader(file):
            if row["isa"] not in isa.supported_isas() or int(row["multiplier"]) != 1:
                continue
            isa.set_isa(row["isa"])
            size, kernel, stride, pad = (
                tuple(int(n) for n in row[name].split("x"))
                for name in ("input", "kernel", "stride", "padding")
            )
            shape = (int(row["batch"]), int(row["channels"]), *size)
            padding = tuple(p for p in pad for _ in range(2))
            if reason(isa, shape, kernel, stride, padding) is not None:
                named += 1
                assert float(row["ratio"]) < 1, row
    assert named == (6 if "avx512" in isa.supported_isas() else 0)


@pytest.mark.parametrize("rule", SLOWER)
def test_each_rule(rule: str, isa: ModuleType) -> None:
    if "avx512" not in isa.supported_isas():
        pytest.skip("this CPU has no avx512, for which the rules are")
    isa.set_isa("avx512")
    assert rule in str(reason(isa, SLOWER[rule]))
    isa.set_isa("avx2")
    assert reason(isa, SLOWER[rule]) is None


@pytest.mark.parametrize(
    "change",
    [{"dtype": torch.bfloat16}, {"channels_last": False}, {"stride": (1, 2, 2)}],
    ids=str,
)
def test_rules_hold_only_where_they_were_measured(
    change: dict[str, object], isa: ModuleType
) -> None:
    for shape in SLOWER.values():
        assert reason(isa, shape, **change) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", SLOWER)
def test_dispatch_and_explain(rule: str, isa: ModuleType) -> None:
    """PyTorch's op runs, unless a gradient is wanted or the kernel is asked for; all say so."""
    if "avx512" not in isa.supported_isas():
        pytest.skip("this CPU has no avx512, for which the rules are")
    isa.set_isa("avx512")
    x = torch.randn(SLOWER[rule]).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(x.shape[1], 1, 1, 3, 3)
    record = explain(depthwise_conv3d, x, weight, padding=(0, 1, 1))[0]
    assert record.backend == "reference"
    assert rule in record.reason and "PyTorch is faster" in record.reason
    with use_backend("cpu"):
        assert explain(depthwise_conv3d, x, weight, padding=(0, 1, 1))[0].backend == "cpu"
        forced = depthwise_conv3d(x, weight, padding=(0, 1, 1))
    weight.requires_grad_()
    assert explain(depthwise_conv3d, x, weight, padding=(0, 1, 1))[0].backend == "cpu"
    with torch.no_grad():
        chosen = depthwise_conv3d(x, weight, padding=(0, 1, 1))
    expected = torch.nn.functional.conv3d(x, weight, padding=(0, 1, 1), groups=x.shape[1])
    assert torch.equal(chosen, expected)
    torch.testing.assert_close(forced, expected)
