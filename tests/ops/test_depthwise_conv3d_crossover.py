"""The rules that leave a forward to PyTorch, against the measurements that they come from."""

import csv
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bench import machine
from vmf_kernels import depthwise_conv3d, explain, use_backend

MEASURED = sorted(Path(__file__).parents[2].glob("bench/results/*/depthwise_conv3d-crossover.csv"))
# Rules of each instruction set and dtype; bfloat16's is for CPUs that multiply it.
RULES = {("avx512", "float32"): 1}
ZEN_4 = "family 25" in machine.facts("cpu")["cpu"]
if torch.cpu._is_avx512_bf16_supported():
    RULES["avx512", "bfloat16"] = 2 if ZEN_4 else 1
SAME = (0, 0, 1, 1, 1, 1)
# The words of a rule, its instruction set, a shape, and what differs from 1x3x3 at stride 1.
SLOWER: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "lanes": ("avx512", (4, 12, 8, 28, 28), {"kernel": (3, 3, 3), "padding": (1,) * 6}),
    "bfloat16": ("avx512", (4, 48, 8, 34, 34), {"dtype": torch.bfloat16}),
}
if ZEN_4:
    options = {"dtype": torch.bfloat16, "kernel": (5, 1, 1), "padding": (2, 2, 0, 0, 0, 0)}
    SLOWER["in halves"] = ("avx512", (4, 24, 8, 56, 56), options)


def dtype_of(options: dict[str, Any]) -> str:
    """The name of a call's dtype."""
    return str(options.get("dtype", torch.float32)).removeprefix("torch.")


def call_of(rule: str, isa: ModuleType) -> tuple[tuple[int, ...], dict[str, Any]]:
    """A call that a rule names, under the rule's instruction set."""
    name, shape, options = SLOWER[rule]
    if name not in isa.supported_isas() or (name, dtype_of(options)) not in RULES:
        pytest.skip(f"this CPU has no {name} for {dtype_of(options)}, for which the rule is")
    isa.set_isa(name)
    return shape, options


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


def test_rules_name_calls_that_were_measured_slower(
    isa: ModuleType, threads: Callable[[int], None]
) -> None:
    ratios: dict[str, list[float]] = {}
    named: set[tuple[str, str, str]] = set()
    for path, row in [(p, row) for p in MEASURED for row in csv.DictReader(p.open())]:
        if row["isa"] not in isa.supported_isas():
            continue
        isa.set_isa(row["isa"])
        threads(int(row["threads"]))
        size, kernel, stride, pad = (
            tuple(int(n) for n in row[name].split("x"))
            for name in ("input", "kernel", "stride", "padding")
        )
        shape = (int(row["batch"]), int(row["channels"]), *size)
        padding = tuple(p for p in pad for _ in range(2))
        found = reason(isa, shape, kernel, stride, padding, getattr(torch, row["dtype"]))
        if found is not None and ("in halves" not in found or "family-25" in path.parent.name):
            named.add((row["isa"], row["dtype"], found))
            ratios.setdefault(f"{row['isa']}: {found}", []).append(float(row["ratio"]))
            assert float(row["ratio"]) < 1, row
    for rule, measured in ratios.items():
        assert len(measured) >= 4 and math.prod(measured) ** (1 / len(measured)) < 0.9, rule
    counts = Counter(key[:2] for key in named)
    assert counts == {key: n for key, n in RULES.items() if key[0] in isa.supported_isas()}


@pytest.mark.parametrize("rule", SLOWER)
def test_each_rule(rule: str, isa: ModuleType, threads: Callable[[int], None]) -> None:
    shape, options = call_of(rule, isa)
    threads(2)
    assert rule in str(reason(isa, shape, **options))
    isa.set_isa("baseline")
    assert reason(isa, shape, **options) is None


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": torch.float16},
        {"dtype": torch.float64},
        {"channels_last": False},
        {"stride": (1, 3, 3)},
        {"padding": (0, 0, 2, 0, 1, 1)},
    ],
    ids=str,
)
def test_rules_hold_only_where_they_were_measured(
    change: dict[str, object], isa: ModuleType, threads: Callable[[int], None]
) -> None:
    threads(2)
    for name, shape, options in SLOWER.values():
        if name in isa.supported_isas():
            isa.set_isa(name)
            assert reason(isa, shape, **{**options, **change}) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", SLOWER)
def test_dispatch_and_explain(rule: str, isa: ModuleType, threads: Callable[[int], None]) -> None:
    """PyTorch's op runs, unless a gradient is wanted or the kernel is asked for; all say so."""
    shape, options = call_of(rule, isa)
    threads(2)
    dtype = options.get("dtype", torch.float32)
    x = torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(x.shape[1], 1, *options.get("kernel", (1, 3, 3)), dtype=dtype)
    settings = (None, options.get("stride", 1), options.get("padding", SAME)[::2])
    record = explain(depthwise_conv3d, x, weight, *settings)[0]
    assert record.backend == "pytorch"
    assert rule in record.reason and "PyTorch is faster" in record.reason
    with use_backend("cpu"):
        assert explain(depthwise_conv3d, x, weight, *settings)[0].backend == "cpu"
        forced = depthwise_conv3d(x, weight, *settings)
    weight.requires_grad_()
    assert explain(depthwise_conv3d, x, weight, *settings)[0].backend == "cpu"
    with torch.no_grad():
        chosen = depthwise_conv3d(x, weight, *settings)
    expected = torch.nn.functional.conv3d(x, weight, *settings, groups=x.shape[1])
    assert torch.equal(chosen, expected)
    torch.testing.assert_close(forced, expected)
