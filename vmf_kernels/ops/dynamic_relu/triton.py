"""GPU kernels: each reads the features once.

The features are a batch of matrices. Channels last: (B, n, C), slopes along the columns. Channels
first: (1, B*C, n), slopes along the rows. A program owns a tile of rows and columns.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmf_kernels import tiles
from vmf_kernels._runs import Run, launcher
from vmf_kernels.layout import densifier, empty_in_layout, is_channels_last, maker
from vmf_kernels.tiles import Tile, ceil_div
from vmf_kernels.triton_kernels import Launch, sum_launch


@triton.jit(do_not_specialize=("rows", "units", "tiles_r", "tiles_c"))
def _forward(
    p_x, p_a1, p_a2, p_y, rows, units, tiles_r, tiles_c,
    ALIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Columns are units * ALIGN, so that the compiler sees how far rows are aligned."""
    pid = tl.program_id(0).to(tl.int64)
    i_c = pid % tiles_c
    i_r = pid // tiles_c % tiles_r
    i_b = pid // tiles_c // tiles_r
    cols = tl.cast(units, tl.int64) * ALIGN
    r = i_r * BLOCK_R + tl.arange(0, BLOCK_R)
    c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_r, m_c = r < rows, c < cols
    if CHANNELS_LAST:
        b_a1 = tl.load(p_a1 + i_b * cols + c, mask=m_c, other=0.0).to(tl.float32)[None, :]
        b_a2 = tl.load(p_a2 + i_b * cols + c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    else:
        b_a1 = tl.load(p_a1 + r, mask=m_r, other=0.0).to(tl.float32)[:, None]
        b_a2 = tl.load(p_a2 + r, mask=m_r, other=0.0).to(tl.float32)[:, None]
    offsets = (i_b * rows + r)[:, None] * cols + c[None, :]  # [BLOCK_R, BLOCK_C]
    mask = m_r[:, None] & m_c[None, :]
    b_x = tl.load(p_x + offsets, mask=mask, other=0.0).to(tl.float32)
    b_y = tl.maximum(b_a1 * b_x, b_a2 * b_x, propagate_nan=tl.PropagateNan.ALL)
    tl.store(p_y + offsets, b_y.to(p_y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=("rows", "units", "tiles_k", "splits", "steps"))
def _backward(
    p_g, p_x, p_a1, p_a2, p_gx, p_s1, p_s2, part, rows, units, tiles_k, splits, steps,
    ALIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A program goes `steps` tiles along the positions of its channels.

    Its sums for the slopes go to row `split` of partial results, `part` elements a row.
    """
    pid = tl.program_id(0).to(tl.int64)
    i_k = pid % tiles_k
    i_s = pid // tiles_k % splits
    i_b = pid // tiles_k // splits
    cols = tl.cast(units, tl.int64) * ALIGN
    if CHANNELS_LAST:
        k = i_k * BLOCK_C + tl.arange(0, BLOCK_C)
        m_k = k < cols
        i_a = i_b * cols + k  # [BLOCK_C]
        b_a1 = tl.load(p_a1 + i_a, mask=m_k, other=0.0).to(tl.float32)[None, :]
        b_a2 = tl.load(p_a2 + i_a, mask=m_k, other=0.0).to(tl.float32)[None, :]
    else:
        k = i_k * BLOCK_R + tl.arange(0, BLOCK_R)
        m_k = k < rows
        i_a = k  # [BLOCK_R]
        b_a1 = tl.load(p_a1 + i_a, mask=m_k, other=0.0).to(tl.float32)[:, None]
        b_a2 = tl.load(p_a2 + i_a, mask=m_k, other=0.0).to(tl.float32)[:, None]
    b_s1 = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    b_s2 = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(steps):
        if CHANNELS_LAST:
            r = (i_s * steps + step) * BLOCK_R + tl.arange(0, BLOCK_R)
            offsets = (i_b * rows + r)[:, None] * cols + k[None, :]
            mask = (r < rows)[:, None] & m_k[None, :]
        else:
            c = (i_s * steps + step) * BLOCK_C + tl.arange(0, BLOCK_C)
            offsets = k[:, None] * cols + c[None, :]
            mask = m_k[:, None] & (c < cols)[None, :]
        b_x = tl.load(p_x + offsets, mask=mask, other=0.0).to(tl.float32)
        b_g = tl.load(p_g + offsets, mask=mask, other=0.0).to(tl.float32)
        b_y1, b_y2 = b_a1 * b_x, b_a2 * b_x
        b_share = tl.where(b_y1 > b_y2, 1.0, tl.where(b_y1 < b_y2, 0.0, 0.5))
        b_g1, b_g2 = b_g * b_share, b_g * (1.0 - b_share)
        b_gx = b_g1 * b_a1 + b_g2 * b_a2
        tl.store(p_gx + offsets, b_gx.to(p_gx.dtype.element_ty), mask=mask)
        b_s1 += b_g1 * b_x
        b_s2 += b_g2 * b_x
    AXIS: tl.constexpr = 0 if CHANNELS_LAST else 1
    p_s1 += i_s * part + i_a
    p_s2 += i_s * part + i_a
    tl.store(p_s1, tl.sum(b_s1, AXIS).to(p_s1.dtype.element_ty), mask=m_k)
    tl.store(p_s2, tl.sum(b_s2, AXIS).to(p_s2.dtype.element_ty), mask=m_k)


def _matrices(shape: tuple[int, ...], channels_last: bool) -> tuple[int, int, int]:
    """Batch, rows, columns."""
    batch, channels, positions = *shape[:2], math.prod(shape[2:])
    return (batch, positions, channels) if channels_last else (1, batch * channels, positions)


def _block(tile: Tile, rows: int, cols: int) -> tuple[int, int]:
    """Rows and columns of a tile of `elements` elements."""
    block_c = tiles.snug_block(cols, tile["least_columns"], tile["columns"])
    return min(max(1, tile["elements"] // block_c), tiles.power_of_2(rows)), block_c


@launcher
def dynamic_relu(features: Tensor, a1: Tensor, a2: Tensor) -> Run:
    """The forward kernel."""
    last = is_channels_last(features)
    if features.numel() == 0:
        return lambda features, a1, a2: empty_in_layout(features, tuple(features.shape), last)
    batch, rows, cols = _matrices(tuple(features.shape), last)
    tile = tiles.choose("dynamic_relu", "forward", features.dtype, features.device, last)
    block_r, block_c = _block(tile, rows, cols)
    tiles_r, tiles_c = ceil_div(rows, block_r), ceil_div(cols, block_c)
    align = tiles.alignment(cols)
    launch = Launch(
        _forward, batch * tiles_r * tiles_c, rows, cols // align, tiles_r, tiles_c,
        warps=tile["warps"], ALIGN=align, CHANNELS_LAST=last, BLOCK_R=block_r, BLOCK_C=block_c,
    )  # fmt: skip
    dense, output = densifier(features, last), maker(features, features.shape, last)

    def run(features: Tensor, a1: Tensor, a2: Tensor) -> Tensor:
        y = output()
        launch(dense(features), a1.contiguous(), a2.contiguous(), y)
        return y

    return run


@launcher
def dynamic_relu_backward(grad_output: Tensor, features: Tensor, a1: Tensor, a2: Tensor) -> Run:
    """The backward kernel, and the sum of its parts where there are several."""
    last = is_channels_last(features)
    if features.numel() == 0:

        def of_nothing(grad_output: Tensor, features: Tensor, a1: Tensor, a2: Tensor) -> Any:
            grad = empty_in_layout(features, tuple(features.shape), last)
            return grad, a1.new_zeros(a1.shape), a2.new_zeros(a2.shape)

        return of_nothing
    batch, rows, cols = _matrices(tuple(features.shape), last)
    tile = tiles.choose("dynamic_relu", "backward", features.dtype, features.device, last)
    block_r, block_c = _block(tile, rows, cols)
    kept, along = (ceil_div(cols, block_c), ceil_div(rows, block_r))
    if not last:
        kept, along = along, kept
    # Few steps a program where there are few programs.
    wanted = ceil_div(tile["programs"], batch * kept)
    steps = max(1, min(tile["steps"], along // wanted))
    splits = ceil_div(along, steps)
    slopes = a1.numel()
    align = tiles.alignment(cols)
    first = Launch(
        _backward, batch * splits * kept, 2 * slopes, rows, cols // align, kept, splits, steps,
        warps=tile["warps"], ALIGN=align, CHANNELS_LAST=last, BLOCK_R=block_r, BLOCK_C=block_c,
    )  # fmt: skip
    second = sum_launch(splits, slopes, slopes)
    dense_grad, dense = densifier(grad_output, last), densifier(features, last)
    like_features, like_slopes = maker(features, features.shape, last), maker(a1, a1.shape)
    partial_sums = maker(features, (splits, 2, slopes), dtype=torch.float32)

    def run(grad_output: Tensor, features: Tensor, a1: Tensor, a2: Tensor) -> Any:
        grad, grad_a1, grad_a2 = like_features(), like_slopes(), like_slopes()
        part1, part2 = grad_a1, grad_a2
        if splits > 1:
            parts = partial_sums()
            part1, part2 = parts[:, 0], parts[:, 1]
        first(
            dense_grad(grad_output), dense(features), a1.contiguous(), a2.contiguous(), grad,
            part1, part2,
        )  # fmt: skip
        if splits > 1:
            second(parts, grad_a1, grad_a2)
        return grad, grad_a1, grad_a2

    return run
