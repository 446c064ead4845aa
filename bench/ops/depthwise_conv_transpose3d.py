"""`depthwise_conv_transpose3d` against PyTorch's transposed convolution."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import vmf_kernels
from bench import cases, onnx_peer
from bench.cases import TransposeCase
from bench.onnx_peer import Graph
from bench.op import FORWARD, OpBench, Peer, Traffic, evenly, inductor
from bench.ops.depthwise_conv3d import pairs


def _inputs(case: TransposeCase) -> list[Tensor]:
    return [
        torch.randn(case.batch, case.in_channels, *case.size),
        torch.randn(case.in_channels, case.multiplier, *case.kernel),
        torch.randn(case.out_channels),
    ]


def _eager(case: TransposeCase, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv_transpose3d(x, weight, bias, case.stride, case.padding, groups=case.in_channels)


def _eager_float32(case: TransposeCase, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return _eager(case, x.float(), weight.float(), bias.float()).to(x.dtype)


def _traffic(case: TransposeCase, mode: str, itemsize: int) -> Traffic:
    x = case.batch * case.in_channels * math.prod(case.size)
    y = case.batch * case.out_channels * math.prod(case.output_size)
    weight, bias = case.out_channels * math.prod(case.kernel), case.out_channels
    # The convolution whose input gradient this is goes from y to x.
    axes = zip(case.output_size, case.kernel, case.stride, case.padding, strict=True)
    forward = 2 * case.batch * case.out_channels * math.prod(pairs(*axis) for axis in axes)
    if mode == FORWARD:
        return Traffic((x + y + weight + bias) * itemsize, forward)
    # Forward reads x and writes y; backward reads x and the gradient of y, writes that of x.
    return Traffic((3 * x + 2 * y + 3 * weight + 2 * bias) * itemsize, 3 * forward)


def _onnx(graph: Graph, case: TransposeCase) -> str:
    padding = [*case.padding, *case.padding]
    settings = {"group": case.in_channels, "strides": case.stride, "pads": padding}
    return graph.op("ConvTranspose", "x", "weight", "bias", **settings)


EAGER = Peer("eager", _eager)

BENCH = OpBench(
    name="depthwise_conv_transpose3d",
    function=vmf_kernels.depthwise_conv_transpose3d,
    cases=cases.depthwise_conv_transpose3d,
    quick=lambda all_cases: evenly(all_cases, 4),
    inputs=_inputs,
    features=0,
    arguments=lambda case, x, weight, bias: (x, weight, bias, case.stride, case.padding),
    peers=(
        EAGER,
        Peer("eager via float32", _eager_float32, dtypes=(torch.bfloat16, torch.float16)),
        onnx_peer.peer(_onnx, ("x", "weight", "bias"), constants=("weight", "bias")),
        inductor(EAGER),
    ),
    traffic=_traffic,
)
