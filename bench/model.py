"""The suite `model`: inference and training step of whole networks, ours against PyTorch."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import networks
from bench.breakdown import breakdown
from bench.comparison import OURS, Comparison, Key
from bench.contenders import describe, exact_float32
from bench.memory import peak_bytes
from bench.networks import CLASSES, QUICK_BATCH, ModelCase, Way
from bench.op import CHANNELS_LAST, LAYOUTS
from bench.results import Row
from bench.suite import Plan
from bench.timing import interleave
from vmf_kernels import use_backend

INFERENCE, STEP = "inference", "training step"
# Of the logits in inference and of all gradients together in training, relative in the 2-norm.
# Kinks of the activations turn roundings into larger differences of gradients.
TOLERANCE = {INFERENCE: 1e-3, STEP: 2e-2}
# 16-bit autocast rounds between all layers, differently in each contender.
TOLERANCE_16 = {INFERENCE: 1e-1, STEP: 5e-1}


def run(
    plan: Plan, tell: Callable[[str], None], breakdowns: list[Row] | None = None
) -> Iterator[Comparison]:
    """Measures every case of the device, one phase after the other, telling the progress.

    Args:
        plan: what to measure.
        tell: is told the progress.
        breakdowns: gets the rows that say where the time goes.
    """
    for full in networks.CASES[plan.device]:
        case = full.shrunk(QUICK_BATCH * full.elements) if plan.quick else full
        for phase in (INFERENCE, STEP):
            for dtype in plan.dtypes:
                if not plan.only.search(f"model {case} {phase}"):
                    continue
                tell(f"model {case} {phase} ...")
                result, rows = compare(case, full.batch, phase, dtype, plan)
                speedup = result.best_speedup()
                told = f"WRONG: {result.wrong}" if result.wrong else "numbers are right"
                tell(f"model {case} {phase}: {f'{speedup:.2f}x' if speedup else told}")
                if breakdowns is not None:
                    breakdowns += rows
                yield result


def compare(
    case: ModelCase, full_batch: int, phase: str, dtype: torch.dtype, plan: Plan
) -> tuple[Comparison, list[Row]]:
    """Checks that all ways give the same numbers, then measures memory, times and their parts."""
    name = str(dtype).removeprefix("torch.")
    result = Comparison("model", case, full_batch, phase, name, "auto")
    torch.manual_seed(0)
    network = networks.create(case.model).to(plan.device)
    clips = networks.clips(case, plan.device)
    expected = None
    work: dict[Key, Work] = {}
    ways = networks.ways(case.model)
    reference = ("eager", CHANNELS_LAST)
    for key in [reference, *(key for key in ways if key != reference)]:
        way = ways[key]
        if way.compiled and (plan.check_only or not plan.all_peers):
            only = "only the numbers of ours were checked" if plan.check_only else None
            result.reasons[key] = only or "only with --peers all"
            continue
        try:
            if way.compiled:
                torch._dynamo.reset()  # nothing is left of the layouts and networks before
            one = Work(way, network, clips, phase, dtype)
            outcome = one.outcome()
        except Exception as error:
            if key == reference:
                raise
            result.reasons[key] = describe(error)
            continue
        if expected is None:
            expected = outcome
        off = ((outcome - expected).norm() / expected.norm()).item()
        tolerance = TOLERANCE if dtype == torch.float32 else TOLERANCE_16
        if not off <= tolerance[phase]:
            what = "logits" if phase == INFERENCE else "gradients"
            result.reasons[key] = f"its {what} are off by {off:.1e} (relative, 2-norm)"
        else:
            work[key] = one
    if result.wrong or plan.check_only:
        return result, []
    work = {key: work[key] for key in ways if key in work}
    for key, one in work.items():
        if (peak := peak_bytes(one, plan.device)) is not None:
            result.peak_bytes[key] = peak
    rivals = [key for key in work if key[0] != OURS]
    result.times = interleave(dict(work), plan.clock, plan.effort, rivals)
    return result, _parts(result, work) if plan.device == "cpu" else []


def _parts(result: Comparison, work: dict[Key, "Work"]) -> list[Row]:
    """Where the time of ours and of eager goes, each in its fastest layout."""
    rows = []
    for contender in (OURS, "eager"):
        keys = [key for key in work if key[0] == contender and key in result.times.seconds]
        if not keys:
            continue
        key = result.times.fastest(keys)
        for (part, direction), seconds in breakdown(work[key].network, work[key]).items():
            row = {"model": result.case.model, "clips": result.case.label, "phase": result.mode}
            row |= {"dtype": result.dtype, "contender": contender, "layout": key[1]}
            row |= {"part": part, "direction": direction, "ms": f"{1e3 * seconds:.4g}"}
            rows.append(row)
    return rows


class Work:
    """One way's inference or training step, with its own copy of the network."""

    def __init__(
        self, way: Way, network: nn.Module, clips: Tensor, phase: str, dtype: torch.dtype
    ) -> None:
        self.way, self.phase, self.dtype = way, phase, dtype
        self.network = copy.deepcopy(network).train(phase == STEP)
        # Weights too, as PyTorch asks for: else its convolutions answer contiguous features.
        for parameter in self.network.parameters():
            if parameter.dim() == 5:
                parameter.data = parameter.data.contiguous(memory_format=LAYOUTS[way.layout])
        way.change(self.network)
        self.run: Any = torch.compile(self.network) if way.compiled else self.network
        self.clips = clips.contiguous(memory_format=LAYOUTS[way.layout])
        self.labels = torch.arange(len(clips), device=clips.device) % CLASSES
        # So small a rate that the network does not move while it is timed.
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-9)

    def __call__(self) -> None:
        """One batch, as a user runs it."""
        with use_backend(self.way.backend):
            if self.phase == INFERENCE:
                with torch.no_grad(), self._autocast():
                    self.run(self.clips)
            else:
                self._backward()
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)

    def outcome(self) -> Tensor:
        """What has to be the same for all: the logits, or all gradients in one vector."""
        with use_backend(self.way.backend), exact_float32():
            if self.phase == INFERENCE:
                with torch.no_grad(), self._autocast():
                    return self.run(self.clips).float()
            self._backward()
        gradients = [p.grad.flatten() for p in self.network.parameters() if p.grad is not None]
        self.optimizer.zero_grad(set_to_none=True)
        return torch.cat(gradients)

    def _backward(self) -> None:
        with self._autocast():
            logits = self.run(self.clips)
        F.cross_entropy(logits.float(), self.labels).backward()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.clips.device.type, self.dtype)
