"""How much faster than PyTorch a layer of some kind was measured to be: reviewed data.

`gains.json` holds geometric means over layers of real networks, made by `python -m bench.gains`
from the committed benchmark. They are what to expect, not a promise: machines and shapes differ.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

KINDS = ("along T", "a side of 5 or more", "strided", "3x3x3", "1 or 3 a side")


def kind(kernel: Sequence[int], stride: Sequence[int]) -> str:
    """The first of `KINDS` that a layer is of."""
    if kernel[1] == kernel[2] == 1:
        return "along T"
    if max(kernel) >= 5:
        return "a side of 5 or more"
    if max(stride) > 1:
        return "strided"
    return "3x3x3" if tuple(kernel) == (3, 3, 3) else "1 or 3 a side"


def expected(
    isa: str, channels_last: bool, kernel: Sequence[int], stride: Sequence[int]
) -> tuple[float, float] | None:
    """How many times PyTorch's speed in the same layout, in float32: forward, and in training.

    None where no layer of this kind was measured with this instruction set.
    """
    layout = "channels_last_3d" if channels_last else "contiguous"
    return _gains().get((isa, layout, kind(kernel, stride)))


@lru_cache
def _gains() -> dict[tuple[str, str, str], tuple[float, float]]:
    rows = json.loads(Path(__file__).with_name("gains.json").read_text())["rows"]
    return {
        (row["isa"], row["layout"], row["kind"]): (row["forward"], row["training"]) for row in rows
    }
