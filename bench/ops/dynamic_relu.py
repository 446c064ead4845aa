"""`dynamic_relu` against two multiplications and a maximum."""

import math

import torch
from torch import Tensor

import vmf_kernels
from bench import cases, onnx_peer
from bench.cases import ReluCase
from bench.onnx_peer import Graph
from bench.op import FORWARD, OpBench, Peer, Traffic, evenly, inductor


def _inputs(case: ReluCase) -> list[Tensor]:
    slopes = (case.batch, case.channels)
    return [
        torch.randn(case.batch, case.channels, *case.size),
        1 + 0.5 * torch.randn(slopes),
        0.5 * torch.randn(slopes),
    ]


def _eager(case: ReluCase, features: Tensor, a1: Tensor, a2: Tensor) -> Tensor:
    a1, a2 = a1[:, :, None, None, None], a2[:, :, None, None, None]
    return torch.maximum(a1 * features, a2 * features)


def _traffic(case: ReluCase, mode: str, itemsize: int) -> Traffic:
    x = case.batch * case.channels * math.prod(case.size)
    slopes = case.batch * case.channels
    if mode == FORWARD:
        return Traffic((2 * x + 2 * slopes) * itemsize, 3 * x)
    # Forward reads x and writes y; backward reads x and the gradient g of y and writes that of x.
    # It needs both branches and which is larger (3), g times a slope, and the sum of g x (2).
    return Traffic((5 * x + 6 * slopes) * itemsize, 9 * x)


def _onnx(graph: Graph, case: ReluCase) -> str:
    slopes = (graph.reshape(a, case.batch, case.channels, 1, 1, 1) for a in ("a1", "a2"))
    return graph.op("Max", *(graph.op("Mul", a, "x") for a in slopes))


EAGER = Peer("eager", _eager)

BENCH = OpBench(
    name="dynamic_relu",
    function=vmf_kernels.dynamic_relu,
    cases=cases.dynamic_relu,
    quick=lambda all_cases: evenly(all_cases, 4),
    inputs=_inputs,
    features=0,
    arguments=lambda case, features, a1, a2: (features, a1, a2),
    peers=(EAGER, onnx_peer.peer(_onnx, ("x", "a1", "a2")), inductor(EAGER)),
    traffic=_traffic,
)
