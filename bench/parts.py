"""`python -m bench.parts`: each part of a training step of `depthwise_conv3d`, timed alone.

Forward, input gradient and weight gradient of every kind of kernels and of PyTorch, in both
layouts, beside the time of one pass over what the part reads and writes, at the speed of a copy far
larger than the caches (below 1 where a CPU's caches hold it): where the time of a training step
goes, and which kernels a part should be left to.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from bench import machine
from bench.arguments import expression, positive
from bench.cases import DepthwiseCase
from bench.files import write_csv
from bench.op import LAYOUTS, evenly
from bench.ops.depthwise_conv3d import BENCH
from bench.options import DTYPES
from bench.timing import KERNELS, Clock, CudaClock, cpu_clock, geomean, interleave
from vmf_kernels import _cuda, _extension, _triton
from vmf_kernels.ops.depthwise_conv3d.cuda_gains import PARTS
from vmf_kernels.ops.depthwise_conv3d.library import CUDA_OPERATORS, OPERATORS, TRITON_OPERATORS

COLUMNS = ("case", "dtype", "layout", "part", "kernels", "us", "pass_us")
ONE = (1, 1, 1)
Key = tuple[str, str, str]  # layout, part, kernels


def kinds(device: str) -> dict[str, Any]:
    """The operators of each kind of kernels on a device; PyTorch's stand for themselves."""
    found: dict[str, Any] = {"pytorch": None}
    if device == "cpu" and _extension._C is not None:
        found["cpu"] = OPERATORS
    if device == "cuda" and _triton.missing() is None:
        found["triton"] = TRITON_OPERATORS
    if device == "cuda" and _cuda.missing() is None:
        found["cuda"] = CUDA_OPERATORS
    return found


def calls(
    case: DepthwiseCase, dtype: torch.dtype, device: str
) -> Iterator[tuple[Key, Callable[[], Any]]]:
    """Every part by every kind of kernels that runs it; each has run once."""
    torch.manual_seed(0)
    with torch.device(device):
        tensors = [t.to(dtype) for t in BENCH.inputs(case)]
    output = (case.batch, case.out_channels, *case.output_size)
    grad = torch.randn(output, device=device).to(dtype)
    weight, kernel = tensors[1], list(case.kernel)
    geometry = (case.stride, tuple(p for p in case.padding for _ in range(2)), ONE)
    for layout, order in LAYOUTS.items():
        x, g = (t.contiguous(memory_format=order) for t in (tensors[0], grad))
        for name, operators in kinds(device).items():
            runs: tuple[Callable[[], Any] | None, ...] = _pytorch(case, x, weight, g)
            if operators is not None:
                runs = tuple(
                    _operator(operator, device, arguments)
                    for operator, arguments in (
                        (operators.forward, (x, weight, None, *geometry)),
                        (operators.transpose, (g, weight, None, list(x.shape), *geometry)),
                        (operators.grad_weight, (g, x, kernel, *geometry)),
                    )
                )
            for part, run in zip(PARTS, runs, strict=True):
                if run is not None:
                    run()
                    yield (layout, part, name), run


def _operator(operator: Any, device: str, arguments: tuple[Any, ...]) -> Callable[[], Any] | None:
    """A call of an operator; None where its reference would run instead of its kernels."""
    if device == "cuda" and operator.refusal(*arguments):
        return None
    return partial(operator, *arguments)


def _pytorch(case: DepthwiseCase, x: Any, weight: Any, grad: Any) -> tuple[Callable[[], Any], ...]:
    settings = (case.stride, case.padding, ONE)

    def backward(*wanted: bool) -> Callable[[], Any]:
        return lambda: torch.ops.aten.convolution_backward(
            grad, x, weight, None, *settings, False, [0, 0, 0], case.in_channels, wanted
        )

    return (
        lambda: torch.nn.functional.conv3d(x, weight, None, *settings, groups=case.in_channels),
        backward(True, False, False),
        backward(False, True, False),
    )


