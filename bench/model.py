"""The suite `model`: inference and training step of whole networks, ours against PyTorch."""

import copy
import ctypes
import gc
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vmf
from bench.cases import Case, Triple
from bench.comparison import OURS, Comparison, Key
from bench.op import CHANNELS_LAST, CONTIGUOUS, LAYOUTS
from bench.suite import Plan
from bench.timing import interleave
from vmf.models.layers import PointwiseConv3d
from vmf.models.network import Stem
from vmf_kernels import use_backend

INFERENCE, STEP = "inference", "training step"
CLASSES = 400
# Of the logits in inference and of all gradients together in training, relative in the 2-norm.
# Kinks of the activations turn roundings into larger differences of gradients.
TOLERANCE = {INFERENCE: 1e-3, STEP: 2e-2}
# 16-bit autocast rounds between all layers, differently in each contender.
TOLERANCE_16 = {INFERENCE: 1e-1, STEP: 5e-1}


@dataclass(frozen=True)
class ModelCase(Case):
    """A network on clips of (T, H, W)."""

    size: Triple

    @property
    def elements(self) -> int:
        return 3 * math.prod(self.size)

    @property
    def label(self) -> str:
        return "x".join(map(str, (self.batch, 3, *self.size)))


CASES = {
    "cpu": (
        ModelCase("vmf_151m", 4, 1, (8, 112, 112)),
        ModelCase("vmf_1g", 4, 1, (8, 224, 224)),
    ),
    "cuda": (
        ModelCase("vmf_151m", 64, 1, (8, 112, 112)),
        ModelCase("vmf_1g", 32, 1, (8, 224, 224)),
    ),
}
QUICK_BATCH = 2


@dataclass(frozen=True)
class Way:
    """One way to run the network.

    Attributes:
        backend: for `use_backend`.
        layout: of the clips and features.
        change: done to the network first.
    """

    backend: str
    layout: str
    change: Callable[[nn.Module], None] = lambda network: None


def _plain_convolutions(network: nn.Module) -> None:
    """The network as it is usually written: features stay contiguous, 1x1x1 is an nn.Conv3d."""
    for module in network.modules():
        if isinstance(module, PointwiseConv3d):
            if module.groups > 1:
                raise NotImplementedError("a network with channel shuffles has no plain form here")
            module.forward = MethodType(nn.Conv3d.forward, module)  # type: ignore[method-assign]
        elif isinstance(module, Stem):
            module.forward = MethodType(_plain_stem, module)  # type: ignore[method-assign]


def _plain_stem(stem: Stem, clip: Tensor) -> Tensor:
    return stem.act(stem.norm(stem.conv(clip)))


WAYS: dict[Key, Way] = {
    (OURS, CHANNELS_LAST): Way("auto", CHANNELS_LAST),
    (OURS, CONTIGUOUS): Way("auto", CONTIGUOUS, _plain_convolutions),
    ("eager", CHANNELS_LAST): Way("reference", CHANNELS_LAST),
    ("eager", CONTIGUOUS): Way("reference", CONTIGUOUS, _plain_convolutions),
}


def run(plan: Plan, tell: Callable[[str], None]) -> Iterator[Comparison]:
    """Measures every case of the device, one phase after the other, telling the progress."""
    for full in CASES[plan.device]:
        case = full.shrunk(QUICK_BATCH * full.elements) if plan.quick else full
        for phase in (INFERENCE, STEP):
            for dtype in plan.dtypes:
                if not plan.only.search(f"model {case} {phase}"):
                    continue
                tell(f"model {case} {phase} ...")
                result = compare(case, full.batch, phase, dtype, plan)
                speedup = result.best_speedup()
                told = f"WRONG: {result.wrong}" if result.wrong else "numbers are right"
                tell(f"model {case} {phase}: {f'{speedup:.2f}x' if speedup else told}")
                yield result


def compare(
    case: ModelCase, full_batch: int, phase: str, dtype: torch.dtype, plan: Plan
) -> Comparison:
    """Checks that all ways give the same numbers, measures their memory, then times them."""
    name = str(dtype).removeprefix("torch.")
    result = Comparison("model", case, full_batch, phase, name, "auto")
    torch.manual_seed(0)
    network = vmf.create_model(case.model, num_classes=CLASSES).to(plan.device)
    clips = torch.randn(case.batch, 3, *case.size).to(plan.device)
    work = {key: Work(way, network, clips, phase, dtype) for key, way in WAYS.items()}
    expected = work["eager", CHANNELS_LAST].outcome()
    tolerance = TOLERANCE if dtype == torch.float32 else TOLERANCE_16
    for key, one in list(work.items()):
        error = ((one.outcome() - expected).norm() / expected.norm()).item()
        if not error <= tolerance[phase]:
            what = "logits" if phase == INFERENCE else "gradients"
            result.reasons[key] = f"its {what} are off by {error:.1e} (relative, 2-norm)"
            del work[key]
    if result.wrong or plan.check_only:
        return result
    for key, one in work.items():
        if (peak := peak_bytes(one, plan.device)) is not None:
            result.peak_bytes[key] = peak
    rivals = [key for key in work if key[0] != OURS]
    result.times = interleave(dict(work), plan.clock, plan.effort, rivals)
    return result


class Work:
    """One way's inference or training step, with its own copy of the network."""

    def __init__(
        self, way: Way, network: nn.Module, clips: Tensor, phase: str, dtype: torch.dtype
    ) -> None:
        self.way, self.phase, self.dtype = way, phase, dtype
        self.network = copy.deepcopy(network).train(phase == STEP)
        way.change(self.network)
        self.clips = clips.contiguous(memory_format=LAYOUTS[way.layout])
        self.labels = torch.arange(len(clips), device=clips.device) % CLASSES
        # So small a rate that the network does not move while it is timed.
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-9)

    def __call__(self) -> None:
        """One batch, as a user runs it."""
        with use_backend(self.way.backend):
            if self.phase == INFERENCE:
                with torch.no_grad(), self._autocast():
                    self.network(self.clips)
            else:
                self._backward()
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)

    def outcome(self) -> Tensor:
        """What has to be the same for all: the logits, or all gradients in one vector."""
        with use_backend(self.way.backend):
            if self.phase == INFERENCE:
                with torch.no_grad(), self._autocast():
                    return self.network(self.clips).float()
            self._backward()
        gradients = [p.grad.flatten() for p in self.network.parameters() if p.grad is not None]
        self.optimizer.zero_grad(set_to_none=True)
        return torch.cat(gradients)

    def _backward(self) -> None:
        with self._autocast():
            logits = self.network(self.clips)
        F.cross_entropy(logits.float(), self.labels).backward()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.clips.device.type, self.dtype)


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
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
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
