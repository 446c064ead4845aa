"""What the Triton kernels of both attentions share. Imports Triton: only launchers import this.

A program works on some heads of one sample: on tiles of the features, [positions, channels of these
heads], and on matrices of tokens, [head and token, channels], in which a head's rows are zero but
for the head's own channels. So one product of matrices serves all heads, and features are read in
rows as wide as they are.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmf_kernels import tiles
from vmf_kernels.layout import is_channels_last
from vmf_kernels.tiles import ceil_div, power_of_2

MOST_ROWS, MOST_COLUMNS = 32, 256  # of a matrix of tokens, where one head needs less


@triton.jit
def own_channels(
    tokens, depth, width, MP: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Where a matrix of tokens is not zero: row r is token r % MP of head r // MP."""
    r = tl.arange(0, BLOCK_R)[:, None]
    c = tl.arange(0, BLOCK_C)[None, :]
    return (r // MP == c // depth) & (r % MP < tokens) & (c < width)


@triton.jit
def token_offsets(
    i_b, first, tokens, channels, MP: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Of the elements of such a matrix in a (B, M, C) tensor. [BLOCK_R, BLOCK_C]"""
    m = i_b * tokens + tl.arange(0, BLOCK_R) % MP
    return m[:, None] * channels + (first + tl.arange(0, BLOCK_C))[None, :]


@triton.jit
def feature_offsets(
    i_b, first, n, positions, channels, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Of a tile of features at the positions n. [BLOCK_N, BLOCK_C]"""
    c = first + tl.arange(0, BLOCK_C)
    if CHANNELS_LAST:
        return (i_b * positions + n)[:, None] * channels + c[None, :]
    return (i_b * channels + c)[None, :] * positions + n[:, None]


@triton.jit
def product(a, b, b_sum, PRECISION: tl.constexpr):
    """b_sum + a b, for a in float32 and b as it is stored; nothing of a is lost."""
    if b.dtype == tl.bfloat16:
        high = a.to(tl.bfloat16)
        low = (a - high.to(tl.float32)).to(tl.bfloat16)
        return tl.dot(high, b, tl.dot(low, b, b_sum))
    return tl.dot(a, b.to(tl.float32), b_sum, input_precision=PRECISION)


@triton.jit
def scores(b_x, b_t, PRECISION: tl.constexpr):
    """Products of all positions and all rows of a matrix of tokens. [BLOCK_N, BLOCK_R]"""
    return tl.dot(b_x, tl.trans(b_t), input_precision=PRECISION)


def precision(dtype: torch.dtype, device: torch.device) -> str:
    """How matrix units multiply float32: in parts, six products of bfloat16 for float32 accuracy.

    float16 has the digits of tf32, so that one factor of three products is exact.
    """
    if not tiles.architecture(device).startswith("sm_"):
        return "ieee"
    return "bf16x6" if dtype == torch.float32 else "tf32x3"


@dataclass(frozen=True)
class Plan:
    """How a call is cut: the scalars and constants that its kernels share.

    Attributes:
        batch, tokens, channels, positions, heads, depth: sizes.
        group: heads of a program.
        splits: programs that share the positions of a group.
        scalars: in the order of the kernels' arguments.
        constants: by name.
        warps: of a program.
    """

    batch: int
    tokens: int
    channels: int
    positions: int
    heads: int
    group: int
    splits: int
    scalars: tuple[int, ...]
    constants: dict[str, object]
    warps: int

    @property
    def programs(self) -> int:
        return self.batch * (self.heads // self.group) * self.splits


def plan(op: str, kernel: str, features: Tensor, tokens_of: Tensor, heads: int) -> Plan:
    """The cut of a call with features (B, C, *spatial) and tokens (B, M, C)."""
    last, dtype, device = is_channels_last(features), features.dtype, features.device
    batch, channels, positions = *features.shape[:2], math.prod(features.shape[2:])
    tokens = tokens_of.shape[1]
    depth = channels // heads
    mp = power_of_2(tokens)
    group = 1
    for size in range(2, heads + 1):
        rows = power_of_2(size) * mp
        if heads % size == 0 and size * depth <= MOST_COLUMNS and rows <= MOST_ROWS:
            group = size
    gp = power_of_2(group)
    mp = max(mp, 16 // gp)
    width = group * depth
    block_c = max(16, power_of_2(width))
    tile = tiles.choose(op, kernel, dtype, device, last, channels=channels)
    block_n = min(max(16, tile["elements"] // block_c), tile["positions"])
    block_n = min(block_n, max(16, power_of_2(positions)))
    along = ceil_div(positions, block_n)
    wanted = ceil_div(tile["programs"], batch * (heads // group))
    steps = min(along, max(tile["least_steps"], min(tile["steps"], along // wanted)))
    splits = ceil_div(along, steps)
    aligned_c = tiles.alignment(math.gcd(channels, width))
    aligned_n = tiles.alignment(positions)
    sizes = (positions // aligned_n, channels // aligned_c, width // aligned_c)
    scalars = (tokens, depth, heads, group, splits, steps, *sizes)
    constants: dict[str, object] = {
        "ALIGN_N": aligned_n,
        "ALIGN_C": aligned_c,
        "CHANNELS_LAST": last,
        "MP": mp,
        "BLOCK_R": gp * mp,
        "BLOCK_N": block_n,
        "BLOCK_C": block_c,
        "PRECISION": precision(dtype, device),
    }
    return Plan(
        batch, tokens, channels, positions, heads, group, splits, scalars, constants, tile["warps"]
    )
