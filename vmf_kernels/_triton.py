"""Where Triton kernels run, and the road to them. Triton itself is imported by the first launch."""

import importlib.util
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from vmf_kernels.backends import current_backend
from vmf_kernels.checks import without_autocast

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Triton's own switch: kernels run in Python, on CPU tensors. Slow; for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


_FOUND = importlib.util.find_spec("triton") is not None


def missing() -> str | None:
    """Why there is no Triton here, or None."""
    return None if _FOUND else "Triton is not installed (pip install triton)"


def interpreting() -> bool:
    """Whether CPU tensors go to the interpreter now: it must be on, and asked for by name."""
    return INTERPRETED and current_backend() == "triton"


def cannot_run(
    refuses: Callable[..., str | None] = lambda *prepared: None,
) -> Callable[..., Exception | None]:
    """The predicate of a Triton backend.

    Args:
        refuses: takes the prepared arguments; what the op's kernels do not cover, in words.
    """

    def predicate(tensor: Any, *rest: Any) -> Exception | None:
        on_cpu = tensor.device.type == "cpu"
        if on_cpu and not interpreting():
            return NotImplementedError(
                "it runs on CUDA devices, and on the CPU in Triton's interpreter alone "
                f"(TRITON_INTERPRET=1; got a tensor on {tensor.device})"
            )
        if not on_cpu and not tensor.is_cuda:
            return NotImplementedError(f"it runs on CUDA (got a tensor on {tensor.device})")
        if on_cpu and torch.compiler.is_compiling():
            return NotImplementedError("Triton's interpreter runs eager calls alone")
        if reason := missing():
            return RuntimeError(reason)
        if reason := wrong_dtype(tensor) or refuses(tensor, *rest):
            return NotImplementedError(reason)
        return None

    return predicate


def wrong_dtype(tensor: torch.Tensor) -> str | None:
    """Why a dtype is not covered, or None."""
    if tensor.dtype in DTYPES:
        return None
    return f"its dtypes are float32, bfloat16 and float16 (got {tensor.dtype})"


MOST_TOKENS, MOST_DEPTH = 64, 256


def attention_refuses(features: Any, tokens: Any, num_heads: int) -> str | None:
    """What the kernels of the attentions do not cover, in words."""
    if tokens.shape[1] > MOST_TOKENS:
        return f"it is for at most {MOST_TOKENS} tokens (got {tokens.shape[1]})"
    depth = features.shape[1] // num_heads
    if depth > MOST_DEPTH:
        return f"it is for at most {MOST_DEPTH} channels a head (got {depth})"
    if 0 in features.shape or 0 in tokens.shape:
        return "it is for tensors with elements"
    return None


class Launcher:
    """An operator's launcher of GPU kernels: same arguments, imported by the first call.

    What the kernels do not cover (as a compiled graph or a direct call of the operator may ask
    for) runs through the reference.

    Args:
        module: where the launcher stands.
        name: the launcher's.
        reference: the same in plain PyTorch.
        refuses: takes the operator's arguments; what is not covered, in words.
        missing: why these kernels cannot run here, or None.
    """

    def __init__(
        self,
        module: str,
        name: str,
        reference: Callable[..., Any],
        refuses: Callable[..., str | None],
        missing: Callable[[], str | None],
    ) -> None:
        self.module, self.name, self.missing = module, name, missing
        self.reference = without_autocast(reference)
        self.refuses = refuses
        self.launch: Callable[..., Any] | None = None

    def refusal(self, tensor: torch.Tensor, *rest: Any) -> str | None:
        """Why the reference runs a call, or None."""
        return self.missing() or wrong_dtype(tensor) or self.refuses(tensor, *rest)

    def __call__(self, tensor: torch.Tensor, *rest: Any) -> Any:
        if self.refusal(tensor, *rest):
            return self.reference(tensor, *rest)
        if self.launch is None:
            self.launch = getattr(import_module(self.module), self.name)
        if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
            return self.launch(tensor, *rest)
        with torch.cuda.device(tensor.device):
            return self.launch(tensor, *rest)


def goes_straight(args: tuple[Any, ...]) -> bool:
    """Whether an eager call may go to its launcher without PyTorch's dispatcher.

    Plain CUDA tensors may while nothing listens: no mode, no tracer, no subclass.
    """
    if not args[0].is_cuda:
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return False
    return (
        all(type(arg) in _PLAIN for arg in args if isinstance(arg, torch.Tensor))
        and not torch.overrides._is_torch_function_mode_enabled()
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)
