"""What a Video Mobile-Former is made of, as one flat record, and the networks that have a name.

A `Config` holds everything that `VideoMobileFormer` needs. It is plain data: `dataclasses.asdict`
gives a dict that JSON can hold, and `create_model(**that_dict)` builds the same network again.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

# By how much the second depthwise convolution of a downsampling block widens, in all networks.
SECOND_EXPANSION = 4

BRIDGE_HEADS = 2
FORMER_HEADS = 4

_BLOCK = re.compile(r"([LDM])([1-9]\d*)-([1-9]\d*)(s2)?")


@dataclass(frozen=True)
class Block:
    """One block: `kind` L (lite, no tokens), D (halves H and W) or M (keeps them)."""

    kind: str
    expansion: int
    channels: int
    stride: int


@dataclass(frozen=True)
class Config:
    """One network.

    Attributes:
        name: The registered name it comes from.
        stem: Channels of the stem.
        blocks: The blocks in order, e.g. `"L2-12 | D6-16 M3-16"`: kind, expansion of the (first)
            depthwise or hidden width, output channels; `|` only shows the stages. A lite block may
            end in `s2` for a spatial stride of 2.
        num_tokens: M, global tokens a clip; 0 builds the network without Former, with plain ReLU.
        token_dim: d, width of a token.
        head_features: F, width before the classifier.
        groups: Groups of the pointwise convolutions, with a channel shuffle (26m: 4).
        kernel_size_t: Temporal size of every depthwise kernel, odd (ours: the paper's is unknown).
        frames: T of the clip that the network is meant for.
        size: Its height and width.
        num_classes: Classes; 0 leaves the classifier out.
        in_chans: Channels of a clip.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Drop-path of the last block; it rises linearly from 0 over the blocks.
    """

    name: str
    stem: int
    blocks: str
    num_tokens: int
    token_dim: int
    head_features: int
    groups: int = 1
    kernel_size_t: int = 3
    frames: int = 8
    size: int = 224
    num_classes: int = 400
    in_chans: int = 3
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(self.name, field, getattr(self, field.name))
        for name in ("stem", "token_dim", "head_features", "groups", "frames", "size", "in_chans"):
            self._require(getattr(self, name) >= 1, name, "must be at least 1")
        for name in ("num_tokens", "num_classes"):
            self._require(getattr(self, name) >= 0, name, "must not be negative")
        for name in ("drop_rate", "drop_path_rate"):
            self._require(0 <= getattr(self, name) < 1, name, "must be in [0, 1)")
        odd = self.kernel_size_t >= 1 and self.kernel_size_t % 2 == 1
        self._require(odd, "kernel_size_t", "must be odd and positive")
        if self.num_tokens:
            divisible = self.token_dim % FORMER_HEADS == 0
            self._require(divisible, "token_dim", f"must be a multiple of {FORMER_HEADS}")
        for width in (self.stem, *(block.channels for block in self.parse_blocks())):
            if width % self.groups or (self.num_tokens and width % BRIDGE_HEADS):
                raise ValueError(
                    f"{self.name}: every width must be a multiple of {self.groups} groups and, "
                    f"with tokens, of {BRIDGE_HEADS} heads (got {width})"
                )

    def _require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            raise ValueError(f"{self.name}: {name} {rule} (got {getattr(self, name)!r})")

    def parse_blocks(self) -> tuple[Block, ...]:
        """The blocks of `blocks`, in order."""
        parsed = []
        for word in self.blocks.replace("|", " ").split():
            match = _BLOCK.fullmatch(word)
            if match is None or (match[4] and match[1] != "L"):
                raise ValueError(
                    f"{self.name}: a block is written L2-12, L2-12s2, D6-16 or M3-16 (got {word!r})"
                )
            stride = 2 if match[1] == "D" or match[4] else 1
            parsed.append(Block(match[1], int(match[2]), int(match[3]), stride))
        self._require(bool(parsed), "blocks", "must name at least one block")
        return tuple(parsed)


def _check_type(model: str, field: dataclasses.Field, value: object) -> None:
    accepted = {"str": (str,), "int": (int,), "float": (int, float)}[str(field.type)]
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise TypeError(f"{model}: {field.name} must be of type {field.type} (got {value!r})")


BASES = (
    Config(
        "vmf_26m",
        stem=8,
        blocks="L3-12s2 M3-12 | D6-24 M3-24 | D6-48 M4-48 M6-64 | D6-96 M6-96",
        num_tokens=3,
        token_dim=128,
        head_features=1024,
        groups=4,
    ),
    Config(
        "vmf_52m",
        stem=8,
        blocks="L3-12s2 M3-12 | D6-24 M3-24 | D6-48 M4-48 M6-64 | D6-96 M6-96",
        num_tokens=3,
        token_dim=128,
        head_features=1024,
    ),
    Config(
        "vmf_96m",
        stem=12,
        blocks="L2-12 | D6-16 | D6-32 M3-32 | D6-64 M4-64 M6-88 | D6-128 M6-128",
        num_tokens=4,
        token_dim=128,
        head_features=1280,
    ),
    Config(
        "vmf_151m",
        stem=12,
        blocks="L2-12 | D6-16 M3-16 | D6-32 M3-32 | D6-64 M4-64 M6-88 M6-88 | D6-128 M6-128 M6-128",
        num_tokens=6,
        token_dim=192,
        head_features=1280,
    ),
    Config(
        "vmf_214m",
        stem=12,
        blocks="L2-12 | D6-20 M3-20 | D6-40 M4-40 | D6-80 M4-80 M6-112 M6-112"
        " | D6-160 M6-160 M6-160",
        num_tokens=6,
        token_dim=192,
        head_features=1600,
    ),
    Config(
        "vmf_294m",
        stem=16,
        blocks="L2-16 | D6-24 M4-24 | D6-48 M4-48 | D6-96 M4-96 M6-128 M6-128"
        " | D6-192 M6-192 M6-192",
        num_tokens=6,
        token_dim=192,
        head_features=1920,
    ),
    Config(
        "vmf_508m",
        stem=24,
        blocks="L2-24 | D6-40 M3-40 | D6-72 M3-72 | D6-128 M4-128 M6-176 M6-176"
        " | D6-240 M6-240 M6-240",
        num_tokens=6,
        token_dim=192,
        head_features=1920,
    ),
)

TINY = Config(
    "vmf_tiny",
    stem=8,
    blocks="L2-8 | D4-16 M3-16 | D4-32 M3-32 M3-32",
    num_tokens=4,
    token_dim=64,
    head_features=256,
    frames=8,
    size=48,
)


def _preset(name: str, base: str, frames: int, size: int) -> Config:
    found = next(config for config in BASES if config.name == base)
    return dataclasses.replace(found, name=name, frames=frames, size=size)


# Ours: each stays under the multiply-adds of its name at its own clip size.
PRESETS = (
    _preset("vmf_0p5g", "vmf_52m", frames=8, size=224),
    _preset("vmf_1g", "vmf_96m", frames=8, size=224),
    _preset("vmf_3g", "vmf_294m", frames=8, size=224),
    _preset("vmf_6g", "vmf_508m", frames=12, size=208),
)

REGISTRY = {config.name: config for config in (*BASES, *PRESETS, TINY)}