def measure(
    case: DepthwiseCase, dtype: torch.dtype, device: str, clock: Clock, copy: float
) -> Iterator[dict[str, str]]:
    """The rows of one case, where a copy moves `copy` bytes a second."""
    with torch.no_grad():
        work = dict(calls(case, dtype, device))
        times = interleave(work, clock, KERNELS)
    inputs = case.batch * case.in_channels * math.prod(case.size)
    outputs = case.batch * case.out_channels * math.prod(case.output_size)
    one_pass = (inputs + outputs) * dtype.itemsize / copy
    for layout, part, name in work:
        seconds = times.median((layout, part, name))
        values = (str(case), str(dtype).removeprefix("torch."), layout, part, name)
        texts = (*values, f"{seconds * 1e6:.1f}", f"{one_pass * 1e6:.3f}")
        yield dict(zip(COLUMNS, texts, strict=True))


def summary(rows: Sequence[dict[str, str]]) -> str:
    """Passes over the memory that each part takes, on the layers that all kinds of kernels ran.

    Of each the geometric mean of the layers, and all their time over that of all passes: in small
    layers the launch counts as much as the memory.
    """
    grouped: dict[tuple[str, ...], dict[str, dict[str, tuple[float, float]]]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("dtype", "part", "layout"))
        times = (float(row["us"]), float(row["pass_us"]))
        grouped.setdefault(key, {}).setdefault(row["kernels"], {})[row["case"]] = times
    lines = ["dtype     part             layout            kernels  layers   mean  by time"]
    for (dtype, part, layout), kinds_ in sorted(grouped.items()):
        shared = set.intersection(*(set(cases) for cases in kinds_.values()))
        for name, cases in kinds_.items() if shared else ():
            found = [cases[case] for case in shared]
            mean = geomean([us / one for us, one in found])
            by_time = sum(us for us, _ in found) / sum(one for _, one in found)
            what = f"{dtype:9} {part:16} {layout:17} {name:8}"
            lines.append(f"{what} {len(found):6} {mean:6.2f} {by_time:8.2f}")
    return "\n".join(lines)


def chosen_layers(cases: Sequence[Any], sample: int) -> list[DepthwiseCase]:
    """So many of each kind that `cuda_gains` tells apart: first one of each, then the others."""
    found: dict[Any, list[DepthwiseCase]] = {}
    for case in cases:
        found.setdefault((case.kernel, case.stride, case.multiplier > 1), []).append(case)
    samples = [list(evenly(of_kind, sample)) for of_kind in found.values()]
    return [case for row in zip_longest(*samples) for case in row if case is not None]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a line for each part and a summary, and writes every row."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.parts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where (cpu)")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="may be repeated (all)")
    parser.add_argument("--only", type=expression, default="", metavar="REGEX")
    parser.add_argument(
        "--sample",
        type=positive,
        default=2,
        metavar="N",
        help="layers of each kind: kernel, stride, whether there is a multiplier (2)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="also write every row as CSV, after each layer"
    )
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    chosen = [case for case in BENCH.cases() if arguments.only.search(str(case))]
    if not chosen:
        parser.error(f"--only: no layer matches (got {arguments.only.pattern!r})")
    clock = CudaClock() if arguments.device == "cuda" else cpu_clock
    copy = machine.measure_roofline(arguments.device).memory_bandwidth
    print(f"a copy: {copy / 1e9:.0f} GB/s")
    rows = []
    for case in chosen_layers(chosen, arguments.sample):
        for name in arguments.dtype or DTYPES:
            for row in measure(case, DTYPES[name], arguments.device, clock, copy):
                rows.append(row)
                print(*row.values(), sep="  ", flush=True)
        if arguments.out:  # a run that is cut short keeps what it measured
            write_csv(arguments.out, COLUMNS, rows)
    print(summary(rows))
    if arguments.out:
        print(f"wrote {arguments.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
