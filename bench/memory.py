"""Memory at its highest during a call."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from vmf_kernels import release_memory


def peak_bytes(work: Callable[[], None], device: str) -> int | None:
    """Memory at its highest during a call beyond what was held before; None if nobody tells."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform != "linux":
        return None
    release_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    except OSError:
        return None
    before = _status("VmRSS")
    work()
    return max(0, _status("VmHWM") - before)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status has no {field}")
