"""The suite `overhead`: microseconds per call of layers so small that the kernel is nearly nothing.

In one thread, since waking others is not what is asked about here.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from bench import suite
from bench.cases import AttentionCase, Case, DepthwiseCase, ReluCase, TransposeCase
from bench.comparison import Comparison
from bench.machine import Roofline
from bench.markdown import markdown_table
from bench.op import FORWARD, RECORDED, TRAINING, OpBench
from bench.report import absent
from bench.results import Layer, layers, rows_of
from bench.suite import Plan, Task
from bench.timing import Effort

CASES: dict[str, Case] = {
    "depthwise_conv3d": DepthwiseCase(
        "tiny", 1, 1, 8, 1, (2, 4, 4), (3, 3, 3), (1, 1, 1), (1, 1, 1)
    ),
    "depthwise_conv_transpose3d": TransposeCase(
        "tiny", 1, 1, 8, 1, (2, 4, 4), (3, 3, 3), (1, 1, 1), (1, 1, 1)
    ),
    "few_query_attention": AttentionCase("tiny", 1, 1, 16, (2, 4, 4), 2, 2),
    "few_key_attention": AttentionCase("tiny", 1, 1, 16, (2, 4, 4), 2, 2),
    "dynamic_relu": ReluCase("tiny", 1, 1, 8, (2, 4, 4)),
}
MODES = (FORWARD, RECORDED, TRAINING)
THREADS = 1
# Batches of 5 ms and more; none of the peers is left out for being slow.
EFFORT = Effort(seconds=1.5, rounds=21, most_rounds=200, slow_factor=1e9, sample_seconds=5e-3)
MOST_CALLS = 2000
NOTE = (
    f"`{RECORDED}` is a forward call whose graph is kept for a backward pass that does not come; "
    f"`{TRAINING}` includes PyTorch's autograd engine, 20 µs and more of its own."
)


def batch_clock(work: Callable[[], object], calls: int) -> float:
    """Wall time of a batch, divided: reading the clock twice a call would count too.

    On a GPU that is the host's part of the calls; the GPU is done sooner.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def tasks(benches: Sequence[OpBench], plan: Plan) -> list[Task]:
    """One tiny case per op, in every mode."""
    return [
        Task(bench, case, case.batch, mode, dtype)
        for bench in benches
        if (case := CASES.get(bench.name))
        for mode in MODES
        if plan.only.search(f"{bench.name} {case} {mode}")
        for dtype in plan.dtypes
    ]


def run(
    benches: Sequence[OpBench], plan: Plan, tell: Callable[[str], None]
) -> Iterator[Comparison]:
    """Measures every op, single-threaded."""
    effort = dataclasses.replace(EFFORT, most_calls=MOST_CALLS)
    plan = dataclasses.replace(plan, clock=batch_clock, effort=effort)
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield from suite.run(tasks(benches, plan), plan, tell)
    finally:
        torch.set_num_threads(threads)


def report(results: Sequence[Comparison], limits: Mapping[str, float]) -> str:
    """Microseconds of ours and of the best peer; the targets and whether they are met.

    Args:
        results: of `run`.
        limits: microseconds at most, by mode; none on a GPU, where the peer's are the limit.
    """
    free = Roofline(0, 1.0, 1.0, 1.0)  # nothing here is held against a roofline
    parts = ["## Microseconds per call", NOTE]
    parts.append(table(layers(row for r in results for row in rows_of(r, free)), limits))
    parts += absent(results)
    return "\n\n".join(parts)


def table(some: Sequence[Layer], limits: Mapping[str, float]) -> str:
    """One line per op and mode."""
    rows = []
    for layer in some:
        spent, most = layer.milliseconds, limits.get(layer.mode)
        met = "-"
        if spent is not None and most is not None:
            met = "met" if 1e3 * spent <= most else "**not met**"
        rows.append(
            [
                *(layer.op, layer.shape, layer.dtype, layer.mode),
                f"{1e3 * spent:.1f}" if spent is not None else "none",
                f"{most:.0f}" if most else "-",
                met,
                " ".join(layer.peer) if layer.peer else "-",
                f"{1e3 * layer.peer_milliseconds:.1f}" if layer.peer_milliseconds else "-",
                f"{layer.speedup:.2f}" if layer.speedup else "-",
            ]
        )
    header = ["op", "shape", "dtype", "mode", "ours µs", "at most", "target"]
    return markdown_table([*header, "best peer", "its µs", "speed-up"], rows)
