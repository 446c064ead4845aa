"""`--isa NAME`: our kernels and PyTorch limited to one instruction set, both the same.

Every library reads its limit when it is loaded, so the process starts anew with them set.
"""

import os
import sys
from collections.abc import Sequence

# Ours, ATen's own loops and Inductor's vectors, oneDNN, MKL, and what Inductor lets g++ use.
VARIABLES = (
    *("VMF_CPU_ISA", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"),
    "TORCHINDUCTOR_CPP_MARCH",
)
LIMITS = {
    "baseline": ("baseline", "default", "SSE41", "SSE4_2", "x86-64"),
    "avx2": ("avx2", "avx2", "AVX2", "AVX2", "x86-64-v3"),
    "avx512": ("avx512", "avx512", "AVX512_CORE", "AVX512", "x86-64-v4"),
}
# Tells the new process what it is limited to.
NAME = "VMF_BENCH_ISA"


def limit() -> str | None:
    """What this process was limited to by `--isa`; None if it is free."""
    return os.environ.get(NAME)


def environment(name: str) -> dict[str, str]:
    """The variables that limit a process to the instruction set `name`."""
    return {NAME: name, **dict(zip(VARIABLES, LIMITS[name], strict=True))}


def refusal(name: str) -> str | None:
    """Why nothing can be measured with `name` here, in words."""
    from vmf_kernels import _extension

    if _extension._C is None:
        return _extension.REASON
    runs = _extension._C.supported_isas()
    return None if name in runs else f"this CPU runs {', '.join(runs)} (got {name})"


def restart_limited(name: str, argv: Sequence[str], module: str = "bench") -> None:
    """Replaces this process by `python -m MODULE ARGV` with the limits set; else does nothing.

    Args:
        name: of the instruction set.
        argv: its arguments.
        module: what runs.
    """
    if limit() == name:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(
        sys.executable,
        [sys.executable, "-m", module, *argv],
        {**os.environ, **environment(name)},
    )


def description() -> str:
    """What limits this process, for the header of its results."""
    if name := limit():
        settings = " ".join(f"{v}={os.environ.get(v, '')}" for v in VARIABLES)
        return f"limited to {name} ({settings})"
    return "not limited"
