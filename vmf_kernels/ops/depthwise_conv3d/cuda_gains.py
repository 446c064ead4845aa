"""How many times Triton's speed the CUDA C++ kernels had: reviewed data, by which "auto" chooses.

`cuda_gains.json` holds geometric means over layers of real networks, made by `python -m
bench.gains` from committed times of each part of a training step; those of Triton's contiguous
copies are estimated. A kind of layer that no GPU has timed is left to Triton.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from vmf_kernels.layout import is_channels_last

PARTS = ("forward", "input gradient", "weight gradient")
Kind = tuple[int, str, tuple[int, ...], tuple[int, ...], bool]


def kind(
    bits: int, layout: str, kernel: Sequence[int], stride: Sequence[int], multiplier: int
) -> Kind:
    """What tells layers apart: width of the dtype, memory format, sizes, more channels out."""
    return bits, layout, tuple(kernel), tuple(stride), multiplier > 1


def slower(
    part: str, features: Tensor, kernel: Sequence[int], stride: Sequence[int], multiplier: int
) -> str | None:
    """Why "auto" leaves a part of a layer to Triton, in words, or None.

    Args:
        part: one of `PARTS`.
        features: (N, C, T, H, W), of either side of the layer.
        kernel, stride: along T, H and W.
        multiplier: output channels for each of the input's.
    """
    row = _row(features, kernel, stride, multiplier)
    if row is None:
        return "no GPU has timed its CUDA C++ kernel on such layers"
    if row[part] >= 1:
        return None
    return f"Triton's kernel was {_how(row)} to be {1 / row[part]:.2f} times as fast on such layers"


def told(
    part: str, features: Tensor, kernel: Sequence[int], stride: Sequence[int], multiplier: int
) -> str:
    """How fast the CUDA C++ kernel of a part is, in words; empty where no GPU has timed it."""
    row = _row(features, kernel, stride, multiplier)
    return "" if row is None else f": {row[part]:.2f} times Triton's speed, {_how(row)}"


def _how(row: dict[str, Any]) -> str:
    return "estimated" if row.get("estimated") else "measured"


def _row(
    features: Tensor, kernel: Sequence[int], stride: Sequence[int], multiplier: int
) -> dict[str, Any] | None:
    bits = features.dtype.itemsize * 8
    layout = "channels_last_3d" if is_channels_last(features) else "contiguous"
    return _rows().get(kind(bits, layout, kernel, stride, multiplier))


@lru_cache
def _rows() -> dict[Kind, dict[str, Any]]:
    rows = json.loads(Path(__file__).with_name("cuda_gains.json").read_text())["rows"]
    names = ("bits", "layout", "kernel", "stride", "multiplier")
    return {kind(*(row[name] for name in names)): row for row in rows}
