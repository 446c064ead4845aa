"""What the depthwise kernels share: tiles of positions (of one frame, flattened) times channels.

A tile is of several frames at once: what is loaded for one tap in H and W serves all taps in T.
"""

import triton
import triton.language as tl

from vmf_kernels import tiles
from vmf_kernels.tiles import ceil_div, power_of_2

Triple = tuple[int, ...]  # T, H, W
# What one compiled kernel serves whatever its value: else a new size would be a new compilation.
SIZES = ("units", "tiles_c", "tiles_p", "tiles_t") + tuple(
    f"{kind}_{axis}" for kind in ("from", "to", "off") for axis in "thw"
)


@triton.jit
def offsets(h, w, c, width, positions, channels, frames, CHANNELS_LAST: tl.constexpr):
    """Of the elements at rows h and columns w of one frame. [BLOCK_P, BLOCK_C]"""
    if CHANNELS_LAST:
        return (h * width + w)[:, None] * channels + c[None, :]
    else:
        return (h * width + w)[:, None] + c[None, :].to(tl.int64) * (frames * positions)


@triton.jit
def frame_start(i_b, t, positions, channels, frames, CHANNELS_LAST: tl.constexpr):
    """Where frame t of sample i_b begins."""
    if CHANNELS_LAST:
        return (i_b * frames + t) * positions * channels
    else:
        return (i_b * channels * frames + t) * positions


@triton.jit
def frame_inside(t, frames, BLOCK_P: tl.constexpr):
    """Whether frame t is one, for each position: masks are blocks. [BLOCK_P, 1]"""
    b_t = (t + tl.zeros([BLOCK_P], tl.int32))[:, None]
    return (b_t >= 0) & (b_t < frames)


@triton.jit
def put(b_all, INDEX: tl.constexpr, b_new):
    """The tuple with one element replaced."""
    return b_all[:INDEX] + (b_new,) + b_all[INDEX + 1 :]


@triton.jit
def zeros(COUNT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """A tuple of blocks."""
    b_zero = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    b_all = (b_zero,)
    for _ in tl.static_range(COUNT - 1):
        b_all = b_all + (b_zero,)  # type: ignore[assignment]
    return b_all


# What a tile costs beside its frames' loads and stores, counted in those.
TILE_COST = 4


def blocks(
    tile: tiles.Tile, channels: int, frames: int, positions: int, step: int, reach: int
) -> tuple[int, int, int]:
    """Frames, positions and channels of a tile; f frames read (f - 1) step + reach + 1."""
    block_c = tiles.snug_block(channels, min(16, tile["channels"]), tile["channels"])
    block_p = min(max(1, tile["elements"] // block_c), power_of_2(positions))

    def cost(block_t: int) -> int:
        loads = (block_t - 1) * step + reach + 1
        return ceil_div(frames, block_t) * (loads + block_t + TILE_COST)

    sizes = [1 << i for i in range(tile["frames"].bit_length())]
    block_t = min((s for s in sizes if s < 2 * frames), key=lambda s: (cost(s), -s))
    return block_t, block_p, block_c
