"""The one list of real layer shapes, which benchmarks and tests walk."""

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

FRAMES = 8  # T of every model in bridges.json, whose positions are T*H*W with H = W

Triple = tuple[int, int, int]
AnyCase = TypeVar("AnyCase", bound="Case")
AnyConvolution = TypeVar("AnyConvolution", bound="DepthwiseCase")


@dataclass(frozen=True)
class Case:
    """One distinct layer of a network.

    Attributes:
        model: the network.
        batch: N.
        count: how often the layer stands in the network.
    """

    model: str
    batch: int
    count: int

    @property
    def elements(self) -> int:
        """Elements of the largest input and output together, of one sample."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """The shape in short, in characters that a regular expression is easily written for."""
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{self.model} {self.label}"

    def shrunk(self: AnyCase, limit: int) -> AnyCase:
        """The same layer with the batch reduced until `elements` of it are at most `limit`."""
        batch = max(1, min(self.batch, limit // self.elements))
        return dataclasses.replace(self, batch=batch)


@dataclass(frozen=True)
class DepthwiseCase(Case):
    """A depthwise convolution of (N, C, T, H, W); `size`, `kernel`... are (T, H, W)."""

    in_channels: int
    multiplier: int
    size: Triple
    kernel: Triple
    stride: Triple
    padding: Triple

    @property
    def out_channels(self) -> int:
        return self.in_channels * self.multiplier

    @property
    def output_size(self) -> Triple:
        axes = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        t, h, w = ((n + 2 * p - k) // s + 1 for n, k, s, p in axes)
        return t, h, w

    @property
    def elements(self) -> int:
        inputs = self.in_channels * math.prod(self.size)
        return inputs + self.out_channels * math.prod(self.output_size)

    @property
    def label(self) -> str:
        text = f"{_by(self.batch, self.in_channels, *self.size)} k{_by(*self.kernel)}"
        if self.stride != (1, 1, 1):
            text += f" s{_by(*self.stride)}"
        if self.multiplier > 1:
            text += f" m{self.multiplier}"
        return text


@dataclass(frozen=True)
class TransposeCase(DepthwiseCase):
    """A transposed depthwise convolution of (N, C, T, H, W)."""

    @property
    def output_size(self) -> Triple:
        axes = zip(self.size, self.kernel, self.stride, self.padding, strict=True)
        t, h, w = ((n - 1) * s - 2 * p + k for n, k, s, p in axes)
        return t, h, w


@dataclass(frozen=True)
class AttentionCase(Case):
    """A bridge: features (N, C, T, H, W) and M tokens of the same C."""

    channels: int
    size: Triple
    tokens: int
    heads: int

    @property
    def positions(self) -> int:
        return math.prod(self.size)

    @property
    def elements(self) -> int:
        return 2 * self.channels * self.positions

    @property
    def label(self) -> str:
        return f"{_by(self.batch, self.channels, *self.size)} M{self.tokens} heads{self.heads}"


@dataclass(frozen=True)
class ReluCase(Case):
    """A dynamic ReLU on (N, C, T, H, W)."""

    channels: int
    size: Triple

    @property
    def elements(self) -> int:
        return 2 * self.channels * math.prod(self.size)

    @property
    def label(self) -> str:
        return _by(self.batch, self.channels, *self.size)


@lru_cache
def depthwise_conv3d() -> tuple[DepthwiseCase, ...]:
    """Every row of depthwise_conv3d.json."""
    return tuple(_convolution(DepthwiseCase, row) for row in _rows("depthwise_conv3d"))


@lru_cache
def depthwise_conv_transpose3d() -> tuple[TransposeCase, ...]:
    """Every row of depthwise_conv_transpose3d.json."""
    return tuple(_convolution(TransposeCase, row) for row in _rows("depthwise_conv_transpose3d"))


@lru_cache
def few_query_attention() -> tuple[AttentionCase, ...]:
    """The distinct Mobile to Former bridges of bridges.json, counted."""
    return _attention("few_query")


@lru_cache
def few_key_attention() -> tuple[AttentionCase, ...]:
    """The distinct Former to Mobile bridges of bridges.json, counted."""
    return _attention("few_key")


@lru_cache
def dynamic_relu() -> tuple[ReluCase, ...]:
    """The distinct dynamic ReLUs of bridges.json, counted."""
    return _counted(
        ReluCase(row["model"], row["batch"], 1, relu["channels"], tuple(relu["size"]))
        for row in _rows("bridges")
        for relu in row["dynamic_relu"]
    )


def _convolution(kind: type[AnyConvolution], row: dict[str, Any]) -> AnyConvolution:
    return kind(
        row["model"],
        row["batch"],
        row["count"],
        row["in_channels"],
        row["multiplier"],
        tuple(row["size"]),
        tuple(row["kernel"]),
        tuple(row["stride"]),
        tuple(row["padding"]),
    )


def _attention(bridge: str) -> tuple[AttentionCase, ...]:
    return _counted(
        AttentionCase(
            row["model"],
            row["batch"],
            1,
            row[bridge]["channels"],
            _square(row[bridge]["positions"]),
            row["tokens"],
            row["heads"],
        )
        for row in _rows("bridges")
    )


def _counted(cases: Any) -> tuple[Any, ...]:
    """Equal cases merged into one, in order of first appearance."""
    counts: dict[Any, int] = {}
    for case in cases:
        counts[case] = counts.get(case, 0) + case.count
    return tuple(dataclasses.replace(case, count=count) for case, count in counts.items())


def _square(positions: int) -> Triple:
    side = math.isqrt(positions // FRAMES)
    if FRAMES * side * side != positions:
        raise ValueError(f"bridges.json: positions must be {FRAMES} * side**2 (got {positions})")
    return FRAMES, side, side


def _rows(name: str) -> list[dict[str, Any]]:
    return json.loads((Path(__file__).parent / f"{name}.json").read_text())["rows"]


def _by(*numbers: int) -> str:
    return "x".join(map(str, numbers))
