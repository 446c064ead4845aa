"""`few_key_attention` (with its residual) against the matrix form and SDPA."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import vmf_kernels
from bench import cases, onnx_peer
from bench.cases import AttentionCase
from bench.flex_peer import Attention, flex_peer
from bench.onnx_peer import Graph
from bench.op import FORWARD, OpBench, Peer, Traffic, evenly, inductor


def _inputs(case: AttentionCase) -> list[Tensor]:
    tokens = (case.batch, case.tokens, case.channels)
    return [
        torch.randn(case.batch, case.channels, *case.size),
        torch.randn(tokens),
        torch.randn(tokens),
    ]


def _matmul(case: AttentionCase, features: Tensor, key: Tensor, value: Tensor) -> Tensor:
    x = features.flatten(2).unflatten(1, (case.heads, -1))  # (B, heads, d, n)
    k = key.unflatten(2, (case.heads, -1)).transpose(1, 2)  # (B, heads, M, d)
    v = value.unflatten(2, (case.heads, -1)).transpose(1, 2)
    scores = k @ x * (case.channels / case.heads) ** -0.5
    attention = v.mT @ torch.softmax(scores, -2)
    return features + attention.flatten(1, 2).view(features.shape)


def _through(attention: Attention) -> Callable[..., Tensor]:
    """The op by an attention on (B, heads, length, d)."""

    def run(case: AttentionCase, features: Tensor, key: Tensor, value: Tensor) -> Tensor:
        positions = features.movedim(1, -1)  # a view where the features are channels_last_3d
        x = positions.flatten(1, 3).unflatten(2, (case.heads, -1)).transpose(1, 2)
        k = key.unflatten(2, (case.heads, -1)).transpose(1, 2)
        v = value.unflatten(2, (case.heads, -1)).transpose(1, 2)
        output = attention(x, k, v).transpose(1, 2)
        return features + output.reshape(positions.shape).movedim(-1, 1)

    return run


def _onnx(graph: Graph, case: AttentionCase) -> str:
    depth = case.channels // case.heads
    x = graph.reshape("features", case.batch, case.heads, depth, case.positions)
    tokens = (case.batch, case.tokens, case.heads, depth)
    k = graph.transpose(graph.reshape("key", *tokens), 0, 2, 1, 3)
    v = graph.transpose(graph.reshape("value", *tokens), 0, 2, 3, 1)
    scale = graph.constant(torch.tensor(depth**-0.5))
    scores = graph.op("Mul", graph.op("MatMul", k, x), scale)
    output = graph.op("MatMul", v, graph.op("Softmax", scores, axis=-2))
    shaped = graph.reshape(output, case.batch, case.channels, *case.size)
    return graph.op("Add", "features", shaped)


def _traffic(case: AttentionCase, mode: str, itemsize: int) -> Traffic:
    x = case.batch * case.channels * case.positions
    tokens = case.batch * case.tokens * case.channels
    products = 2 * case.batch * case.tokens * case.channels * case.positions  # x k^T, say
    if mode == FORWARD:
        return Traffic((2 * x + 2 * tokens) * itemsize, 2 * products)
    # Forward reads x and writes y; backward reads x and the gradient of y, writes that of x. Of
    # the five products of the backward pass one recomputes the scores.
    return Traffic((5 * x + 6 * tokens) * itemsize, 7 * products)


MATMUL = Peer("matmul form", _matmul)

BENCH = OpBench(
    name="few_key_attention",
    function=vmf_kernels.few_key_attention,
    cases=cases.few_key_attention,
    quick=lambda all_cases: evenly(all_cases, 4),
    inputs=_inputs,
    features=0,
    arguments=lambda case, features, key, value: (features, key, value, case.heads),
    peers=(
        MATMUL,
        Peer("SDPA", _through(F.scaled_dot_product_attention)),
        onnx_peer.peer(_onnx, ("features", "key", "value")),
        flex_peer(_through),
        inductor(MATMUL),
    ),
    traffic=_traffic,
)
