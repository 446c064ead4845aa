"""The calls of one case: every contender in every layout, checked before it is timed."""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.cases import Case
from bench.op import CHANNELS_LAST, FORWARD, LAYOUTS, RECORDED, TRAINING, OpBench, Peer
from vmf_kernels import explain, reference

# Relative error in the 2-norm of each output and gradient, against the reference on the same
# values in float32 (float64 for float64): a few roundings of the dtype. One wrong element in a
# million shows as 1e-3.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 2e-2,
}
# A peer is as exact as it is; only one that computes something else is no peer.
PEER_TOLERANCE = 0.1


class Call:
    """One contender in one layout: its function and its tensors.

    Args:
        run: `run(case, *inputs)`.
        case: the case.
        inputs: contiguous tensors, float32.
        features: which of them has a layout.
        layout: one of `LAYOUTS`.
        dtype: of the call.
        device: of the call.
    """

    def __init__(
        self,
        run: Callable[..., Tensor],
        case: Case,
        inputs: list[Tensor],
        features: int,
        layout: str,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        tensors = [t.to(device=device, dtype=dtype) for t in inputs]
        tensors[features] = tensors[features].contiguous(memory_format=LAYOUTS[layout])
        self.inputs = tensors
        self.leaves = [t.detach().requires_grad_() for t in tensors]
        self.run, self.case = run, case
        self.grad: Tensor | None = None

    def forward(self) -> Tensor:
        """As in inference: without gradients."""
        if not torch.is_grad_enabled():
            return self.run(self.case, *self.inputs)
        with torch.no_grad():
            return self.run(self.case, *self.inputs)

    def recorded(self) -> Tensor:
        """As in training, without the backward pass."""
        return self.run(self.case, *self.leaves)

    def training(self) -> tuple[Tensor, ...]:
        """Forward and backward to all inputs; the incoming gradient lies as the output does."""
        output = self.run(self.case, *self.leaves)
        if self.grad is None:
            self.grad = _gradient_like(output)
        return (output.detach(), *torch.autograd.grad(output, self.leaves, self.grad))

    def work(self, mode: str) -> Callable[[], Any]:
        return {FORWARD: self.forward, RECORDED: self.recorded, TRAINING: self.training}[mode]


def backend_of(bench: OpBench, case: Case, device: str, dtype: torch.dtype) -> str:
    """The backend that runs our op here."""
    with torch.device("meta"):
        shapes = bench.inputs(case)
    inputs = [torch.empty_like(t, device=device, dtype=dtype) for t in shapes]
    return explain(bench.function, *bench.arguments(case, *inputs))[0].backend


def truth(
    bench: OpBench, case: Case, inputs: list[Tensor], mode: str, dtype: torch.dtype, device: str
) -> list[Tensor]:
    """Output, and in training gradients, of the reference on the rounded inputs, widened."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rounded = [t.to(dtype).to(wide) for t in inputs]
    function = getattr(reference, bench.name)

    def run(case: Case, *inputs: Tensor) -> Tensor:
        return function(*bench.arguments(case, *inputs))

    call = Call(run, case, rounded, bench.features, CHANNELS_LAST, wide, device)
    with exact_float32():
        if mode != TRAINING:
            return [call.forward()]
        # The gradient that the contenders get is rounded to their dtype.
        call.grad = _gradient_like(call.forward()).to(dtype).to(wide)
        return list(call.training())


def exact_float32() -> AbstractContextManager[Any]:
    """float32 means float32: PyTorch lets cuDNN's convolutions round it to tf32 unless told."""
    return torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        benchmark=torch.backends.cudnn.benchmark,
        deterministic=torch.backends.cudnn.deterministic,
        allow_tf32=False,
    )


def fault(results: Any, expected: list[Tensor], tolerance: float) -> str | None:
    """What is wrong with a contender's output and gradients, in words."""
    results = [results] if isinstance(results, Tensor) else list(results)
    names = ["the output", *(f"the gradient of input {i}" for i in range(len(results) - 1))]
    for name, got, true in zip(names, results, expected, strict=False):
        if got.shape != true.shape:
            return f"{name} has shape {tuple(got.shape)}, not {tuple(true.shape)}"
        error = ((got.to(true.dtype) - true).norm() / true.norm().clamp_min(1e-30)).item()
        if not error <= tolerance:  # NaN too
            return f"{name} is off by {error:.1e} (2-norm, relative; at most {tolerance:.0e})"
    return None


def check_ours(
    call: Call, mode: str, expected: list[Tensor], dtype: torch.dtype, device: str
) -> str | None:
    """What is wrong with our numbers; on the CPU with every fresh output filled with NaN."""
    with _poisoned(device == "cpu"):
        return fault(call.work(mode)(), expected, TOLERANCE[dtype])


def why_not(
    peer: Peer, mode: str, layout: str, dtype: torch.dtype, device: str, all_peers: bool
) -> str | None:
    """Why a peer stays out, known before it is called."""
    if device not in peer.devices:
        return "only on " + ", ".join(peer.devices)
    if peer.dtypes and dtype not in peer.dtypes:
        return "only for " + ", ".join(str(d).removeprefix("torch.") for d in peer.dtypes)
    if (TRAINING if mode == RECORDED else mode) not in peer.modes:
        return f"it has no {mode}"
    if layout not in peer.layouts:
        return f"it knows no {layout}"
    if peer.optional and not all_peers:
        return "only with --peers all"
    return peer.missing()


def describe(error: BaseException) -> str:
    """One line for the table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120] if lines else 'no message'}"


def _gradient_like(output: Tensor) -> Tensor:
    """The same random values for every contender, in the output's own layout, dtype and place."""
    generator = torch.Generator(output.device).manual_seed(1)
    values = torch.randn(output.shape, generator=generator, device=output.device)
    return torch.empty_like(output).copy_(values)


@contextmanager
def _poisoned(enabled: bool) -> Any:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(enabled or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
