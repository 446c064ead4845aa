"""Where Triton kernels run, and the road to them. Triton itself is imported by the first launch."""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from vmf_kernels.backends import current_backend

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
