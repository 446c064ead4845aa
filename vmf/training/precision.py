"""How arithmetic is done: fp32 or autocast to bf16 or fp16, and the same way each time."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def pick_precision(precision: str, device: torch.device) -> str:
    """Settles "auto": bf16 on a GPU that has it, else fp32.

    Raises:
        ValueError: The device cannot train in that precision.
    """
    if precision == "auto":
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return "bf16" if native else "fp32"
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision: fp16 needs a CUDA device (got {device}); use bf16 or fp32")
    return precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Autocast for a settled precision."""
    if precision == "fp32":
        return nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Has PyTorch take its deterministic operations, where it has a choice, within a block."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    # cuBLAS asks for this before its first use.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
