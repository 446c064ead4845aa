"""The suite `ops`: every case of every op, ours against its peers."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from bench import kernel_traffic
from bench.cases import Case
from bench.comparison import OURS, Comparison, Key
from bench.contenders import (
    PEER_TOLERANCE,
    Call,
    backend_of,
    check_ours,
    describe,
    fault,
    truth,
    why_not,
)
from bench.op import FORWARD, LAYOUTS, MODES, OpBench, evenly
from bench.timing import Clock, Effort, interleave

# Elements of input and output together that a quick case is shrunk to: some 0.1 s of eager's
# contiguous backward pass on two cores.
QUICK_ELEMENTS = 2_500_000


@dataclass(frozen=True)
class Plan:
    """What to measure and how.

    Attributes:
        device: "cpu" or "cuda".
        dtypes: of the inputs.
        quick: fewer cases, shrunken batches, fewer rounds.
        only: keeps the cases that it is found in; searched in "op model shape mode".
        all_peers: the optional ones too.
        check_only: checks the numbers and times nothing.
        tests_first: run the op's tests before.
        effort: how long to measure each case.
        clock: of the device.
        red: why the tests of an op fail; nothing of such an op is timed.
        sample: at most so many of the cases of each op that are left; all if None.
    """

    device: str
    dtypes: tuple[torch.dtype, ...]
    quick: bool
    only: re.Pattern[str]
    all_peers: bool
    check_only: bool
    tests_first: bool
    effort: Effort
    clock: Clock
    red: dict[str, str] = field(default_factory=dict)
    sample: int | None = None


@dataclass(frozen=True)
class Task:
    """One comparison to be made."""

    bench: OpBench
    case: Case
    full_batch: int
    mode: str
    dtype: torch.dtype


def tasks(benches: list[OpBench], plan: Plan) -> list[Task]:
    """Everything that the plan asks for, op by op."""
    found = []
    for bench in benches:
        chosen = bench.quick(bench.cases()) if plan.quick else bench.cases()
        wanted = []
        for full in chosen:
            case = full.shrunk(QUICK_ELEMENTS) if plan.quick else full
            modes = [m for m in MODES if plan.only.search(f"{bench.name} {case} {m}")]
            if modes:
                wanted.append((case, full.batch, modes))
        for case, batch, modes in evenly(wanted, plan.sample or len(wanted)):
            found += [Task(bench, case, batch, m, dtype) for m in modes for dtype in plan.dtypes]
    return found


def run(todo: list[Task], plan: Plan, tell: Callable[[str], None]) -> Iterator[Comparison]:
    """Makes the comparisons one by one, telling the progress."""
    begin = time.perf_counter()
    for number, task in enumerate(todo, 1):
        result = compare(task, plan)
        spent = time.perf_counter() - begin
        left = spent / number * (len(todo) - number)
        tell(
            f"[{number}/{len(todo)}] {task.bench.name} {task.case} {task.mode} {result.dtype}: "
            f"{_summary(result)}  ({spent:.0f} s, about {left:.0f} s left)"
        )
        yield result


def compare(task: Task, plan: Plan) -> Comparison:
    """Checks every contender's numbers, then times those that are right, in turns."""
    bench, case, mode, dtype = task.bench, task.case, task.mode, task.dtype
    torch.manual_seed(0)
    with torch.device(plan.device):
        inputs = bench.inputs(case)
    result = Comparison(
        op=bench.name,
        case=case,
        full_batch=task.full_batch,
        mode=mode,
        dtype=str(dtype).removeprefix("torch."),
        backend=backend_of(bench, case, plan.device, dtype),
        traffic=bench.traffic(case, mode, dtype.itemsize),
        groups=bench.groups(case),
    )
    if result.backend == "triton":
        result.kernel_traffic = kernel_traffic.committed(bench.name, case.label, mode, result.dtype)
    if bench.name in plan.red:
        result.reasons = {(OURS, layout): plan.red[bench.name] for layout in LAYOUTS}
        return result
    expected = truth(bench, case, inputs, mode, dtype, plan.device)
    calls: dict[Key, Call] = {}
    for layout in LAYOUTS:
        key = (OURS, layout)
        call = Call(bench.ours, case, inputs, bench.features, layout, dtype, plan.device)
        try:
            wrong = check_ours(call, mode, expected, dtype, plan.device)
        except Exception as error:
            wrong = describe(error)
        if wrong:
            result.reasons[key] = wrong
        else:
            calls[key] = call
    if plan.all_peers:
        torch._dynamo.reset()  # a compiled peer keeps nothing of earlier cases
    for peer in bench.peers:
        for layout in LAYOUTS:
            key = (peer.name, layout)
            reason = why_not(peer, mode, layout, dtype, plan.device, plan.all_peers)
            if reason or plan.check_only:
                result.reasons[key] = reason or "only the numbers of ours were checked"
                continue
            try:
                function = peer.prepare(peer.run, case) if peer.prepare else peer.run
                call = Call(function, case, inputs, bench.features, layout, dtype, plan.device)
                wrong = fault(call.work(mode)(), expected, PEER_TOLERANCE)
            except Exception as error:  # whatever a peer does is a line in the table
                wrong = describe(error)
            if wrong:
                result.reasons[key] = wrong
            else:
                calls[key] = call
    del expected
    if not plan.check_only and not result.wrong:
        work = {key: call.work(mode) for key, call in calls.items()}
        rivals = [key for key in work if key[0] != OURS]
        # Once for all calls: entering and leaving it takes a microsecond.
        with torch.set_grad_enabled(mode != FORWARD):
            result.times = interleave(work, plan.clock, plan.effort, rivals)
    return result


def _summary(result: Comparison) -> str:
    if result.wrong:
        return f"WRONG: {result.wrong}"
    speedup = result.best_speedup()
    return f"{speedup:.2f}x" if speedup else "numbers are right"
