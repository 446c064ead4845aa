"""`python -m vmf_kernels.info`: what was built, what was found, which backend serves which op."""

import argparse
import importlib.util
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch

import vmf_kernels
from vmf_kernels import _extension
from vmf_kernels.backends import OPS, current_backend
from vmf_kernels.explain import explain

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _or_error(fact: Callable[[], str]) -> str:
    """The fact, or the message of the user's mistake in the environment that prevents it."""
    try:
        return fact()
    except (ValueError, RuntimeError) as error:
        return str(error)


def _extension_line() -> str:
    if _extension._C is None:
        return _extension.REASON
    built, now = ", ".join(_extension._C.built_isas()), _or_error(_extension._C.current_isa)
    return f"CPU kernels for {built}; in use: {now} (g++ {_extension._C.compiler})"


def _triton_line() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed"
    try:
        return version("triton")
    except PackageNotFoundError:
        return "installed"


def _gpu_line() -> str:
    if torch.version.cuda is None:
        return f"none: torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "none: CUDA sees no device"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def facts() -> list[tuple[str, str]]:
    """What this installation consists of, as (name, value) pairs."""
    return [
        ("vmf_kernels", vmf_kernels.__version__),
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"),
        ("extension", _extension_line()),
        ("triton", _triton_line()),
        ("GPU", _gpu_line()),
        ("backend", f"{_or_error(current_backend)} (VMF_BACKEND or use_backend choose another)"),
    ]


def _example_call(op: str, device: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    x = torch.zeros(1, 8, 4, 4, 4, device=device, dtype=dtype)
    tokens, slopes = x.new_zeros(1, 6, 8), x.new_zeros(1, 8)
    return {
        "depthwise_conv3d": (x, x.new_zeros(8, 1, 3, 3, 3)),
        "depthwise_conv_transpose3d": (x, x.new_zeros(8, 1, 3, 3, 3)),
        "few_query_attention": (tokens, x),
        "few_key_attention": (x, tokens, tokens),
        "dynamic_relu": (x, slopes, slopes),
    }[op]


def _print_backends(device: str) -> None:
    """One line per op and backend: the dtypes that it serves, and why it misses the others."""
    print(f"\nBackends on {device}, fastest first:")
    for name in OPS:
        lines: dict[tuple[str, str], list[str]] = {}
        for dtype in DTYPES:
            try:
                call = _example_call(name, device, dtype)
                record = explain(getattr(vmf_kernels, name), *call)[0]
                key = (record.backend, record.reason)
            except (ValueError, RuntimeError) as error:  # NotImplementedError is a RuntimeError
                key = ("none", str(error))
            lines.setdefault(key, []).append(str(dtype).removeprefix("torch."))
        for (backend, reason), dtypes in lines.items():
            why = f"  ({reason})" if reason else ""
            print(f"  {name:26} {backend:10} {', '.join(dtypes)}{why}")


def main() -> None:
    """Prints the facts, then which backend serves each op here, and why no faster one does."""
    parser = argparse.ArgumentParser(prog="python -m vmf_kernels.info", description=main.__doc__)
    parser.add_argument("--brief", action="store_true", help="one line: what was built")
    if parser.parse_args().brief:
        print(f"vmf_kernels {vmf_kernels.__version__}: {_extension_line()}")
        return
    for name, value in facts():
        print(f"{name:12} {value}")
    _print_backends("cpu")
    if torch.cuda.is_available():
        _print_backends("cuda")


if __name__ == "__main__":
    main()
