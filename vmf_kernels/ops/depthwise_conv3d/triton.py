"""GPU kernels: forward and input gradient in one, and the weight gradient.

Both take a tile of positions (of one frame, flattened) times channels, for several frames at once:
what is loaded for one tap in H and W serves all taps in T.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from vmf_kernels import tiles
from vmf_kernels.layout import empty_in_layout, is_channels_last
from vmf_kernels.ops.depthwise_conv3d.geometry import output_size
from vmf_kernels.tiles import ceil_div, power_of_2
from vmf_kernels.triton_kernels import Launch, dense, sum_launch

Triple = tuple[int, ...]  # T, H, W
# What one compiled kernel serves whatever its value: else a new size would be a new compilation.
SIZES = ("units", "tiles_c", "tiles_p", "tiles_t") + tuple(
    f"{kind}_{axis}" for kind in ("from", "to", "off") for axis in "thw"
)


@triton.jit
def _offsets(h, w, c, width, positions, channels, frames, CHANNELS_LAST: tl.constexpr):
    """Of the elements at rows h and columns w of one frame. [BLOCK_P, BLOCK_C]"""
    if CHANNELS_LAST:
        return (h * width + w)[:, None] * channels + c[None, :]
    else:
        return (h * width + w)[:, None] + c[None, :].to(tl.int64) * (frames * positions)


@triton.jit
def _frame(i_b, t, positions, channels, frames, CHANNELS_LAST: tl.constexpr):
    """Where frame t of sample i_b begins."""
    if CHANNELS_LAST:
        return (i_b * frames + t) * positions * channels
    else:
        return (i_b * channels * frames + t) * positions


@triton.jit
def _inside(t, frames, BLOCK_P: tl.constexpr):
    """Whether frame t is one, for each position: masks are blocks. [BLOCK_P, 1]"""
    b_t = (t + tl.zeros([BLOCK_P], tl.int32))[:, None]
    return (b_t >= 0) & (b_t < frames)


@triton.jit
def _put(b_all, INDEX: tl.constexpr, b_new):
    """The tuple with one element replaced."""
    return b_all[:INDEX] + (b_new,) + b_all[INDEX + 1 :]


@triton.jit
def _zeros(COUNT: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """A tuple of blocks."""
    b_zero = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    b_all = (b_zero,)
    for _ in tl.static_range(COUNT - 1):
        b_all = b_all + (b_zero,)  # type: ignore[assignment]
    return b_all


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
        return _put(b_y, A, b_y[A] + b_x * b_w.to(tl.float32)[None, :])
    else:
        return b_y


@triton.jit
def _add_product(
    b_sums, b_g, b_x, INDEX: tl.constexpr, AHEAD: tl.constexpr, STRIDE: tl.constexpr,
    FRAMES: tl.constexpr,
):  # fmt: skip
    """Adds to one sum what frame AHEAD / STRIDE gives with b_x, if there is one."""
    A: tl.constexpr = AHEAD // STRIDE
    if A * STRIDE == AHEAD and A >= 0 and A < FRAMES:
        return _put(b_sums, INDEX, b_sums[INDEX] + b_g[A] * b_x)
    else:
        return b_sums


@triton.jit(do_not_specialize=SIZES)
def _gather(
    p_x, p_w, p_bias, p_y,
    units, from_t, from_h, from_w, to_t, to_h, to_w, off_t, off_h, off_w,
    tiles_c, tiles_p, tiles_t,
    ALIGN: tl.constexpr, CHANNELS_LAST: tl.constexpr, SHARE: tl.constexpr, REPEAT: tl.constexpr,
    BY_TAPS: tl.constexpr, KT: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    IN_T: tl.constexpr, IN_H: tl.constexpr, IN_W: tl.constexpr,
    OUT_T: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr,
    DIL_T: tl.constexpr, DIL_H: tl.constexpr, DIL_W: tl.constexpr,
    FRAMES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """y[i] = sum over taps k of w[k] x[...], forward and for the input gradient.

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
    b_y = _zeros(FRAMES, BLOCK_P, BLOCK_C)
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
                o_x = _offsets(h, w, source, from_w, from_positions, read, from_t, CHANNELS_LAST)
                weight_c = source if REPEAT > 1 else c
                if BY_TAPS:
                    stride = KH * KW * REPEAT * channels
                    p_tap = p_w + tap * (REPEAT * channels) + weight_c
                else:
                    stride = KH * KW
                    p_tap = p_w + tap + weight_c * (KT * KH * KW)
                for load in tl.static_range(LOADS):
                    t = base_t + FIRST + load
                    o_t = _frame(i_b, t.to(tl.int64), from_positions, read, from_t, CHANNELS_LAST)
                    m_t = m_x & _inside(t, from_t, BLOCK_P)
                    b_x = tl.load(p_x + o_t + o_x, mask=m_t, other=0.0).to(tl.float32)
                    for a in tl.static_range(FRAMES):
                        b_y = _add_tap(
                            b_y, b_x, p_tap, m_c, c, k_t, stride,
                            a, FIRST + load - a * IN_T, DIL_T, TAPS_T, OUT_T, KT,
                        )  # fmt: skip
    h, w = ii_h * OUT_H + r_h, ii_w * OUT_W + r_w
    m_y = ((h < to_h) & (w < to_w))[:, None] & m_c[None, :]
    o_y = _offsets(h, w, c, to_w, to_h * to_w, channels, to_t, CHANNELS_LAST)
    b_bias = tl.zeros([BLOCK_C], tl.float32)
    if p_bias is not None:
        b_bias = tl.load(p_bias + c, mask=m_c, other=0.0).to(tl.float32)
    for a in tl.static_range(FRAMES):
        t = (i_t * FRAMES + a) * OUT_T + r_t
        o_t = _frame(i_b, t.to(tl.int64), to_h * to_w, channels, to_t, CHANNELS_LAST)
        b_out = (b_y[a] + b_bias[None, :]).to(p_y.dtype.element_ty)
        tl.store(p_y + o_t + o_y, b_out, mask=m_y & _inside(t, to_t, BLOCK_P))


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
    b_sums = _zeros(KT * GROUP_H * GROUP_W, BLOCK_P, BLOCK_C)
    b_bias = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for step in range(steps):
        i = i_s * steps + step
        p = (i % tiles_p).to(tl.int32) * BLOCK_P + tl.arange(0, BLOCK_P)
        first = (i // tiles_p % tiles_t).to(tl.int32) * FRAMES
        i_b = i // tiles_p // tiles_t
        h, w = p // to_w, p % to_w
        m_p = (h < to_h) & (i + tl.zeros([BLOCK_P], tl.int64) < every)
        o_g = _offsets(h, w, c, to_w, to_h * to_w, channels, to_t, CHANNELS_LAST)
        b_g = _zeros(FRAMES, BLOCK_P, BLOCK_C)
        for a in tl.static_range(FRAMES):
            t = first + a
            o_t = _frame(i_b, t.to(tl.int64), to_h * to_w, channels, to_t, CHANNELS_LAST)
            m_g = m_p[:, None] & m_c[None, :] & _inside(t, to_t, BLOCK_P)
            b_one = tl.load(p_g + o_t + o_g, mask=m_g, other=0.0).to(tl.float32)
            b_bias += b_one
            b_g = _put(b_g, a, b_one)
        for g_h in tl.static_range(GROUP_H):
            x_h = h * IN_H + (off_h + (k_h + g_h) * DIL_H)
            for g_w in tl.static_range(GROUP_W):
                x_w = w * IN_W + (off_w + (k_w + g_w) * DIL_W)
                m_x = m_p & (x_h >= 0) & (x_h < from_h) & (x_w >= 0) & (x_w < from_w)
                o_x = _offsets(
                    x_h, x_w, c // SHARE, from_w, from_h * from_w, channels // SHARE, from_t,
                    CHANNELS_LAST,
                )  # fmt: skip
                for load in tl.static_range(LOADS):
                    t = first * IN_T + off_t + load
                    o_t = _frame(
                        i_b, t.to(tl.int64), from_h * from_w, channels // SHARE, from_t,
                        CHANNELS_LAST,
                    )  # fmt: skip
                    m_t = m_x[:, None] & m_c[None, :] & _inside(t, from_t, BLOCK_P)
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


# What a tile costs beside its frames' loads and stores, counted in those.
TILE_COST = 4


def _blocks(
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


def _gather_launch(of: Geometry, transposed: bool) -> tuple[bool, Launch]:
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
    block_t, block_p, block_c = _blocks(tile, channels, frames, positions, into[0], reach)
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
        UNROLL=tile["unroll"],
    )  # fmt: skip


@tiles.planned
def _forward_plan(
    shape: tuple[int, ...], weight: tuple[int, ...], stride: Triple, padding: tuple[int, ...],
    dilation: Triple, last: bool, dtype: torch.dtype, device: torch.device,
) -> tuple[tuple[int, ...], bool, Launch]:  # fmt: skip
    """Shape of the output, and what `_gather_launch` tells."""
    batch, channels, *size = output_size(shape, weight, stride, padding, dilation)
    of = Geometry(
        batch, channels, channels // shape[1], tuple(shape[2:]), tuple(size), tuple(weight[2:]),
        stride, padding[::2], dilation, last, dtype, device,
    )  # fmt: skip
    return (batch, channels, *size), *_gather_launch(of, False)


@tiles.planned
def _transpose_plan(
    shape: tuple[int, ...], weight: tuple[int, ...], output: tuple[int, ...], stride: Triple,
    padding: tuple[int, ...], dilation: Triple, last: bool, dtype: torch.dtype,
    device: torch.device,
) -> tuple[bool, Launch]:  # fmt: skip
    """What `_gather_launch` tells."""
    of = Geometry(
        shape[0], weight[0], weight[0] // shape[1], shape[2:], tuple(output[2:]),
        tuple(weight[2:]), stride, padding[::2], dilation, last, dtype, device,
    )  # fmt: skip
    return _gather_launch(of, True)


@tiles.planned
def _grad_weight_plan(
    shape: tuple[int, ...], output: tuple[int, ...], kernel: Triple, stride: Triple,
    padding: tuple[int, ...], dilation: Triple, last: bool, dtype: torch.dtype,
    device: torch.device,
) -> tuple[int, Launch, Launch | None]:  # fmt: skip
    """Splits, the launch, and that of the second stage."""
    batch, channels, *to_size = output
    kt, kh, kw = kernel
    tile = tiles.choose("depthwise_conv3d", "sums", dtype, device, last)
    group_w = min(kw, max(1, tile["sums"] // kt))
    group_h = min(kh, max(1, tile["sums"] // (kt * group_w)))
    groups_h, groups_w = ceil_div(kh, group_h), ceil_div(kw, group_w)
    positions = to_size[1] * to_size[2]
    reach = (kt - 1) * dilation[0]
    block_t, block_p, block_c = _blocks(tile, channels, to_size[0], positions, stride[0], reach)
    tiles_c, tiles_p = ceil_div(channels, block_c), ceil_div(positions, block_p)
    tiles_t = ceil_div(to_size[0], block_t)
    every = batch * tiles_t * tiles_p
    wanted = ceil_div(tile["programs"], tiles_c * groups_h * groups_w)
    steps = max(1, min(tile["steps"], every // wanted))
    splits = max(1, ceil_div(every, steps))  # sums of nothing are zero, and must be written
    taps = math.prod(kernel) * channels
    align = tiles.alignment(channels)
    names = (f"{kind}_{axis}" for kind in ("IN", "DIL") for axis in "THW")
    sizes = dict(zip(("KT", "KH", "KW", *names), (*kernel, *stride, *dilation), strict=True))
    first = Launch(
        _sums, tiles_c * groups_h * groups_w * splits,
        channels // align, *shape[2:], *to_size, *(-p for p in padding[::2]),
        tiles_c, tiles_p, tiles_t, groups_w, splits, steps, every, taps + channels,
        warps=tile["warps"], ALIGN=align, CHANNELS_LAST=last, SHARE=channels // shape[1], **sizes,
        GROUP_H=group_h, GROUP_W=group_w, FRAMES=block_t, BLOCK_P=block_p, BLOCK_C=block_c,
    )  # fmt: skip
    return splits, first, sum_launch(splits, taps, channels) if splits > 1 else None


def _laid(weight: Tensor, by_taps: bool) -> Tensor:
    """The weight as the kernel reads it: by taps, those of neighbouring channels are neighbours."""
    return weight.flatten(1).t().contiguous() if by_taps else weight.contiguous()


def depthwise_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Triple,
    padding: tuple[int, ...],
    dilation: Triple,
) -> Tensor:
    """Launches the forward kernel."""
    last = is_channels_last(input)
    shape, by_taps, launch = _forward_plan(
        input.shape, weight.shape, tuple(stride), tuple(padding), tuple(dilation), last,
        input.dtype, input.device,
    )  # fmt: skip
    output = empty_in_layout(input, shape, last)
    bias = None if bias is None else bias.contiguous()
    launch(dense(input, last), _laid(weight, by_taps), bias, output)
    return output


def depthwise_conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output_size: list[int],
    stride: Triple,
    padding: tuple[int, ...],
    dilation: Triple,
) -> Tensor:
    """Launches the same kernel the other way."""
    last = is_channels_last(input)
    shape = tuple(output_size)
    by_taps, launch = _transpose_plan(
        shape, weight.shape, input.shape, tuple(stride), tuple(padding), tuple(dilation), last,
        input.dtype, input.device,
    )  # fmt: skip
    output = empty_in_layout(input, shape, last)
    bias = None if bias is None else bias.contiguous()
    launch(dense(input, last), _laid(weight, by_taps), bias, output)
    return output


def depthwise_conv3d_grad_weight(
    grad_output: Tensor,
    input: Tensor,
    kernel_size: list[int],
    stride: Triple,
    padding: tuple[int, ...],
    dilation: Triple,
) -> tuple[Tensor, Tensor]:
    """Launches the kernel of the sums, and the sum of its parts where there are several."""
    last = is_channels_last(input)
    channels = grad_output.shape[1]
    splits, first, second = _grad_weight_plan(
        input.shape, grad_output.shape, tuple(kernel_size), tuple(stride), tuple(padding),
        tuple(dilation), last, input.dtype, input.device,
    )  # fmt: skip
    grad_weight = input.new_empty((channels, 1, *kernel_size))
    grad_bias = input.new_empty((channels,))
    part_weight, part_bias = grad_weight, grad_bias
    if second is not None:
        parts = input.new_empty((splits, grad_weight.numel() + channels), dtype=torch.float32)
        part_weight, part_bias = parts[:, : grad_weight.numel()], parts[:, grad_weight.numel() :]
    first(dense(grad_output, last), dense(input, last), part_weight, part_bias)
    if second is not None:
        second(parts, grad_weight, grad_bias)
    return grad_weight, grad_bias
