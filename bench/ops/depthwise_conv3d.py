"""`depthwise_conv3d` against PyTorch's convolution."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

import vmf_kernels
from bench import cases, onnx_peer
from bench.cases import DepthwiseCase
from bench.comparison import OURS_IN_CUDA
from bench.onnx_peer import Graph
from bench.op import FORWARD, OpBench, Peer, Traffic, inductor
from vmf_kernels import _cuda


def _inputs(case: DepthwiseCase) -> list[Tensor]:
    return [
        torch.randn(case.batch, case.in_channels, *case.size),
        torch.randn(case.out_channels, 1, *case.kernel),
    ]


def _eager(case: DepthwiseCase, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv3d(x, weight, None, case.stride, case.padding, groups=case.in_channels)


def _eager_float32(case: DepthwiseCase, x: Tensor, weight: Tensor) -> Tensor:
    return _eager(case, x.float(), weight.float()).to(x.dtype)


def _conv2d_sum(case: DepthwiseCase, x: Tensor, weight: Tensor) -> Tensor:
    """The workaround people use: a conv2d per frame of the kernel, added up."""
    (pt, ph, pw), (st, sh, sw) = case.padding, case.stride
    frames = F.pad(x, (0, 0, 0, 0, pt, pt)).transpose(1, 2)  # (N, T + 2 pt, C, H, W)
    out_t = case.output_size[0]
    total = None
    for k in range(case.kernel[0]):
        taken = frames[:, k : k + st * (out_t - 1) + 1 : st].flatten(0, 1)
        part = F.conv2d(taken, weight[:, :, k], None, (sh, sw), (ph, pw), groups=case.in_channels)
        total = part if total is None else total + part
    assert total is not None
    return total.unflatten(0, (case.batch, out_t)).transpose(1, 2)


def _cuda_kernels(case: DepthwiseCase, x: Tensor, weight: Tensor) -> Tensor:
    with vmf_kernels.use_backend("cuda"):
        return vmf_kernels.depthwise_conv3d(x, weight, None, case.stride, case.padding)


def pairs(size: int, kernel: int, stride: int, padding: int) -> int:
    """Pairs of an output and a tap that fall on a real input, along one axis."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    return sum(0 <= o * stride - padding + k < size for o in range(outputs) for k in range(kernel))


def _traffic(case: DepthwiseCase, mode: str, itemsize: int) -> Traffic:
    x = case.batch * case.in_channels * math.prod(case.size)
    y = case.batch * case.out_channels * math.prod(case.output_size)
    weight = case.out_channels * math.prod(case.kernel)
    axes = zip(case.size, case.kernel, case.stride, case.padding, strict=True)
    forward = 2 * case.batch * case.out_channels * math.prod(pairs(*axis) for axis in axes)
    if mode == FORWARD:
        return Traffic((x + y + weight) * itemsize, forward)
    # Forward reads x and writes y; backward reads x and the gradient of y, writes that of x.
    return Traffic((3 * x + 2 * y + 3 * weight) * itemsize, 3 * forward)


def _quick(all_cases: Sequence[DepthwiseCase]) -> Sequence[DepthwiseCase]:
    """Every 3x3x3 case, and the first of each other kernel."""
    chosen, seen = [], set()
    for case in all_cases:
        if case.kernel == (3, 3, 3) or case.kernel not in seen:
            chosen.append(case)
            seen.add(case.kernel)
    return chosen


def _groups(case: DepthwiseCase) -> tuple[str, ...]:
    sides = "a side of 5 or more" if max(case.kernel) >= 5 else "1 or 3 a side"
    groups = ["3x3x3" if case.kernel == (3, 3, 3) else sides]
    if max(case.stride) > 1:
        groups.append("strided")
    if case.multiplier > 1:
        groups.append("multiplier above 1")
    return tuple(groups)


def _onnx(graph: Graph, case: DepthwiseCase) -> str:
    padding = [*case.padding, *case.padding]
    return graph.op(
        "Conv", "x", "weight", group=case.in_channels, strides=case.stride, pads=padding
    )


EAGER = Peer("eager", _eager)

BENCH = OpBench(
    name="depthwise_conv3d",
    function=vmf_kernels.depthwise_conv3d,
    cases=cases.depthwise_conv3d,
    quick=_quick,
    inputs=_inputs,
    features=0,
    arguments=lambda case, x, weight: (x, weight, None, case.stride, case.padding),
    peers=(
        EAGER,
        Peer("eager via float32", _eager_float32, dtypes=(torch.bfloat16, torch.float16)),
        onnx_peer.peer(_onnx, ("x", "weight"), constants=("weight",)),
        Peer("sum of conv2d", _conv2d_sum, optional=True),
        inductor(EAGER),
        Peer(
            OURS_IN_CUDA,
            _cuda_kernels,
            dtypes=(torch.float32, torch.bfloat16, torch.float16),
            devices=("cuda",),
            missing=_cuda.missing,
        ),
    ),
    traffic=_traffic,
    groups=_groups,
)
