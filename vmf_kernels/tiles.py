"""Tile shapes and launch settings of the Triton kernels: reviewed data, chosen by rules.

`ops/NAME/tiles.json` is a list of rows. A row holds conditions (`kernel`, `dtype`, `layout`,
`arch` and whatever else the launcher tells; `FACT_up_to` is an upper limit), the `tile`, and `why`
it is that. The first row whose conditions all hold is used. Nothing is tuned at run time:
`python -m bench.tune` measures candidates offline, for a person to commit.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from vmf_kernels.layout import is_channels_last

Forced = Mapping[str, Mapping[str, int]]
# Of the process, not of a thread: backward passes on a GPU run in a thread of PyTorch's.
_forced: Forced | None = None


@dataclass(frozen=True)
class Tile:
    """The settings of one launch.

    Attributes:
        sizes: by name, as the op's tiles.json explains them.
        why: in words.
    """

    sizes: Mapping[str, int]
    why: str

    def __getitem__(self, name: str) -> int:
        return self.sizes[name]

    def __str__(self) -> str:
        return ", ".join(f"{name} {size}" for name, size in self.sizes.items()) + f": {self.why}"


@contextmanager
def forced(tiles: Forced) -> Iterator[None]:
    """Inside the block, the process's kernels use these sizes: for tests and the tuner.

    Args:
        tiles: `{"OP.KERNEL": {name: size}}`; names that are left out keep their size.
    """
    global _forced
    before = _forced
    _forced = {**(before or {}), **tiles}
    try:
        yield
    finally:
        _forced = before


def are_forced() -> bool:
    """Whether some are, so that nothing kept from before may be used."""
    return _forced is not None


def choose(
    op: str,
    kernel: str,
    dtype: torch.dtype,
    device: torch.device,
    channels_last: bool,
    **facts: int,
) -> Tile:
    """The tile of one launch.

    Args:
        op: whose tiles.json.
        kernel: which of its kernels.
        dtype, device, channels_last: of the features.
        facts: sizes that the rows' conditions speak of.
    """
    arch = architecture(device)
    bits = dtype.itemsize * 8
    tile = _choose(op, kernel, bits, channels_last, arch, tuple(facts.items()))
    if _forced is not None and f"{op}.{kernel}" in _forced:
        return Tile({**tile.sizes, **_forced[f"{op}.{kernel}"]}, "asked for by tiles.forced")
    return tile


def told(
    op: str, kernel: str, features: torch.Tensor, last: bool | None = None, **facts: int
) -> str:
    """The tile of a kernel for such features, in words; `last`: another layout than theirs."""
    last = is_channels_last(features) if last is None else last
    return str(choose(op, kernel, features.dtype, features.device, last, **facts))


@lru_cache(maxsize=4096)
def _choose(
    op: str, kernel: str, bits: int, channels_last: bool, arch: str, facts: tuple[Any, ...]
) -> Tile:
    layout = "channels_last" if channels_last else "contiguous"
    known = {"kernel": kernel, "bits": bits, "layout": layout, "arch": arch, **dict(facts)}
    for row in table(op):
        if all(_holds(known, name, value) for name, value in row.items()):
            return Tile(row["tile"], row["why"])
    raise LookupError(f"{op}: tiles.json has no row for {known}")


def _holds(known: Mapping[str, Any], name: str, value: Any) -> bool:
    if name in ("tile", "why"):
        return True
    if name.endswith("_up_to"):
        return bool(known[name.removesuffix("_up_to")] <= value)
    return bool(known[name] in value if isinstance(value, list) else known[name] == value)


@lru_cache
def table(op: str) -> list[dict[str, Any]]:
    """The rows of an op's tiles.json; none for an op that runs another's kernels."""
    path = Path(__file__).with_name("ops").joinpath(op, "tiles.json")
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    return rows


@lru_cache
def architecture(device: torch.device) -> str:
    """`sm_90` and the like, of the current GPU for what is on none; `interpreter` for a CPU.

    `unknown` for a GPU that is not there.
    """
    if device.type == "cpu":
        return "interpreter"
    if not torch.cuda.is_available():  # a fake tensor
        return "unknown"
    major, minor = torch.cuda.get_device_capability(device if device.type == "cuda" else None)
    return f"sm_{major}{minor}"


def ceil_div(a: int, b: int) -> int:
    """The quotient a / b, rounded up."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def alignment(size: int) -> int:
    """The largest power of two up to 16 that divides a size: what vectors may rely on."""
    return min(size & -size, 16) if size else 16


@lru_cache(maxsize=4096)
def snug_block(size: int, smallest: int, largest: int) -> int:
    """The power of two whose multiples cover `size` with the least excess; the largest such."""
    block = best = min(largest, max(smallest, power_of_2(size)))
    while block >= smallest:
        if ceil_div(size, block) * block < ceil_div(size, best) * best:
            best = block
        block //= 2
    return best
