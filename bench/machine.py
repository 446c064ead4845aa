"""What the numbers were measured on, and how fast that machine can be at all."""

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import vmf_kernels
from bench import isa
from vmf_kernels import _extension

ROOT = Path(__file__).resolve().parent.parent
FALLBACK_CACHE = 8 << 20  # bytes, where the system does not tell


@dataclass
class Roofline:
    """The best speeds seen on this machine in this run.

    Attributes:
        cache_bytes: size of the last-level cache; 0 where no calls are timed with a warm one.
        cache_bandwidth: bytes read + written per second by a copy that fits the cache.
        memory_bandwidth: the same for a copy far larger than the cache.
        flops: floating-point operations per second of a large matrix product in float32.
    """

    cache_bytes: int
    cache_bandwidth: float
    memory_bandwidth: float
    flops: float

    def seconds(self, traffic_bytes: int, flops: int) -> float:
        """The least time for so much traffic and arithmetic.

        A call whose tensors together fit half the cache may find them there.
        """
        cached = traffic_bytes <= self.cache_bytes / 2
        bandwidth = self.cache_bandwidth if cached else self.memory_bandwidth
        return max(traffic_bytes / bandwidth, flops / self.flops)

    def raised_by(self, other: "Roofline") -> "Roofline":
        """The better of two measurements: other work on the machine only ever slows."""
        return Roofline(
            self.cache_bytes,
            max(self.cache_bandwidth, other.cache_bandwidth),
            max(self.memory_bandwidth, other.memory_bandwidth),
            max(self.flops, other.flops),
        )

    def __str__(self) -> str:
        cache = ""
        if self.cache_bytes:
            cache = (
                f"copy within the {self.cache_bytes >> 20} MiB cache "
                f"{self.cache_bandwidth / 1e9:.0f} GB/s, "
            )
        return (
            f"{cache}copy from memory {self.memory_bandwidth / 1e9:.0f} GB/s, "
            f"matrix product {self.flops / 1e9:.0f} GFLOP/s"
        )

    @classmethod
    def parse(cls, text: str) -> "Roofline | None":
        """Back from its text, as rounded there; None from another text."""
        found = re.fullmatch(
            r"(?:copy within the (\d+) MiB cache (\d+) GB/s, )?"
            r"copy from memory (\d+) GB/s, matrix product (\d+) GFLOP/s",
            text,
        )
        if not found:
            return None
        cache, cached, memory, flops = (int(group or 0) for group in found.groups())
        return cls(cache << 20, cached * 1e9, memory * 1e9, flops * 1e9)


def measure_roofline(device: str, seconds: float = 0.3) -> Roofline:
    """Copies and a float32 matrix product, each repeated for `seconds`; the best of each counts.

    Args:
        device: "cpu" or "cuda".
        seconds: for each of the two or three measurements.
    """
    n = 1024 if device == "cpu" else 8192
    a, b, c = (torch.ones(n, n, device=device) for _ in range(3))
    flops = 2 * n**3 / _best(lambda: torch.mm(a, b, out=c), device, seconds)
    if device == "cuda":
        return Roofline(0, 0.0, _copy_bandwidth(1 << 30, device, seconds), flops)
    cache = _cache_bytes()
    memory_bandwidth = _copy_bandwidth(max(2 * cache, 64 << 20), device, seconds)
    cache_bandwidth = max(memory_bandwidth, _copy_bandwidth(cache // 8, device, seconds))
    return Roofline(cache, cache_bandwidth, memory_bandwidth, flops)


def facts(device: str) -> dict[str, str]:
    """Machine, threads, versions and git revision, as they stand in every result."""
    lines = {
        "revision": git_revision(),
        "cpu": f"{_cpu_name()}, {os.cpu_count()} CPUs, torch uses {_capability()}",
        "threads": str(torch.get_num_threads()),
        "kernels": kernels(),
        "instruction set": isa.description(),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}"
        + "".join(f", {name} {v}" for name in ("triton", "onnxruntime") if (v := _version(name))),
        "load": f"{os.getloadavg()[0]:.1f} before the run",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    if device == "cuda":
        lines["gpu"] = (
            f"{torch.cuda.get_device_name()}, driver {_driver()}, CUDA {torch.version.cuda}, "
            f"cuDNN {torch.backends.cudnn.version()}"
        )
    return lines


def folder_name(device: str) -> str:
    """Of the results of this machine, such as "amd-epyc-family-26-model-2-avx512-2-cores".

    Two machines of one folder run at the same speed, as far as the system tells.
    """
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    if device == "cpu":
        name += f" {_capability()} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def git_revision() -> str:
    """The commit, with "-dirty" where the measured code differs from it; "unknown" without git.

    The variable `VMF_REVISION` says it where the code was copied to without its history.
    """
    if said := os.environ.get("VMF_REVISION"):
        return said

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--", "vmf_kernels", "csrc", "vmf", "bench/*.py")
        return f"{revision}-dirty" if changed else revision
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _copy_bandwidth(size: int, device: str, seconds: float) -> float:
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device, seconds)


def _best(work: Callable[[], object], device: str, seconds: float) -> float:
    """Seconds of the fastest of the calls that fit into `seconds`, at least three."""
    best = float("inf")
    begin = time.perf_counter()
    done = 0
    while done < 3 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
        done += 1
    return best


def _cache_bytes() -> int:
    for index in (3, 2):
        path = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size")
        if path.exists() and (found := re.fullmatch(r"(\d+)K", path.read_text().strip())):
            return int(found[1]) << 10
    return FALLBACK_CACHE


def _cpu_name() -> str:
    """With family and model: virtual machines give CPUs of several generations one name."""
    path = Path("/proc/cpuinfo")
    info = path.read_text() if path.exists() else ""
    name, family, model = (
        found[1] if (found := re.search(rf"^{key}\s*:\s*(.+)$", info, re.M)) else None
        for key in ("model name", "cpu family", "model")
    )
    if name is None:
        return platform.processor() or platform.machine()
    return f"{name} (family {family} model {model})" if family and model else name


def _driver() -> str:
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()


def kernels() -> str:
    """Version and instruction set of ours."""
    built = f"vmf_kernels {vmf_kernels.__version__}"
    if _extension._C is None:
        return f"{built}, {_extension.REASON}"
    return f"{built}, C++ kernels use {_extension._C.current_isa()}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
