"""GPU kernel of the weight gradient, and of the bias's: sums over all positions."""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmf_kernels import tiles
from vmf_kernels._runs import Run, launcher
from vmf_kernels.layout import densifier, is_channels_last, maker
from vmf_kernels.ops.depthwise_conv3d.library import triton_keeps_last
from vmf_kernels.ops.depthwise_conv3d.triton_tile import (
    SIZES,
    blocks,
    frame_inside,
    frame_start,
    offsets,
    put,
    zeros,
)
from vmf_kernels.tiles import ceil_div
from vmf_kernels.triton_kernels import Launch, sum_launch


@triton.jit
def _add_product(
    b_sums, b_g, b_x, INDEX: tl.constexpr, AHEAD: tl.constexpr, STRIDE: tl.constexpr,
    FRAMES: tl.constexpr,
):  # fmt: skip
    """Adds to one sum what frame AHEAD / STRIDE gives with b_x, if there is one."""
    A: tl.constexpr = AHEAD // STRIDE
    if A * STRIDE == AHEAD and A >= 0 and A < FRAMES:
        return put(b_sums, INDEX, b_sums[INDEX] + b_g[A] * b_x)
    else:
        return b_sums


@triton.jit(do_not_specialize=(*SIZES, "splits", "steps", "every"))
def _sums(
    p_g, p_x, p_gw, p_gb,
    units, from_t, from_h, from_w, to_t, to_h, to_w, off_t, off_h, off_w,
    tiles_c, tiles_p, tiles_t, groups_w, splits, steps, every, part,
    ALIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr, SHARE: tl.constexpr,
    KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    IN_T: tl.constexpr, IN_H: tl.constexpr, IN_W: tl.constexpr,
    DIL_T: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    GROUP_H: tl.constexpr, GROUP_W: tl.constexpr,
    FRAMES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums of g x for the taps of one group, over `steps` of `every` tiles of positions.

    They go to row `split` of partial results, `part` elements a row, in the weight's own order.
    """
    pid = tl.program_id(0).to(tl.int64)
    i_c = (pid % tiles_c).to(tl.int32)
    pid = pid // tiles_c
    group = (pid // splits).to(tl.int32)
    i_s = pid % splits
    k_h, k_w = group // groups_w * GROUP_H, group % groups_w * GROUP_W
    channels = units * ALIGN
    c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < channels
    LOADS: tl.constexpr = (FRAMES - 1) * IN_T + (KT - 1) * DIL_T + 1
    b_sums = zeros(KT * GROUP_H * GROUP_W, BLOCK_P, BLOCK_C)
    b_bias = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for step in range(steps):
        i = i_s * steps + step
        p = (i % tiles_p).to(tl.int32) * BLOCK_P + tl.arange(0, BLOCK_P)
        first = (i // tiles_p % tiles_t).to(tl.int32) * FRAMES
        i_b = i // tiles_p // tiles_t
        h, w = p // to_w, p % to_w
        m_p = (h < to_h) & (i + tl.zeros([BLOCK_P], tl.int64) < every)
        o_g = offsets(h, w, c, to_w, to_h * to_w, channels, to_t, CHANNELS_LAST)
        b_g = zeros(FRAMES, BLOCK_P, BLOCK_C)
        for a in tl.static_range(FRAMES):
            t = first + a
            o_t = frame_start(i_b, t.to(tl.int64), to_h * to_w, channels, to_t, CHANNELS_LAST)
            m_g = m_p[:, None] & m_c[None, :] & frame_inside(t, to_t, BLOCK_P)
            b_one = tl.load(p_g + o_t + o_g, mask=m_g, other=0.0).to(tl.float32)
            b_bias += b_one
            b_g = put(b_g, a, b_one)
        for g_h in tl.static_range(GROUP_H):
            x_h = h * IN_H + (off_h + (k_h + g_h) * DIL_H)
            for g_w in tl.static_range(GROUP_W):
                x_w = w * IN_W + (off_w + (k_w + g_w) * DIL_W)
                m_x = m_p & (x_h >= 0) & (x_h < from_h) & (x_w >= 0) & (x_w < from_w)
                o_x = offsets(
                    x_h, x_w, c // SHARE, from_w, from_h * from_w, channels // SHARE, from_t,
                    CHANNELS_LAST,
                )  # fmt: skip
                for load in tl.static_range(LOADS):
                    t = first * IN_T + off_t + load
                    o_t = frame_start(
                        i_b, t.to(tl.int64), from_h * from_w, channels // SHARE, from_t,
                        CHANNELS_LAST,
                    )  # fmt: skip
                    m_t = m_x[:, None] & m_c[None, :] & frame_inside(t, from_t, BLOCK_P)
                    b_x = tl.load(p_x + o_t + o_x, mask=m_t, other=0.0).to(tl.float32)
                    for k_t in tl.static_range(KT):
                        b_sums = _add_product(
                            b_sums, b_g, b_x, (k_t * GROUP_H + g_h) * GROUP_W + g_w,
                            load - k_t * DIL_T, IN_T, FRAMES,
                        )  # fmt: skip
    o_c = i_s * part + c.to(tl.int64) * (KT * KH * KW)
    for k_t in tl.static_range(KT):
        for g_h in tl.static_range(GROUP_H):
            for g_w in tl.static_range(GROUP_W):
                tap = (k_t * KH + k_h + g_h) * KW + k_w + g_w
                real = ((k_h + g_h < KH) & (k_w + g_w < KW)).to(tl.int32)
                b_one = b_sums[(k_t * GROUP_H + g_h) * GROUP_W + g_w]
                b_sum = tl.sum(b_one, 0).to(p_gw.dtype.element_ty)
                tl.store(p_gw + o_c + tap, b_sum, mask=m_c & (real + 0 * c > 0))
    b_sum = tl.sum(b_bias, 0).to(p_gb.dtype.element_ty)
    tl.store(p_gb + i_s * part + c, b_sum, mask=m_c & (group + 0 * c == 0))


@launcher
def depthwise_conv3d_grad_weight(
    grad_output: Tensor,
    input: Tensor,
    kernel_size: list[int],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Run:
    """The kernel of the sums, and the sum of its parts where there are several."""
    batch, channels, *to_size = grad_output.shape
    last = triton_keeps_last(is_channels_last(input), channels // input.shape[1])
    kt, kh, kw = kernel_size
    tile = tiles.choose("depthwise_conv3d", "sums", input.dtype, input.device, last)
    group_w = min(kw, max(1, tile["sums"] // kt))
    group_h = min(kh, max(1, tile["sums"] // (kt * group_w)))
    groups_h, groups_w = ceil_div(kh, group_h), ceil_div(kw, group_w)
    positions = to_size[1] * to_size[2]
    reach = (kt - 1) * dilation[0]
    block_t, block_p, block_c = blocks(tile, channels, to_size[0], positions, stride[0], reach)
    tiles_c, tiles_p = ceil_div(channels, block_c), ceil_div(positions, block_p)
    tiles_t = ceil_div(to_size[0], block_t)
    every = batch * tiles_t * tiles_p
    wanted = ceil_div(tile["programs"], tiles_c * groups_h * groups_w)
    steps = max(1, min(tile["steps"], every // wanted))
    splits = max(1, ceil_div(every, steps))  # sums of nothing are zero, and must be written
    taps = math.prod(kernel_size) * channels
    align = tiles.alignment(channels)
    names = (f"{kind}_{axis}" for kind in ("IN", "DIL") for axis in "THW")
    sizes = dict(zip(("KT", "KH", "KW", *names), (kt, kh, kw, *stride, *dilation), strict=True))
    first = Launch(
        _sums, tiles_c * groups_h * groups_w * splits,
        channels // align, *input.shape[2:], *to_size, *(-p for p in padding[::2]),
        tiles_c, tiles_p, tiles_t, groups_w, splits, steps, every, taps + channels,
        warps=tile["warps"], ALIGN=align, CHANNELS_LAST=last, SHARE=channels // input.shape[1],
        **sizes, GROUP_H=group_h, GROUP_W=group_w, FRAMES=block_t, BLOCK_P=block_p,
        BLOCK_C=block_c,
    )  # fmt: skip
    second = sum_launch(splits, taps, channels)
    dense_grad, dense = densifier(grad_output, last), densifier(input, last)
    new_weight, new_bias = maker(input, (channels, 1, kt, kh, kw)), maker(input, (channels,))
    partial_sums = maker(input, (splits, taps + channels), dtype=torch.float32)

    def run(grad_output: Tensor, input: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
        grad_weight, grad_bias = new_weight(), new_bias()
        part_weight, part_bias = grad_weight, grad_bias
        if splits > 1:
            parts = partial_sums()
            part_weight, part_bias = parts[:, :taps], parts[:, taps:]
        first(dense_grad(grad_output), dense(input), part_weight, part_bias)
        if splits > 1:
            second(parts, grad_weight, grad_bias)
        return grad_weight, grad_bias

    return run
