"""The library of CUDA C++ kernels (csrc/cuda), and the road to them."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmf_kernels import _triton
from vmf_kernels.backends import current_backend

PATH = Path(__file__).with_name("libvmf_cuda.so")
DTYPES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}  # as in csrc/include/vmf/dtype.h

_SHAPE, _POINTER, _TEXT = ctypes.POINTER(ctypes.c_int64), ctypes.c_void_p, ctypes.c_char_p
_DEVICE = (ctypes.c_int, _POINTER)  # multiprocessors, stream
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "version": (ctypes.c_int, ()),
    "depthwise_conv3d_refuses": (_TEXT, (_SHAPE,)),
    "depthwise_conv3d_tile": (None, (_SHAPE, ctypes.c_int, ctypes.c_int, _SHAPE)),
    "depthwise_conv3d": (_TEXT, (_SHAPE, *(_POINTER,) * 4, *_DEVICE)),
    "depthwise_conv_transpose3d": (_TEXT, (_SHAPE, *(_POINTER,) * 4, *_DEVICE)),
    "depthwise_conv3d_grad_weight_scratch": (ctypes.c_int64, (_SHAPE, _POINTER, ctypes.c_int)),
    "depthwise_conv3d_grad_weight": (_TEXT, (_SHAPE, *(_POINTER,) * 5, *_DEVICE)),
}


@functools.cache
def functions() -> dict[str, Any]:
    """The library's functions by name; none where it was not built or does not load."""
    try:
        library = ctypes.CDLL(str(PATH))
    except OSError:
        return {}
    found = {}
    for name, (result, arguments) in _FUNCTIONS.items():
        found[name] = getattr(library, f"vmf_cuda_{name}")
        found[name].restype, found[name].argtypes = result, arguments
    return found


def missing() -> str | None:
    """Why there are no CUDA kernels here, or None."""
    if functions():
        return None
    return (
        "the CUDA kernels do not load"
        if PATH.exists()
        else "the CUDA kernels are not built (they are where nvcc and a CUDA build of torch are)"
    )


def cannot_run(refuses: Callable[..., str | None]) -> Callable[..., Exception | None]:
    """The predicate of a CUDA backend; `refuses` as of `_triton.cannot_run`."""

    def predicate(tensor: Any, *rest: Any) -> Exception | None:
        if not tensor.is_cuda:
            return NotImplementedError(f"it runs on CUDA (got a tensor on {tensor.device})")
        if torch.compiler.is_compiling() and current_backend() == "auto":
            if _triton.missing():  # "auto" runs the operator that chooses when it runs
                return None
            return NotImplementedError("compiled code chooses its kernels when it runs")
        if reason := missing():
            return RuntimeError(reason)
        if reason := _triton.wrong_dtype(tensor) or refuses(tensor, *rest):
            return NotImplementedError(reason)
        return None

    return predicate


def run(name: str, *arguments: Any) -> None:
    """Enqueues what a function of the library does.

    Raises:
        RuntimeError: CUDA refuses to launch it.
    """
    error = functions()[name](*arguments)
    if error is not None:
        raise RuntimeError(f"{name}: {error.decode()}")


@functools.cache
def processors(index: int) -> int:
    """Multiprocessors of a CUDA device."""
    return torch.cuda.get_device_properties(index).multi_processor_count


OLDEST = (8, 0)  # compute capability that setup.py compiles for


@functools.cache
def too_old(index: int) -> str | None:
    """Why the kernels cannot run on a CUDA device, or None: it is too old, or its driver."""
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST:
        oldest, got = (".".join(map(str, numbers)) for numbers in (OLDEST, capability))
        return f"its CUDA kernels are for compute capability {oldest} and newer (got {got})"
    drivers = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    built, driver = (version // 1000 for version in (functions()["version"](), drivers))
    if driver < built:
        return f"its CUDA kernels were built with CUDA {built} (the driver has CUDA {driver})"
    return None


def device(tensor: Tensor) -> tuple[int, int]:
    """What the functions want to know of a tensor's device: multiprocessors, current stream.

    The current device's where a tensor is on none, as those that are only asked about.
    """
    index = tensor.get_device() if tensor.is_cuda else torch.cuda.current_device()
    return processors(index), torch._C._cuda_getCurrentRawStream(index)
