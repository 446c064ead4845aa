"""The peers that need something of their own: onnxruntime's graphs, FlexAttention."""

import math

import pytest
import torch
import torch.nn.functional as F

from bench import onnx_peer
from bench.cases import AttentionCase, Case, DepthwiseCase, ReluCase, TransposeCase
from bench.contenders import Call, fault, truth, why_not
from bench.op import CHANNELS_LAST, CONTIGUOUS, FORWARD, RECORDED, TRAINING, Peer
from bench.ops import BENCHES

CASES: dict[str, Case] = {
    "depthwise_conv3d": DepthwiseCase(
        "net", 2, 1, 3, 2, (4, 5, 6), (3, 3, 5), (1, 2, 2), (1, 1, 2)
    ),
    "depthwise_conv_transpose3d": TransposeCase(
        "net", 2, 1, 3, 2, (3, 2, 4), (3, 3, 5), (1, 2, 2), (1, 1, 2)
    ),
    "few_query_attention": AttentionCase("net", 2, 1, 6, (2, 3, 3), 4, 2),
    "few_key_attention": AttentionCase("net", 2, 1, 6, (2, 3, 3), 4, 2),
    "dynamic_relu": ReluCase("net", 2, 1, 3, (2, 3, 3)),
}


def peer(op: str, name: str) -> Peer:
    return next(p for p in BENCHES[op].peers if p.name == name)


class Interpreter:
    """Runs a graph in PyTorch, node by node, by the definition of the ONNX operators."""

    def __init__(self, graph: onnx_peer.Graph, output: str, fed: list[str]) -> None:
        self.graph, self.output, self.fed = graph, output, fed

    def run(self, outputs, feeds):
        assert outputs is None and sorted(feeds) == sorted(self.fed)
        values = {name: torch.from_numpy(array) for name, array in feeds.items()}
        values |= self.graph.constants
        for node in self.graph.nodes:
            run = getattr(self, node.kind)
            values[node.output] = run(*(values[i] for i in node.inputs), **node.attributes)
        return [values[self.output].numpy()]

    def Conv(self, x, weight, group, strides, pads):
        assert pads[:3] == pads[3:]
        return F.conv3d(x, weight, None, strides, pads[:3], groups=group)

    def ConvTranspose(self, x, weight, bias, group, strides, pads):
        assert pads[:3] == pads[3:]
        return F.conv_transpose3d(x, weight, bias, strides, pads[:3], groups=group)

    def Reshape(self, x, shape):
        return x.reshape(shape.tolist())

    def Transpose(self, x, perm):
        return x.permute(perm)

    def Softmax(self, x, axis):
        return x.softmax(axis)

    MatMul, Mul, Max, Add = map(staticmethod, (torch.matmul, torch.mul, torch.maximum, torch.add))


@pytest.mark.parametrize("op", BENCHES)
def test_onnx_graphs_compute_the_op(op: str, monkeypatch):
    monkeypatch.setattr(onnx_peer, "session", Interpreter)
    bench, case = BENCHES[op], CASES[op]
    inputs = bench.inputs(case)
    onnx = peer(op, "onnxruntime")
    run = onnx.prepare(onnx.run, case)
    call = Call(run, case, inputs, bench.features, CONTIGUOUS, torch.float32, "cpu")
    expected = truth(bench, case, inputs, FORWARD, torch.float32, "cpu")
    assert fault(call.forward(), expected, 1e-6) is None
    assert fault(call.forward(), expected, 1e-6) is None  # the second call has the session


def test_a_convolution_deployed_has_its_weight_in_the_graph(monkeypatch):
    graphs = []
    monkeypatch.setattr(
        onnx_peer, "session", lambda graph, *rest: graphs.append(graph) or Interpreter(graph, *rest)
    )
    bench, case = BENCHES["depthwise_conv3d"], CASES["depthwise_conv3d"]
    onnx = peer(bench.name, "onnxruntime")
    x, weight = bench.inputs(case)
    onnx.prepare(onnx.run, case)(case, x, weight)
    assert torch.equal(graphs[0].constants["weight"], weight)


def test_onnxruntime_stays_out_with_a_reason(monkeypatch):
    onnx = peer("depthwise_conv3d", "onnxruntime")

    def reason(mode=FORWARD, layout=CONTIGUOUS, dtype=torch.float32, device="cpu"):
        return why_not(onnx, mode, layout, dtype, device, all_peers=False)

    monkeypatch.setattr(onnx_peer, "find_spec", lambda name: None if name == "onnx" else object())
    assert reason() == "not installed: onnx (the extra `bench` has them)"
    monkeypatch.setattr(onnx_peer, "find_spec", lambda name: object())
    assert reason() is None
    assert reason(mode=TRAINING) == "it has no forward+backward"
    assert reason(mode=RECORDED) == "it has no forward, recorded"
    assert reason(layout=CHANNELS_LAST) == "it knows no channels_last_3d"
    assert reason(dtype=torch.float16) == "only for float32"
    assert reason(device="cuda") == "only on cpu"
    monkeypatch.setenv("VMF_BENCH_ISA", "avx2")
    assert reason() == "it cannot be limited to avx2"


@pytest.mark.parametrize("op", ["few_query_attention", "few_key_attention"])
@pytest.mark.parametrize("layout", [CONTIGUOUS, CHANNELS_LAST])
def test_flex_attention_computes_the_op_where_only_attention_is_compiled(
    op: str, layout: str, monkeypatch
):
    compiled = []

    def stand_in(run, **_):
        compiled.append(run)
        # Compiling takes too long for a test; this is its definition.
        return lambda q, k, v: (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v

    monkeypatch.setattr(torch, "compile", stand_in)
    bench, case = BENCHES[op], CASES[op]
    inputs = bench.inputs(case)
    flex = peer(op, "FlexAttention")
    run = flex.prepare(flex.run, case)
    assert [f.__name__ for f in compiled] == ["flex_attention"]
    call = Call(run, case, inputs, bench.features, layout, torch.float32, "cpu")
    assert (
        fault(call.forward(), truth(bench, case, inputs, FORWARD, torch.float32, "cpu"), 1e-6)
        is None
    )
    assert (
        why_not(flex, TRAINING, layout, torch.float32, "cpu", True) == "it has no forward+backward"
    )
