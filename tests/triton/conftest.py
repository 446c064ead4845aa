"""Triton kernels on CPU tensors in Triton's interpreter; on a machine with a GPU, on that."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from bench.kernel_traffic import patching_once
from tests.conftest import Implementation
from vmf_kernels import _triton, use_backend

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 as the bits of bfloat16, rounded to nearest even as GPUs do."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded).reshape(x.shape)


@pytest.fixture(autouse=True)
def triton_backend(
    monkeypatch: pytest.MonkeyPatch, interpreter_off: None
) -> Iterator[Implementation]:
    """Forces the Triton backend.

    Triton's interpreter cuts float32 off where it makes bfloat16 of it, and multiplies the bits of
    matrices in bfloat16; the compiler rounds, and multiplies what they stand for.
    """
    pytest.importorskip("triton", reason="Triton is not installed")
    if DEVICE == "cpu":
        import triton.language as tl
        from triton.runtime import interpreter

        convert = interpreter._convert_float

        def rounding(x: np.ndarray, source: object, target: object, mode: object) -> np.ndarray:
            if str(source) == "fp32" and str(target) == "bf16":
                return _to_bfloat16(x)
            return convert(x, source, target, mode)

        multiply = interpreter.InterpreterBuilder.create_dot

        def widening(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
            return multiply(builder, _widened(a), _widened(b), *rest)

        def _widened(handle: Any) -> Any:
            if str(handle.dtype) != "bf16" and handle.data.dtype != np.uint16:
                return handle
            wide = (handle.data.astype(np.uint32) << 16).view(np.float32)
            return interpreter.TensorHandle(wide, tl.float32)

        once = patching_once(interpreter._patch_lang)
        monkeypatch.setattr(interpreter, "_patch_lang", once)
        monkeypatch.setattr(interpreter, "_convert_float", rounding)
        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", widening)
        monkeypatch.setattr(_triton, "INTERPRETED", True)
    with use_backend("triton"):
        yield Implementation("triton", DEVICE)
