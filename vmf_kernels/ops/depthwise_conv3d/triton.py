"""GPU kernel of the forward pass and of the input gradient, which is the same the other way."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmf_kernels import tiles
from vmf_kernels._runs import Run, launcher
from vmf_kernels.layout import densifier, is_channels_last, maker, to_layout
from vmf_kernels.ops.depthwise_conv3d.geometry import output_size
from vmf_kernels.ops.depthwise_conv3d.library import triton_keeps_last
from vmf_kernels.ops.depthwise_conv3d.triton_grad_weight import depthwise_conv3d_grad_weight
from vmf_kernels.ops.depthwise_conv3d.triton_tile import (
    SIZES,
    Triple,
    blocks,
    frame_inside,
    frame_start,
    offsets,
    put,
    zeros,
)
from vmf_kernels.tiles import ceil_div
from vmf_kernels.triton_kernels import Launch

__all__ = [
    "depthwise_conv3d",
    "depthwise_conv3d_fused",
    "depthwise_conv3d_grad_weight",
    "depthwise_conv_transpose3d",
]


@triton.jit
def _add_tap(
    b_y, b_x, p_tap, m_c, c, k_t, stride,
    A: tl.constexpr, AHEAD: tl.constexpr,
    DIL: tl.constexpr, TAPS: tl.constexpr, OUT: tl.constexpr, KT: tl.constexpr,
):  # fmt: skip
    """Adds what frame A gets of b_x, if a tap leads AHEAD frames from there."""
    Q: tl.constexpr = AHEAD // DIL
    if Q * DIL == AHEAD and Q >= 0 and Q < TAPS:
        kt = k_t + Q * OUT
        b_w = tl.load(p_tap + kt * stride, mask=m_c & (kt + 0 * c < KT), other=0.0)
        return put(b_y, A, b_y[A] + b_x * b_w.to(tl.float32)[None, :])
    else:
        return b_y


@triton.jit
def _activate(b_y, b_a1, b_a2, ACTIVATION: tl.constexpr):
    """The activation of that index in `epilogue.ACTIVATIONS`; a NaN stays one, as in PyTorch."""
    if ACTIVATION == 1:
        b_y = tl.maximum(b_y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == 2:
        b_y = tl.clamp(b_y, 0.0, 6.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == 3:
        b_y = b_y * tl.clamp(b_y + 3.0, 0.0, 6.0, propagate_nan=tl.PropagateNan.ALL) / 6.0
    elif ACTIVATION == 4:
        b_y = b_y / (1.0 + tl.exp(-b_y))
    elif ACTIVATION == 5:
        b_y = 0.5 * b_y * (1.0 + tl.erf(b_y * 0.7071067811865476))
    elif ACTIVATION == 6:
        b_y = tl.maximum(b_a1 * b_y, b_a2 * b_y, propagate_nan=tl.PropagateNan.ALL)
    return b_y


@triton.jit(do_not_specialize=SIZES)
def _gather(
    p_x, p_w, p_bias, p_y, p_residual, p_a1, p_a2,
    units, from_t, from_h, from_w, to_t, to_h, to_w, off_t, off_h, off_w,
    tiles_c, tiles_p, tiles_t,
    ALIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr, SHARE: tl.constexpr, REPEAT: tl.constexpr,
    BY_TAPS: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    IN_T: tl.constexpr, IN_H: tl.constexpr, IN_W: tl.constexpr,
    OUT_T: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr,
    DIL_T: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    FRAMES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """y[i] = sum over taps k of w[k] x[...], forward and for the input gradient.

    Then activation(y + bias + residual), with slopes a1 and a2 of each sample and channel where
    that is a dynamic ReLU.

    Along each axis the elements written are i = r + OUT * ii, for residues r; they use the taps
    k = k0 + OUT * q and read ii * IN + base + q * DIL. Forward OUT is 1; backward it is the stride,
    IN is 1 and DIL is negative. `off` is what ii = q = 0 reads for OUT = 1. The weight is
    (kT * kH * kW, channels) if BY_TAPS, else (channels, kT * kH * kW). A channel written reads
    channel c // SHARE, or REPEAT channels.
    """
    pid = tl.program_id(0).to(tl.int64)
    i_c = (pid % tiles_c).to(tl.int32)
    pid = pid // tiles_c
    i_p = (pid % tiles_p).to(tl.int32)
    pid = pid // tiles_p
    r_w = (pid % OUT_W).to(tl.int32)
    pid = pid // OUT_W
    r_h = (pid % OUT_H).to(tl.int32)
    pid = pid // OUT_H
    r_t = (pid % OUT_T).to(tl.int32)
    pid = pid // OUT_T
    i_t = (pid % tiles_t).to(tl.int32)
    i_b = pid // tiles_t
    channels = units * ALIGN
    k_t, k_h, k_w = (r_t + off_t) % OUT_T, (r_h + off_h) % OUT_H, (r_w + off_w) % OUT_W
    base_t = (r_t + off_t - k_t) // OUT_T + i_t * FRAMES * IN_T
    base_h = (r_h + off_h - k_h) // OUT_H
    base_w = (r_w + off_w - k_w) // OUT_W
    c = i_c * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = c < channels
    class_w = (to_w + OUT_W - 1) // OUT_W
    p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
    ii_h, ii_w = p // class_w, p % class_w
    TAPS_T: tl.constexpr = (KT + OUT_T - 1) // OUT_T
    REACH: tl.constexpr = (TAPS_T - 1) * DIL_T
    FIRST: tl.constexpr = min(REACH, 0)
    LOADS: tl.constexpr = (FRAMES - 1) * IN_T + max(REACH, -REACH) + 1
    b_y = zeros(FRAMES, BLOCK_P, BLOCK_C)
    from_positions = from_h * from_w
    read = channels // SHARE * REPEAT
    for q_h in range((KH - k_h + OUT_H - 1) // OUT_H):
        h = ii_h * IN_H + (base_h + q_h * DIL_H)
        for q_w in tl.range(0, (KW - k_w + OUT_W - 1) // OUT_W, loop_unroll_factor=UNROLL):
            w = ii_w * IN_W + (base_w + q_w * DIL_W)
            m_p = (h >= 0) & (h < from_h) & (w >= 0) & (w < from_w)
            m_x = m_p[:, None] & m_c[None, :]
            tap = (k_h + q_h * OUT_H) * KW + k_w + q_w * OUT_W
            for repeat in tl.static_range(REPEAT):
                if REPEAT > 1:
                    source = c * REPEAT + repeat
                elif SHARE > 1:
                    source = c // SHARE
                else:
                    source = c
                o_x = offsets(h, w, source, from_w, from_positions, read, from_t, CHANNELS_LAST)
                weight_c = source if REPEAT > 1 else c
                if BY_TAPS:
                    stride = KH * KW * REPEAT * channels
                    p_tap = p_w + tap * (REPEAT * channels) + weight_c
                else:
                    stride = KH * KW
                    p_tap = p_w + tap + weight_c * (KT * KH * KW)
                for load in tl.static_range(LOADS):
                    t = base_t + FIRST + load
                    o_t = frame_start(
                        i_b, t.to(tl.int64), from_positions, read, from_t, CHANNELS_LAST
                    )
                    m_t = m_x & frame_inside(t, from_t, BLOCK_P)
                    b_x = tl.load(p_x + o_t + o_x, mask=m_t, other=0.0).to(tl.float32)
                    for a in tl.static_range(FRAMES):
                        b_y = _add_tap(
                            b_y, b_x, p_tap, m_c, c, k_t, stride,
                            a, FIRST + load - a * IN_T, DIL_T, TAPS_T, OUT_T, KT,
                        )  # fmt: skip
    h, w = ii_h * OUT_H + r_h, ii_w * OUT_W + r_w
    m_y = ((h < to_h) & (w < to_w))[:, None] & m_c[None, :]
    o_y = offsets(h, w, c, to_w, to_h * to_w, channels, to_t, CHANNELS_LAST)
    b_bias = tl.zeros([BLOCK_C], tl.float32)
    if p_bias is not None:
        b_bias = tl.load(p_bias + c, mask=m_c, other=0.0).to(tl.float32)
    b_a1, b_a2 = b_bias[None, :], b_bias[None, :]
    if p_a1 is not None:
        b_a1 = tl.load(p_a1 + i_b * channels + c, mask=m_c, other=0.0).to(tl.float32)[None, :]
        b_a2 = tl.load(p_a2 + i_b * channels + c, mask=m_c, other=0.0).to(tl.float32)[None, :]
    for a in tl.static_range(FRAMES):
        t = (i_t * FRAMES + a) * OUT_T + r_t
        o_t = frame_start(i_b, t.to(tl.int64), to_h * to_w, channels, to_t, CHANNELS_LAST)
        m_t = m_y & frame_inside(t, to_t, BLOCK_P)
        b_out = b_y[a] + b_bias[None, :]
        if p_residual is not None:
            b_out += tl.load(p_residual + o_t + o_y, mask=m_t, other=0.0).to(tl.float32)
        b_out = _activate(b_out, b_a1, b_a2, ACTIVATION)
        tl.store(p_y + o_t + o_y, b_out.to(p_y.dtype.element_ty), mask=m_t)


@dataclass(frozen=True)
class Geometry:
    """Of a call.

    Attributes:
        input, kernel, stride, before, dilation: of the three axes; `before` is the padding there.
        output: sizes that follow.
        batch: samples.
        channels: of the output.
        multiplier: output channels for each of the input.
        last: whether features lie channels last.
        dtype, device: of all tensors.
    """

    batch: int
    channels: int
    multiplier: int
    input: Triple
    output: Triple
    kernel: Triple
    stride: Triple
    before: Triple
    dilation: Triple
    last: bool
    dtype: torch.dtype
    device: torch.device


def _gather_launch(of: Geometry, transposed: bool, activation: int = 0) -> tuple[bool, Launch]:
    """Whether weights lie by taps, and the launch of the forward pass or the input gradient."""
    into, out = ((1, 1, 1), of.stride) if transposed else (of.stride, (1, 1, 1))
    off = of.before if transposed else tuple(-p for p in of.before)
    dil = tuple(-d for d in of.dilation) if transposed else of.dilation
    from_size, to_size = (of.output, of.input) if transposed else (of.input, of.output)
    channels = of.channels // of.multiplier if transposed else of.channels
    frames, *sides = (ceil_div(n, o) for n, o in zip(to_size, out, strict=True))
    positions = math.prod(sides)
    taps = math.prod(of.kernel)
    tile = tiles.choose("depthwise_conv3d", "gather", of.dtype, of.device, of.last, taps=taps)
    reach = (ceil_div(of.kernel[0], out[0]) - 1) * of.dilation[0]
    block_t, block_p, block_c = blocks(tile, channels, frames, positions, into[0], reach)
    tiles_c, tiles_p = ceil_div(channels, block_c), ceil_div(positions, block_p)
    tiles_t = ceil_div(frames, block_t)
    align = tiles.alignment(channels)
    programs = of.batch * tiles_c * tiles_p * tiles_t * math.prod(out)
    names = (f"{kind}_{axis}" for kind in ("IN", "OUT", "DIL") for axis in "THW")
    sizes = dict(zip(("KT", "KH", "KW", *names), (*of.kernel, *into, *out, *dil), strict=True))
    # A copy of the weights takes longer than all of a small call.
    by_taps = of.last and of.batch * channels * math.prod(to_size) >= tile["copy_from"]
    return by_taps, Launch(
        _gather, programs, channels // align, *from_size, *to_size, *off, tiles_c, tiles_p, tiles_t,
        warps=tile["warps"], ALIGN=align, CHANNELS_LAST=of.last,
        SHARE=1 if transposed else of.multiplier, REPEAT=of.multiplier if transposed else 1,
        BY_TAPS=by_taps, **sizes, FRAMES=block_t, BLOCK_P=block_p, BLOCK_C=block_c,
        UNROLL=tile["unroll"], ACTIVATION=activation,
    )  # fmt: skip


def _run(
    of: Geometry, transposed: bool, input: Tensor, output: tuple[int, ...], activation: int = 0
) -> Run:
    """Of either direction, for inputs like this one."""
    last = of.last
    of = replace(of, last=triton_keeps_last(last, of.multiplier))
    by_taps, launch = _gather_launch(of, transposed, activation)
    dense, new_output = densifier(input, of.last), maker(input, output, of.last)

    def run(
        input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None,
        a1: Tensor | None = None, a2: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        y = new_output()
        # By taps, those of neighbouring channels are neighbours.
        weight = weight.flatten(1).t().contiguous() if by_taps else weight.contiguous()
        bias = None if bias is None else bias.contiguous()
        launch(dense(input), weight, bias, y, residual, a1, a2)
        return y if last == of.last else to_layout(y, last)

    return run


def _forward(
    input: Tensor, weight: Tensor, stride: Triple, padding: tuple[int, ...], dilation: Triple,
    activation: int = 0,
) -> Run:  # fmt: skip
    batch, channels, *size = output_size(input.shape, weight.shape, stride, padding, dilation)
    of = Geometry(
        batch, channels, channels // input.shape[1], tuple(input.shape[2:]), tuple(size),
        tuple(weight.shape[2:]), tuple(stride), tuple(padding[::2]), tuple(dilation),
        is_channels_last(input), input.dtype, input.device,
    )  # fmt: skip
    return _run(of, False, input, (batch, channels, *size), activation)


@launcher
def depthwise_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Triple,
    padding: tuple[int, ...],
    dilation: Triple,
) -> Run:
    """The forward kernel."""
    run = _forward(input, weight, stride, padding, dilation)
    return lambda input, weight, bias, *settings: run(input, weight, bias)


@launcher
def depthwise_conv3d_fused(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    a1: Tensor | None,
    a2: Tensor | None,
    activation: int,
    stride: Triple,
    padding: tuple[int, ...],
    dilation: Triple,
) -> Run:
    """The forward kernel with all that may follow."""
    convolve = _forward(input, weight, stride, padding, dilation, activation)
    last = triton_keeps_last(is_channels_last(input), weight.shape[0] // input.shape[1])

    def run(
        input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None,
        a1: Tensor | None, a2: Tensor | None, *settings: Any,
    ) -> Tensor:  # fmt: skip
        residual = None if residual is None else to_layout(residual, last)
        if a1 is not None and a2 is not None:
            a1, a2 = a1.contiguous(), a2.contiguous()
        return convolve(input, weight, bias, residual, a1, a2)

    return run


@launcher
def depthwise_conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output_size: list[int],
    stride: Triple,
    padding: tuple[int, ...],
    dilation: Triple,
) -> Run:
    """The same kernel the other way."""
    outputs = weight.shape[0]
    of = Geometry(
        output_size[0], outputs, outputs // output_size[1], tuple(output_size[2:]),
        tuple(input.shape[2:]), tuple(weight.shape[2:]), tuple(stride), tuple(padding[::2]),
        tuple(dilation), is_channels_last(input), input.dtype, input.device,
    )  # fmt: skip
    run = _run(of, True, input, tuple(output_size))
    return lambda input, weight, bias, *settings: run(input, weight, bias)
