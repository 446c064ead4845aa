"""onnxruntime as a peer: what who deploys on a CPU would run instead. Inference only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from bench import isa
from bench.cases import Case
from bench.op import CONTIGUOUS, FORWARD, Peer

OPSET = 17


@dataclass(frozen=True)
class Node:
    """One operator of the graph."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]


class Graph:
    """An ONNX graph under construction; every method returns the name of a value.

    Args:
        inputs: tensors by name, of the shapes that the graph is made for.
    """

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        self.inputs = inputs
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The only output of a new node."""
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(Node(kind, inputs, name, attributes))
        return name

    def reshape(self, value: str, *shape: int) -> str:
        return self.op("Reshape", value, self.constant(torch.tensor(shape)))

    def transpose(self, value: str, *order: int) -> str:
        return self.op("Transpose", value, perm=order)

    def constant(self, value: Tensor, name: str | None = None) -> str:
        name = name or f"constant_{len(self.constants)}"
        self.constants[name] = value
        return name

    def model(self, output: str, fed: Sequence[str]) -> bytes:
        """The serialised model that computes `output` from the inputs named in `fed`."""
        from onnx import TensorProto, helper, numpy_helper

        def described(name: str, shape: Sequence[int] | None) -> Any:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        graph = helper.make_graph(
            [helper.make_node(n.kind, n.inputs, [n.output], **n.attributes) for n in self.nodes],
            "case",
            [described(name, self.inputs[name].shape) for name in fed],
            [described(output, None)],
            [numpy_helper.from_array(t.numpy(), name) for name, t in self.constants.items()],
        )
        opset = helper.make_opsetid("", OPSET)
        # The version of the file format that belongs to the opset: older runtimes read it too.
        return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


def peer(
    build: Callable[[Graph, Any], str], inputs: Sequence[str], constants: Sequence[str] = ()
) -> Peer:
    """The op as an ONNX graph in onnxruntime, on as many threads as torch uses.

    Args:
        build: `build(graph, case)` adds the nodes and returns the output's name.
        inputs: names of the op's tensors, in order.
        constants: those that are known when a network is deployed (weights).
    """

    def prepare(run: Callable[..., Tensor], case: Case) -> Callable[..., Tensor]:
        sessions: list[Any] = []
        fed = [name for name in inputs if name not in constants]

        def call(case: Case, *tensors: Tensor) -> Tensor:
            given = dict(zip(inputs, tensors, strict=True))
            if not sessions:
                graph = Graph(given)
                for name in constants:
                    graph.constant(given[name], name)
                sessions.append(session(graph, build(graph, case), fed))
            (output,) = sessions[0].run(None, {name: given[name].numpy() for name in fed})
            return torch.from_numpy(output)

        return call

    def unprepared(case: Case, *tensors: Tensor) -> Tensor:
        raise NotImplementedError("onnxruntime needs a session")

    return Peer(
        "onnxruntime",
        unprepared,
        dtypes=(torch.float32,),
        modes=(FORWARD,),
        layouts=(CONTIGUOUS,),
        devices=("cpu",),
        prepare=prepare,
        missing=missing,
    )


def missing() -> str | None:
    """Why onnxruntime cannot run here, None if it can."""
    absent = [name for name in ("onnxruntime", "onnx") if find_spec(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (the extra `bench` has them)"
    if limit := isa.limit():
        return f"it cannot be limited to {limit}"
    return None


def session(graph: Graph, output: str, fed: Sequence[str]) -> Any:
    """What runs the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Between calls its threads would otherwise spin and slow whoever is timed next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        graph.model(output, fed), options, providers=["CPUExecutionProvider"]
    )
