"""The rules that leave a forward to PyTorch, against the measurements that they come from."""

import csv
from pathlib import Path

import pytest
import torch

from vmf_kernels.ops.depthwise_conv3d.crossover import slower_than_pytorch

MEASURED = (
    Path(__file__).parents[2]
    / "bench/results/amd-epyc-avx512-2-cores/depthwise_conv3d-crossover.csv"
)


def reason(
    shape: tuple[int, ...],
    kernel: tuple[int, ...] = (1, 3, 3),
    stride: tuple[int, ...] = (1, 1, 1),
    padding: tuple[int, ...] = (0, 1, 1),
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
    isa: str = "avx512",
) -> str | None:
    weight = (shape[1], 1, *kernel)
    return slower_than_pytorch(shape, weight, stride, padding, (1, 1, 1), dtype, channels_last, isa)


def test_no_rule_names_a_call_that_was_measured_faster() -> None:
    named = 0
    with MEASURED.open() as file:
        for row in csv.DictReader(file):
            triples = {
                name: tuple(int(n) for n in row[name].split("x"))
                for name in ("input", "kernel", "stride", "padding")
            }
            shape = int(row["batch"]), int(row["channels"]), *triples.pop("input")
            if reason(shape, **triples, isa=row["isa"]) is not None:
                named += 1
                assert float(row["ratio"]) < 1, row
    assert named == 6


def test_each_rule() -> None:
    assert "lanes" in str(reason((2, 12, 8, 28, 28)))
    assert "memory" in str(reason((2, 768, 8, 14, 14)))


@pytest.mark.parametrize(
    "change",
    [{"isa": "avx2"}, {"dtype": torch.bfloat16}, {"channels_last": False}, {"stride": (1, 2, 2)}],
    ids=str,
)
def test_rules_hold_only_where_they_were_measured(change: dict[str, object]) -> None:
    for channels in (12, 768):
        assert reason((2, channels, 8, 28, 28), **change) is None  # type: ignore[arg-type]
