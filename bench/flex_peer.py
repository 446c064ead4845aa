"""FlexAttention as a peer: PyTorch's compiled attention. On a CPU it has a forward only."""

from collections.abc import Callable

from torch import Tensor

from bench.cases import Case
from bench.op import FORWARD, Peer, compiled

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def flex_peer(through: Callable[[Attention], Callable[..., Tensor]]) -> Peer:
    """The op through FlexAttention.

    Only the attention is compiled: views in the same graph make Inductor fail on a CPU
    (torch 2.13: "not enough values to unpack").

    Args:
        through: `through(attention)` is the op by an attention on (B, heads, length, d).
    """

    def prepare(run: Callable[..., Tensor], case: Case) -> Callable[..., Tensor]:
        from torch.nn.attention.flex_attention import flex_attention  # imports the compiler

        return through(compiled(flex_attention, case))

    def unprepared(case: Case, *tensors: Tensor) -> Tensor:
        raise NotImplementedError("FlexAttention is compiled for each case")

    return Peer("FlexAttention", unprepared, optional=True, modes=(FORWARD,), prepare=prepare)
