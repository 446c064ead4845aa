"""GPU kernels: each reads the features once, in their own memory format."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmf_kernels._runs import Run, launcher
from vmf_kernels.layout import densifier, is_channels_last, maker
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


@triton.jit
def _softmax(b_s, tokens, MP: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of the scores of each position over the tokens of each head. [BLOCK_N, BLOCK_R]"""
    m_m = (tl.arange(0, MP) < tokens)[None, None, :]
    b_s = tl.reshape(b_s, [BLOCK_N, BLOCK_R // MP, MP])
    b_s = tl.where(m_m, b_s, float("-inf"))
    b_p = tl.exp2(b_s - tl.max(b_s, 2)[:, :, None])
    b_p = b_p / tl.sum(b_p, 2)[:, :, None]
    return tl.reshape(b_p, [BLOCK_N, BLOCK_R])


@triton.jit
def _forward(
    p_x, p_k, p_v, p_y,
    tokens, depth, heads, group, splits, steps, units_n, units_c, units_w, scale,
    ALIGN_N: tl.constexpr, ALIGN_C: tl.constexpr, CHANNELS_LAST: tl.constexpr, MP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """`scale` includes log2(e)."""
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
    b_k = tl.load(p_k + o_t, mask=own, other=0.0)  # [BLOCK_R, BLOCK_C]
    b_v = tl.load(p_v + o_t, mask=own, other=0.0)
    for step in range(steps):
        n = (i_s * steps + step) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_x = (n < positions)[:, None] & m_c[None, :]
        o_x = feature_offsets(i_b, first, n, positions, channels, CHANNELS_LAST, BLOCK_C)
        b_x = tl.load(p_x + o_x, mask=m_x, other=0.0)
        b_p = _softmax(scores(b_x, b_k, PRECISION) * scale, tokens, MP, BLOCK_R, BLOCK_N)
        b_y = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
        if RESIDUAL:
            b_y += b_x.to(tl.float32)
        b_y = product(b_p, b_v, b_y, PRECISION)
        tl.store(p_y + o_x, b_y.to(p_y.dtype.element_ty), mask=m_x)


@triton.jit
def _backward(
    p_g, p_x, p_k, p_v, p_gx, p_gk, p_gv,
    tokens, depth, heads, group, splits, steps, units_n, units_c, units_w, part, scale,
    ALIGN_N: tl.constexpr, ALIGN_C: tl.constexpr, CHANNELS_LAST: tl.constexpr, MP: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """The tokens' gradients go to row `split` of partial sums, `part` elements a row."""
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
    b_k = tl.load(p_k + o_t, mask=own, other=0.0)  # [BLOCK_R, BLOCK_C]
    b_v = tl.load(p_v + o_t, mask=own, other=0.0)
    b_gk = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    b_gv = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(steps):
        n = (i_s * steps + step) * BLOCK_N + tl.arange(0, BLOCK_N)
        m_x = (n < positions)[:, None] & m_c[None, :]
        o_x = feature_offsets(i_b, first, n, positions, channels, CHANNELS_LAST, BLOCK_C)
        b_x = tl.load(p_x + o_x, mask=m_x, other=0.0)
        b_g = tl.load(p_g + o_x, mask=m_x, other=0.0)
        b_s = scores(b_x, b_k, PRECISION) * (scale * LOG2)
        b_p = _softmax(b_s, tokens, MP, BLOCK_R, BLOCK_N)
        b_gp = scores(b_g, b_v, PRECISION)
        b_dot = tl.sum(tl.reshape(b_gp * b_p, [BLOCK_N, BLOCK_R // MP, MP]), 2)[:, :, None]
        b_gs = tl.reshape(b_gp, [BLOCK_N, BLOCK_R // MP, MP]) - b_dot
        b_gs = tl.reshape(b_gs, [BLOCK_N, BLOCK_R]) * b_p * scale
        b_gx = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
        if RESIDUAL:
            b_gx += b_g.to(tl.float32)
        b_gx = product(b_gs, b_k, b_gx, PRECISION)
        tl.store(p_gx + o_x, b_gx.to(p_gx.dtype.element_ty), mask=m_x)
        # Beyond the last position g is zero, and so is what it is multiplied by.
        b_gk = product(tl.trans(b_gs), b_x, b_gk, PRECISION)
        b_gv = product(tl.trans(b_p), b_g, b_gv, PRECISION)
    tl.store(p_gk + i_s * part + o_t, b_gk.to(p_gk.dtype.element_ty), mask=own)
    tl.store(p_gv + i_s * part + o_t, b_gv.to(p_gv.dtype.element_ty), mask=own)


@launcher
def few_key_attention(
    features: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float, residual: bool
) -> Run:
    """The forward kernel."""
    last = is_channels_last(features)
    cut = plan("few_key_attention", "forward", features, key, num_heads)
    launch = Launch(
        _forward, cut.programs, *cut.scalars, scale * LOG2_E,
        warps=cut.warps, **cut.constants, RESIDUAL=residual,
    )  # fmt: skip
    dense, output = densifier(features, last), maker(features, features.shape, last)

    def run(features: Tensor, key: Tensor, value: Tensor, *settings: Any) -> Tensor:
        y = output()
        launch(dense(features), key.contiguous(), value.contiguous(), y)
        return y

    return run


@launcher
def few_key_attention_backward(
    grad_output: Tensor,
    features: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    scale: float,
    residual: bool,
) -> Run:
    """The backward kernel, and the sum of its parts where there are several."""
    last = is_channels_last(features)
    cut = plan("few_key_attention", "backward", features, key, num_heads)
    size = key.numel()
    first = Launch(
        _backward, cut.programs, *cut.scalars, 2 * size, scale,
        warps=cut.warps, **cut.constants, RESIDUAL=residual,
    )  # fmt: skip
    second = sum_launch(cut.splits, size, size)
    dense_grad, dense = densifier(grad_output, last), densifier(features, last)
    like_features, like_key = maker(features, features.shape, last), maker(key, key.shape)
    partial_sums = maker(key, (cut.splits, 2, *key.shape), dtype=torch.float32)

    def run(
        grad_output: Tensor, features: Tensor, key: Tensor, value: Tensor, *settings: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_features, grad_key, grad_value = like_features(), like_key(), like_key()
        part_key, part_value = grad_key, grad_value
        if cut.splits > 1:
            parts = partial_sums()
            part_key, part_value = parts[:, 0], parts[:, 1]
        first(
            dense_grad(grad_output), dense(features), key.contiguous(), value.contiguous(),
            grad_features, part_key, part_value,
        )  # fmt: skip
        if cut.splits > 1:
            second(parts, grad_key, grad_value)
        return grad_features, grad_key, grad_value

    return run
