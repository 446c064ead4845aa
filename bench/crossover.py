"""`python -m bench.crossover`: where PyTorch's forward of `depthwise_conv3d` is ahead.

A grid of channels-last layers in one dtype, ours against eager, in one thread and in all. The rules
of csrc/bindings/depthwise_conv3d_crossover.h come from its rows; tests hold them against these.
"""

import argparse
import csv
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from bench import isa, machine
from bench.cases import DepthwiseCase, Triple
from bench.contenders import Call
from bench.files import write_csv
from bench.op import CHANNELS_LAST
from bench.ops.depthwise_conv3d import BENCH, EAGER
from bench.timing import Effort, cpu_clock, interleave
from vmf_kernels import _extension, use_backend

NAME = "depthwise_conv3d-crossover"
COLUMNS = (
    *("isa", "dtype", "threads", "batch", "channels", "multiplier", "input", "kernel", "stride"),
    *("padding", "ours_ms", "pytorch_ms", "ratio"),
)
KERNELS: tuple[tuple[Triple, Triple], ...] = (
    ((3, 3, 3), (1, 1, 1)),
    ((3, 3, 3), (1, 2, 2)),
    ((1, 3, 3), (1, 1, 1)),
    ((1, 5, 5), (1, 1, 1)),
    ((3, 5, 5), (1, 1, 1)),
    ((3, 1, 1), (1, 1, 1)),
    ((5, 1, 1), (1, 1, 1)),
)
CHANNELS = (12, 24, 48, 96, 192, 384, 768)
SIDES = (4, 7, 10, 14, 20, 28, 34, 40, 56)
DTYPES = ("float32", "bfloat16", "float16")
FRAMES, BATCHES = 8, (1, 4)
MOST_ELEMENTS = 5_000_000  # of the input
EFFORT = Effort(seconds=0.04, rounds=7, most_rounds=25, slow_factor=1e9, sample_seconds=1e-3)


def cases() -> Iterator[DepthwiseCase]:
    """The grid."""
    for (kernel, stride), channels, side, batch in itertools.product(
        KERNELS, CHANNELS, SIDES, BATCHES
    ):
        size = (FRAMES, side, side)
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        if batch * channels * FRAMES * side**2 <= MOST_ELEMENTS:
            yield DepthwiseCase("grid", batch, 1, channels, 1, size, kernel, stride, padding)


def measure(case: DepthwiseCase, dtype: torch.dtype) -> tuple[float, float, float]:
    """Milliseconds of ours and of eager, and how many times faster ours is."""
    inputs = BENCH.inputs(case)

    def forced(case: DepthwiseCase, *tensors: torch.Tensor) -> torch.Tensor:
        with use_backend("cpu"):
            return BENCH.ours(case, *tensors)

    calls: dict[str, Callable[[], object]] = {
        name: Call(run, case, inputs, BENCH.features, CHANNELS_LAST, dtype, "cpu").forward
        for name, run in (("ours", forced), ("eager", EAGER.run))
    }
    with torch.no_grad():
        for call in calls.values():
            call()
        times = interleave(calls, cpu_clock, EFFORT)
    ratio = times.ratio("ours", "eager")[0]
    return 1e3 * times.median("ours"), 1e3 * times.median("eager"), ratio


def rows(kernels: str, dtype: str) -> Iterator[dict[str, str]]:
    """One for each case and number of threads."""
    every = torch.get_num_threads()
    for threads in dict.fromkeys((1, every)):
        torch.set_num_threads(threads)
        for case in cases():
            ours, eager, ratio = measure(case, getattr(torch, dtype))
            values = (kernels, dtype, threads, case.batch, case.in_channels, case.multiplier)
            shapes = (case.size, case.kernel, case.stride, case.padding)
            texts = [*map(str, values), *("x".join(map(str, s)) for s in shapes)]
            texts += [f"{ours:.4f}", f"{eager:.4f}", f"{ratio:.2f}"]
            yield dict(zip(COLUMNS, texts, strict=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Measures the grid with one instruction set and dtype; writes its rows beside the others."""
    parser = argparse.ArgumentParser(prog="python -m bench.crossover", description=__doc__)
    parser.add_argument("--isa", choices=isa.LIMITS, help="limit ours and PyTorch to it")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the tensors")
    parser.add_argument("--out", type=Path, help="folder (bench/results/MACHINE)")
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(argv)
    if arguments.isa:
        isa.restart_limited(arguments.isa, argv, "bench.crossover")
    if _extension._C is None:
        parser.error(_extension.REASON)
    kernels = _extension._C.current_isa()
    folder = arguments.out or machine.ROOT / "bench" / "results" / machine.folder_name("cpu")
    path = folder / f"{NAME}.csv"
    key, kept = (kernels, arguments.dtype), []
    if path.exists():
        with path.open() as file:
            kept = [row for row in csv.DictReader(file) if (row["isa"], row["dtype"]) != key]
    # Until a large block was freed, as happens in any process with a network, the C library gives
    # the end of its heap back to the system again and again, and calls map their outputs anew.
    torch.empty(31 << 20, dtype=torch.uint8)
    found = []
    for row in rows(*key):
        found.append(row)
        if float(row["ratio"]) < 1:
            print(*row.values(), file=sys.stderr)
    write_csv(path, COLUMNS, kept + found)
    print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
