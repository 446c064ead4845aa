"""What the benchmark of one op consists of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case

CONTIGUOUS, CHANNELS_LAST = "contiguous", "channels_last_3d"
LAYOUTS = {CONTIGUOUS: torch.contiguous_format, CHANNELS_LAST: torch.channels_last_3d}
FORWARD, TRAINING = "forward", "forward+backward"
MODES = (FORWARD, TRAINING)
# A forward whose graph is recorded: part of a training step, timed alone for its overhead.
RECORDED = "forward, recorded"


@dataclass(frozen=True)
class Traffic:
    """What a call cannot avoid, however it is computed.

    Attributes:
        bytes: every input read once and every output written once; in training the features are
            read again, the incoming gradient is read and the gradients are written.
        flops: floating-point operations; a multiply-add is two. What falls on padding is left out.
    """

    bytes: int
    flops: int


@dataclass(frozen=True)
class Peer:
    """Another way to compute the same op.

    Attributes:
        name: in the tables.
        run: `run(case, *inputs)` gives the op's output.
        optional: only with `--peers all`.
        dtypes: where it makes sense; everywhere if empty.
        modes: where it can be used.
        layouts: those that it knows.
        devices: where it runs.
        prepare: `prepare(run, case)` makes a fresh `run`, where the peer needs one (a compiler).
        missing: why it cannot run here, else None.
    """

    name: str
    run: Callable[..., Tensor]
    optional: bool = False
    dtypes: tuple[torch.dtype, ...] = ()
    modes: tuple[str, ...] = MODES
    layouts: tuple[str, ...] = tuple(LAYOUTS)
    devices: tuple[str, ...] = ("cpu", "cuda")
    prepare: Callable[[Callable[..., Tensor], Any], Callable[..., Tensor]] | None = None
    missing: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class OpBench:
    """One op's cases, contenders and traffic model.

    Attributes:
        name: the op's one name.
        function: the public function.
        cases: all of them.
        quick: picks those of `--quick`.
        inputs: `inputs(case)` gives the op's tensors in float32, contiguous, on the device in
            force. Those of five dimensions named in `features` are put into each layout.
        features: positions in `inputs` of the tensors that have a layout.
        arguments: `arguments(case, *inputs)` gives the arguments of `function`.
        peers: the others.
        traffic: `traffic(case, mode, itemsize)`.
        groups: names the kinds of cases that get a geometric mean of their own; a case may be
            of several.
    """

    name: str
    function: Callable[..., Tensor]
    cases: Callable[[], Sequence[Case]]
    quick: Callable[[Sequence[Any]], Sequence[Any]]
    inputs: Callable[[Any], list[Tensor]]
    features: int
    arguments: Callable[..., tuple[Any, ...]]
    peers: tuple[Peer, ...]
    traffic: Callable[[Any, str, int], Traffic]
    groups: Callable[[Any], tuple[str, ...]] = lambda case: ()

    def ours(self, case: Case, *inputs: Tensor) -> Tensor:
        """The op itself, through the backend in force."""
        return self.function(*self.arguments(case, *inputs))


def compiled(run: Callable[..., Tensor], case: Case) -> Callable[..., Tensor]:
    """`run` through Inductor, for the shapes of this one case."""
    return torch.compile(run, fullgraph=True, dynamic=False)


def inductor(eager: Peer) -> Peer:
    """`eager` compiled: Inductor calls oneDNN or cuDNN for convolutions, and fuses the rest."""
    return Peer("inductor", eager.run, optional=True, prepare=compiled)


def evenly(cases: Sequence[Any], number: int) -> Sequence[Any]:
    """A sample from first to last."""
    if len(cases) <= number:
        return cases
    return [cases[i * (len(cases) - 1) // max(1, number - 1)] for i in range(number)]
