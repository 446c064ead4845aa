"""`few_query_attention` against the matrix form and scaled_dot_product_attention."""

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
    return [
        torch.randn(case.batch, case.tokens, case.channels),
        torch.randn(case.batch, case.channels, *case.size),
    ]


def _matmul(case: AttentionCase, query: Tensor, features: Tensor) -> Tensor:
    q = query.unflatten(2, (case.heads, -1)).transpose(1, 2)
    x = features.flatten(2).unflatten(1, (case.heads, -1))  # (B, heads, d, n)
    scores = q @ x * (case.channels / case.heads) ** -0.5
    return (torch.softmax(scores, -1) @ x.mT).transpose(1, 2).flatten(2)


def _through(attention: Attention) -> Callable[..., Tensor]:
    """The op by an attention on (B, heads, length, d)."""

    def run(case: AttentionCase, query: Tensor, features: Tensor) -> Tensor:
        q = query.unflatten(2, (case.heads, -1)).transpose(1, 2)
        # A view where the features are channels_last_3d.
        x = features.movedim(1, -1).flatten(1, 3).unflatten(2, (case.heads, -1)).transpose(1, 2)
        return attention(q, x, x).transpose(1, 2).flatten(2)

    return run


def _onnx(graph: Graph, case: AttentionCase) -> str:
    depth = case.channels // case.heads
    q = graph.reshape("query", case.batch, case.tokens, case.heads, depth)
    x = graph.reshape("features", case.batch, case.heads, depth, case.positions)
    scores = graph.op("MatMul", graph.transpose(q, 0, 2, 1, 3), x)
    scale = graph.constant(torch.tensor(depth**-0.5))
    weights = graph.op("Softmax", graph.op("Mul", scores, scale), axis=-1)
    output = graph.op("MatMul", weights, graph.transpose(x, 0, 1, 3, 2))
    output = graph.transpose(output, 0, 2, 1, 3)
    return graph.reshape(output, case.batch, case.tokens, case.channels)


def _traffic(case: AttentionCase, mode: str, itemsize: int) -> Traffic:
    x = case.batch * case.channels * case.positions
    tokens = case.batch * case.tokens * case.channels
    products = 2 * case.batch * case.tokens * case.channels * case.positions  # q x^T, say
    if mode == FORWARD:
        return Traffic((x + 2 * tokens) * itemsize, 2 * products)
    # Forward reads x; backward reads it again and writes its gradient. Of the five products of
    # the backward pass one recomputes the scores.
    return Traffic((3 * x + 6 * tokens) * itemsize, 7 * products)


MATMUL = Peer("matmul form", _matmul)

BENCH = OpBench(
    name="few_query_attention",
    function=vmf_kernels.few_query_attention,
    cases=cases.few_query_attention,
    quick=lambda all_cases: evenly(all_cases, 4),
    inputs=_inputs,
    features=1,
    arguments=lambda case, query, features: (query, features, case.heads),
    peers=(
        MATMUL,
        Peer("SDPA", _through(F.scaled_dot_product_attention)),
        onnx_peer.peer(_onnx, ("query", "features")),
        flex_peer(_through),
        inductor(MATMUL),
    ),
    traffic=_traffic,
)
