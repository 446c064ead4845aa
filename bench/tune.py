"""`python -m bench.tune`: measures other tiles than the committed ones, on a machine with a GPU.

For each kernel of Triton, dtype and layout, every size of its tile is halved and doubled, one at a
time, on a few layers of the op. What comes out is a table and, where something is faster, the row
to put into `vmf_kernels/ops/NAME/tiles.json`; it is a person who commits it. Run it again after
that: one round moves each size by one step.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import machine
from bench.arguments import expression
from bench.cases import Case
from bench.contenders import Call
from bench.files import write_csv
from bench.op import CHANNELS_LAST, LAYOUTS, OpBench, evenly
from bench.ops import BENCHES
from bench.timing import KERNELS, CudaClock, geomean, interleave
from vmf_kernels import tiles, use_backend

DTYPES = (torch.bfloat16, torch.float32)
FORWARD_KERNELS = ("forward", "gather")
MOST_WARPS = 16
# What counts as faster: less is noise, or one layer's luck.
WORTH_IT = 0.97


@dataclass(frozen=True)
class Kind:
    """What one row of the result is about."""

    op: str
    kernel: str
    dtype: torch.dtype
    layout: str

    def __str__(self) -> str:
        return f"{self.op}.{self.kernel} {str(self.dtype).removeprefix('torch.')} {self.layout}"

    def committed(self) -> Mapping[str, int]:
        """Sizes in use."""
        last = self.layout == CHANNELS_LAST
        device = torch.device("cuda", torch.cuda.current_device())
        facts = {"channels": 96, "taps": 27}  # where rows tell apart by them: a common layer
        return tiles.choose(self.op, self.kernel, self.dtype, device, last, **facts).sizes


def kinds(only: re.Pattern[str]) -> list[Kind]:
    """All whose name is matched."""
    found = []
    for op in BENCHES:
        kernels = dict.fromkeys(row["kernel"] for row in tiles.table(op))
        found += [Kind(op, k, d, lay) for k in kernels for d in DTYPES for lay in LAYOUTS]
    return [kind for kind in found if only.search(str(kind))]


def candidates(sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """The sizes in use, and their neighbours: each halved and doubled, tiles with their warps."""
    yield dict(sizes)
    for name, size in sizes.items():
        for changed in (size // 2, size * 2):
            if changed and (name != "warps" or changed <= MOST_WARPS):
                yield {**sizes, name: changed}
    elements, warps = sizes["elements"], sizes["warps"]
    if warps > 1:
        yield {**sizes, "elements": elements // 2, "warps": warps // 2}
    if warps < MOST_WARPS:
        yield {**sizes, "elements": elements * 2, "warps": warps * 2}


def work(bench: OpBench, case: Case, kind: Kind) -> Callable[[], Any]:
    """The pass that has the kernel in it, on fresh tensors."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        inputs = bench.inputs(case)
    call = Call(bench.ours, case, inputs, bench.features, kind.layout, kind.dtype, "cuda")
    if kind.kernel in FORWARD_KERNELS:
        return call.forward
    output = call.recorded()
    grad = torch.randn_like(output)
    return lambda: torch.autograd.grad(output, call.leaves, grad, retain_graph=True)


def under(sizes: Mapping[str, int], kind: Kind, run: Callable[[], Any]) -> Callable[[], Any]:
    """`run` with these sizes."""

    def forced() -> Any:
        with tiles.forced({f"{kind.op}.{kind.kernel}": sizes}), use_backend("triton"):
            return run()

    return forced


def tried(
    kind: Kind, sample: int, part: int = 0, parts: int = 1
) -> Iterator[tuple[Case, dict[str, int], Callable[[], Any]]]:
    """Every case with every candidate that can be launched; that compiles it.

    With several `parts`, only the candidates of one.
    """
    bench = BENCHES[kind.op]
    for case in evenly(bench.cases(), sample):
        run = work(bench, case, kind)
        for sizes in list(candidates(kind.committed()))[part::parts]:
            call = under(sizes, kind, run)
            try:
                call()
            except Exception as error:  # too much shared memory, too many registers
                print(f"{kind} {case} {sizes}: {type(error).__name__}", file=sys.stderr)
                continue
            yield case, sizes, call


def measure(kind: Kind, sample: int, clock: CudaClock) -> list[dict[str, Any]]:
    """One row for each case and candidate."""
    grouped: dict[Case, list[tuple[dict[str, int], Callable[[], Any]]]] = {}
    for case, sizes, call in tried(kind, sample):
        grouped.setdefault(case, []).append((sizes, call))
    rows = []
    for case, options in grouped.items():
        times = interleave({i: call for i, (_, call) in enumerate(options)}, clock, KERNELS)
        for i, (sizes, _) in enumerate(options):
            rows.append(
                {
                    "kernel": str(kind),
                    "case": str(case),
                    "tile": json.dumps(sizes),
                    "us": f"{times.median(i) * 1e6:.1f}",
                    "ratio": f"{times.median(i) / times.median(0):.3f}",
                }
            )
    return rows


def report(kind: Kind, rows: Sequence[dict[str, Any]]) -> str:
    """Candidates from the fastest on, and the row to commit if one is faster."""
    by_tile: dict[str, list[float]] = {}
    for row in rows:
        by_tile.setdefault(row["tile"], []).append(float(row["ratio"]))
    most = max(map(len, by_tile.values()))
    means = {tile: geomean(r) for tile, r in by_tile.items() if len(r) == most}
    lines = [f"## {kind}: time against the committed tile, geomean (worst)"]
    for tile in sorted(means, key=lambda t: means[t]):
        lines.append(f"{means[tile]:.3f} ({max(by_tile[tile]):.3f})  {tile}")
    best = min(means, key=lambda t: means[t])
    if means[best] < WORTH_IT:
        row = {
            "kernel": kind.kernel,
            "bits": kind.dtype.itemsize * 8,
            "layout": "channels_last" if kind.layout == CHANNELS_LAST else "contiguous",
            "tile": json.loads(best),
            "why": f"measured on {torch.cuda.get_device_name()}",
        }
        lines.append(json.dumps(row))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Compiles in parallel, measures in turn, prints."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        type=expression,
        metavar="REGEX",
        default="",
        help="only the kernels it is found in: 'op.kernel dtype layout', such as "
        "'depthwise_conv3d.sums bfloat16 channels_last_3d'",
    )
    parser.add_argument("--sample", type=int, default=6, help="layers of an op (6)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile ahead (1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write every row as CSV")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)  # of the jobs: compile only
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device")
    chosen = kinds(arguments.only)
    if not chosen:
        parser.error(f"--only: no kernel matches (got {arguments.only.pattern!r})")
    if arguments.part is not None:
        for kind in chosen:
            for _ in tried(kind, arguments.sample, arguments.part, arguments.jobs):
                pass
        return 0
    if arguments.jobs > 1:
        words = [sys.executable, "-m", "bench.tune", *(sys.argv[1:] if argv is None else argv)]
        parts = [
            subprocess.Popen([*words, "--part", str(i)], cwd=machine.ROOT)
            for i in range(arguments.jobs)
        ]
        if any(list(map(subprocess.Popen.wait, parts))):
            return 1
    rows = []
    clock = CudaClock()
    for kind in chosen:
        found = measure(kind, arguments.sample, clock)
        rows += found
        print(report(kind, found), flush=True)
    if arguments.out:
        write_csv(arguments.out, list(rows[0]), rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
