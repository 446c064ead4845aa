"""GPU kernels: each reads the features once, in their own memory format."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmf_kernels._runs import Run, launcher
from vmf_kernels.layout import densifier, is_channels_last, maker
from vmf_kernels.tiles import ceil_div
from vmf_kernels.triton_attention import (
    feature_offsets,
    own_channels,
    plan,
    product,
    scores,
    token_offsets,
)
from vmf_kernels.triton_kernels import Launch, sum_launch

LOG2_E = 1.4426950408889634
COMBINE_SPLITS, COMBINE_BLOCK = 32, 32  # of a tile of the second stage


@triton.jit
def _forward(
    p_q, p_x, p_out, p_exact, p_lse, p_max, p_sum,
    tokens, depth, heads, group, splits, steps, units_n, units_c, units_w, size, rows, scale,
    ALIGN_N: tl.constexpr, ALIGN_C: tl.constexpr, CHANNELS_LAST: tl.constexpr, MP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Online softmax over the program's positions. `scale` includes log2(e).

    With SPLIT, `p_exact` gets the program's output in float32, `p_max` and `p_sum` the largest
    score and the sum of what it divides; `size` and `rows` elements a split.
    """
    LN_2: tl.constexpr = 0.6931471805599453
    pid = tl.program_id(0).to(tl.int64)
    i_s = pid % splits
    i_g = pid // splits % (heads // group)
    i_b = pid // splits // (heads // group)
    positions = tl.cast(units_n, tl.int64) * ALIGN_N
    channels = tl.cast(units_c, tl.int64) * ALIGN_C
    width = tl.cast(units_w, tl.int64) * ALIGN_C
    first = i_g * width
    own = own_channels(tokens, depth, width, MP, BLOCK_R, BLOCK_C)
    o_t = token_offsets(i_b, first, tokens, channels, MP, BLOCK_R, BLOCK_C)
    m_c = tl.arange(0, BLOCK_C) < width
    b_q = tl.load(p_q + o_t, mask=own, other=0.0)  # [BLOCK_R, BLOCK_C]
    b_max = tl.full([BLOCK_R], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_R], tl.float32)
    b_out = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(steps):
        n = (i_s * steps + step) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_n = n < positions
        o_x = feature_offsets(i_b, first, n, positions, channels, CHANNELS_LAST, BLOCK_C)
        b_x = tl.load(p_x + o_x, mask=m_n[:, None] & m_c[None, :], other=0.0)
        b_s = scores(b_x, b_q, PRECISION) * scale
        b_s = tl.where(m_n[:, None], b_s, float("-inf"))
        b_top = tl.maximum(b_max, tl.max(b_s, 0))
        b_p = tl.exp2(b_s - b_top[None, :])
        b_keep = tl.exp2(b_max - b_top)
        b_sum = b_sum * b_keep + tl.sum(b_p, 0)
        b_out = product(tl.trans(b_p), b_x, b_out * b_keep[:, None], PRECISION)
        b_max = b_top
    r = tl.arange(0, BLOCK_R)
    o_r = (i_b * heads + i_g * group + r // MP) * tokens + r % MP
    m_r = (r % MP < tokens) & (r // MP < group)
    if SPLIT:
        tl.store(p_exact + i_s * size + o_t, b_out, mask=own)
        tl.store(p_max + i_s * rows + o_r, b_max, mask=m_r)
        tl.store(p_sum + i_s * rows + o_r, b_sum, mask=m_r)
    else:
        b_out = b_out / b_sum[:, None]
        tl.store(p_out + o_t, b_out.to(p_out.dtype.element_ty), mask=own)
        if p_exact is not None:
            tl.store(p_exact + o_t, b_out, mask=own)
        tl.store(p_lse + o_r, (b_max + tl.log2(b_sum)) * LN_2, mask=m_r)


@triton.jit
def _combine(
    p_parts, p_max, p_sum, p_out, p_exact, p_lse, splits, size, rows, tokens, channels, depth,
    BLOCK_S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What the programs left, put together in one order."""
    LN_2: tl.constexpr = 0.6931471805599453
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # in (B, M, C)
    m_i = i < size
    c = i % channels
    i_m = i // channels % tokens
    i_b = i // channels // tokens
    o_r = (i_b * (channels // depth) + c // depth) * tokens + i_m
    b_tops = tl.full([BLOCK_S, BLOCK], float("-inf"), tl.float32)
    for first in range(0, splits, BLOCK_S):
        i_s = first + tl.arange(0, BLOCK_S)[:, None]
        m_s = (i_s < splits) & m_i[None, :]
        b_new = tl.load(p_max + i_s * rows + o_r[None, :], mask=m_s, other=float("-inf"))
        b_tops = tl.maximum(b_tops, b_new)
    b_top = tl.where(m_i, tl.max(b_tops, 0), 0.0)
    b_sums = tl.zeros([BLOCK_S, BLOCK], tl.float32)
    b_outs = tl.zeros([BLOCK_S, BLOCK], tl.float32)
    for first in range(0, splits, BLOCK_S):
        i_s = first + tl.arange(0, BLOCK_S)[:, None]
        m_s = (i_s < splits) & m_i[None, :]
        o_s = i_s * rows + o_r[None, :]
        b_w = tl.exp2(tl.load(p_max + o_s, mask=m_s, other=float("-inf")) - b_top[None, :])
        b_sums += b_w * tl.load(p_sum + o_s, mask=m_s, other=0.0)
        o_p = i_s.to(tl.int64) * size + i[None, :]
        b_outs += b_w * tl.load(p_parts + o_p, mask=m_s, other=0.0)
    b_sum = tl.sum(b_sums, 0)
    b_out = tl.sum(b_outs, 0) / tl.where(m_i, b_sum, 1.0)
    tl.store(p_out + i, b_out.to(p_out.dtype.element_ty), mask=m_i)
    if p_exact is not None:
        tl.store(p_exact + i, b_out, mask=m_i)
    b_lse = (b_top + tl.log2(tl.where(m_i, b_sum, 1.0))) * LN_2
    tl.store(p_lse + o_r, b_lse, mask=m_i & (c % depth == 0))


@triton.jit
def _backward(
    p_g, p_q, p_x, p_exact, p_lse, p_gx, p_gq,
    tokens, depth, heads, group, splits, steps, units_n, units_c, units_w, size, scale,
    ALIGN_N: tl.constexpr, ALIGN_C: tl.constexpr, CHANNELS_LAST: tl.constexpr, MP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The features' gradient in both roles; the query's goes to row `split` of partial sums."""
    LOG2: tl.constexpr = 1.4426950408889634
    pid = tl.program_id(0).to(tl.int64)
    i_s = pid % splits
    i_g = pid // splits % (heads // group)
    i_b = pid // splits // (heads // group)
    positions = tl.cast(units_n, tl.int64) * ALIGN_N
    channels = tl.cast(units_c, tl.int64) * ALIGN_C
    width = tl.cast(units_w, tl.int64) * ALIGN_C
    first = i_g * width
    own = own_channels(tokens, depth, width, MP, BLOCK_R, BLOCK_C)
    o_t = token_offsets(i_b, first, tokens, channels, MP, BLOCK_R, BLOCK_C)
    m_c = tl.arange(0, BLOCK_C) < width
    b_q = tl.load(p_q + o_t, mask=own, other=0.0)  # [BLOCK_R, BLOCK_C]
    b_g = tl.load(p_g + o_t, mask=own, other=0.0)
    b_out = tl.load(p_exact + o_t, mask=own, other=0.0)
    b_dot = tl.sum(b_g.to(tl.float32) * b_out, 1)  # [BLOCK_R]
    r = tl.arange(0, BLOCK_R)
    o_r = (i_b * heads + i_g * group + r // MP) * tokens + r % MP
    m_r = (r % MP < tokens) & (r // MP < group)
    b_lse = tl.load(p_lse + o_r, mask=m_r, other=float("inf")) * LOG2
    b_gq = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(steps):
        n = (i_s * steps + step) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_x = (n < positions)[:, None] & m_c[None, :]
        o_x = feature_offsets(i_b, first, n, positions, channels, CHANNELS_LAST, BLOCK_C)
        b_x = tl.load(p_x + o_x, mask=m_x, other=0.0)
        b_p = tl.exp2(scores(b_x, b_q, PRECISION) * (scale * LOG2) - b_lse[None, :])
        b_s = b_p * (scores(b_x, b_g, PRECISION) - b_dot[None, :]) * scale
        b_s = tl.where((n < positions)[:, None], b_s, 0.0)
        b_gx = product(b_p, b_g, tl.zeros([BLOCK_N, BLOCK_C], tl.float32), PRECISION)
        b_gx = product(b_s, b_q, b_gx, PRECISION)
        tl.store(p_gx + o_x, b_gx.to(p_gx.dtype.element_ty), mask=m_x)
        b_gq = product(tl.trans(b_s), b_x, b_gq, PRECISION)
    tl.store(p_gq + i_s * size + o_t, b_gq.to(p_gq.dtype.element_ty), mask=own)


@launcher
def few_query_attention(query: Tensor, features: Tensor, num_heads: int, scale: float) -> Run:
    """The forward kernel, and where programs share positions the second stage."""
    last = is_channels_last(features)
    cut = plan("few_query_attention", "forward", features, query, num_heads)
    size, rows = query.numel(), cut.batch * cut.heads * cut.tokens
    first = Launch(
        _forward, cut.programs, *cut.scalars, size, rows, scale * LOG2_E,
        warps=cut.warps, **cut.constants, SPLIT=cut.splits > 1,
    )  # fmt: skip
    second = Launch(
        _combine, ceil_div(size, COMBINE_BLOCK), cut.splits, size, rows, cut.tokens, cut.channels,
        cut.channels // cut.heads, BLOCK_S=COMBINE_SPLITS, BLOCK=COMBINE_BLOCK,
    )  # fmt: skip
    wide = query.dtype == torch.float32
    by_row, of_sums = (query.shape[0], num_heads, query.shape[1]), torch.float32
    dense, like_query = densifier(features, last), maker(query, query.shape)
    sums_of_rows = maker(query, by_row, dtype=of_sums)
    in_float32 = maker(query, (0,) if wide else query.shape, dtype=of_sums)
    partial_sums = maker(query, (cut.splits, *query.shape), dtype=of_sums)
    partial_rows = maker(query, (2, cut.splits, *by_row), dtype=of_sums)

    def run(query: Tensor, features: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
        output, lse, exact = like_query(), sums_of_rows(), in_float32()
        kept = None if wide else exact
        if cut.splits == 1:
            first(query.contiguous(), dense(features), output, kept, lse, None, None)
        else:
            parts = partial_sums()
            top, total = partial_rows()
            first(query.contiguous(), dense(features), output, parts, lse, top, total)
            second(parts, top, total, output, kept, lse)
        return output, lse, exact

    return run


@launcher
def few_query_attention_backward(
    grad_output: Tensor,
    query: Tensor,
    features: Tensor,
    output: Tensor,
    lse: Tensor,
    num_heads: int,
    scale: float,
) -> Run:
    """The backward kernel, and the sum of its parts where there are several."""
    last = is_channels_last(features)
    cut = plan("few_query_attention", "backward", features, query, num_heads)
    size = query.numel()
    first = Launch(
        _backward, cut.programs, *cut.scalars, size, scale, warps=cut.warps, **cut.constants
    )
    second = sum_launch(cut.splits, size, 0)
    dense, like_query = densifier(features, last), maker(query, query.shape)
    like_features = maker(features, features.shape, last)
    partial_sums = maker(query, (cut.splits, *query.shape), dtype=torch.float32)

    def run(
        grad_output: Tensor, query: Tensor, features: Tensor, output: Tensor, lse: Tensor,
        *settings: Any,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        grad_features, grad_query = like_features(), like_query()
        parts = partial_sums() if cut.splits > 1 else grad_query
        first(
            grad_output.contiguous(), query.contiguous(), dense(features), output.contiguous(),
            lse.contiguous(), grad_features, parts,
        )  # fmt: skip
        if cut.splits > 1:
            second(parts, grad_query, grad_query)
        return grad_query, grad_features

    return run
