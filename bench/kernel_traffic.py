"""`python -m bench.kernel_traffic`: what the Triton kernels request and execute, without a GPU.

Counted, not derived: some programs of each launch run on the CPU in Triton's interpreter, which
tells every load, store and operation on floats; what they come to is scaled to the whole grid. A
load counts as often as it is requested: what is beyond the least traffic has to come from caches.
`python -m bench --device cuda` prints the rows of `kernel_traffic.csv` beside its times. Kernels in
CUDA C++ are not counted.
"""

import argparse
import dataclasses
import inspect
import math
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.arguments import expression, positive
from bench.cases import Case, DepthwiseCase
from bench.contenders import Call
from bench.files import write_atomically
from bench.op import LAYOUTS, MODES, OpBench, Traffic, evenly
from bench.ops import BENCHES
from bench.results import Row, read, table_text
from vmf_kernels import use_backend

PATH = Path(__file__).with_name("kernel_traffic.csv")
WHICH = ("op", "shape", "mode", "dtype", "layout")
COLUMNS = (*WHICH, "loaded_bytes", "stored_bytes", "flops")
DTYPES = (torch.float32, torch.bfloat16)
# Of each launch so many programs run; one of a convolution takes seconds.
PROGRAMS, PROGRAMS_OF_CONVOLUTIONS = 64, 4
# The interpreter's operations on floats; each counts once for an element of its result.
FLOPS = (
    *("fadd", "fsub", "fmul", "fdiv", "precise_divf"),
    *("maxnumf", "maximumf", "minnumf", "minimumf", "exp", "exp2"),
)


@dataclass
class Counts:
    """What programs did: bytes that they loaded and stored, operations on floats."""

    loaded: float = 0
    stored: float = 0
    flops: float = 0

    def add(self, other: "Counts", times: float) -> None:
        """Adds what `other` did, so many times."""
        self.loaded += times * other.loaded
        self.stored += times * other.stored
        self.flops += times * other.flops


def patching_once(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The interpreter's `_patch_lang`, once a launch for the functions of a module.

    It does so at every call of a function, which takes half of the interpreter's time.
    """
    patched: set[int] = set()

    def patch_once(function: Any) -> Any:
        module = id(function.__globals__)
        if module in patched:
            return None
        scope, first = patch(function), not patched
        patched.add(module)
        if first:  # that of the launch, which ends with it
            scope.restore = ended(scope.restore)
        return scope

    def ended(restore: Callable[[], None]) -> Callable[[], None]:
        def restore_and_forget() -> None:
            restore()
            patched.clear()

        return restore_and_forget

    return patch_once


@contextmanager
def counting(programs: int) -> Iterator[Counts]:
    """Inside, each launch in the interpreter runs so many programs, and counts as a whole.

    What such a launch writes is in parts not written; nothing may be read from it.
    """
    from triton.runtime import interpreter

    total, launch = Counts(), Counts()
    originals: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        original = getattr(owner, name)
        originals.append((owner, name, original))
        setattr(owner, name, make(original))

    def after(note: Callable[..., None]) -> Callable[[Any], Any]:
        """Makes of a method one that also calls `note(result, *arguments)`."""

        def make(original: Any) -> Any:
            def method(self: Any, *arguments: Any) -> Any:
                result = original(self, *arguments)
                note(result, *arguments)
                return result

            return method

        return make

    def size(pointers: Any, mask: Any) -> int:
        return int(np.count_nonzero(mask.data)) * pointers.get_element_ty().primitive_bitwidth // 8

    def loads(_: Any, pointers: Any, mask: Any, *rest: Any) -> None:
        launch.loaded += size(pointers, mask)

    def stores(_: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> None:
        launch.stored += size(pointers, mask)

    def operation(result: Any, *_: Any) -> None:
        launch.flops += np.size(result.data)

    def fused(result: Any, *_: Any) -> None:
        launch.flops += 2 * np.size(result.data)

    def matrices(_: Any, a: Any, b: Any, *rest: Any) -> None:
        launch.flops += 2 * np.size(a.data) * b.data.shape[-1]

    def reduction(results: Any, inputs: Any) -> None:
        results = results if isinstance(results, list | tuple) else [results]
        for given, left in zip(inputs, results, strict=True):
            if given.dtype.is_floating():
                launch.flops += np.size(given.handle.data) - np.size(left.handle.data)

    def launches(_: Any) -> Any:
        def run(self: Any, *arguments: Any, **options: Any) -> None:
            nonlocal launch
            launch = Counts()
            whole, ran = _run_some(interpreter, self, programs, arguments, options)
            total.add(launch, whole / ran)

        return run

    def unchecked(options: Any) -> Any:
        """Without a look for overflows of integers, which takes half of the time."""
        return dataclasses.replace(options, sanitize_overflow=False)

    builder = interpreter.InterpreterBuilder
    replace(interpreter, "_patch_lang", patching_once)
    replace(interpreter.interpreter_builder, "options", unchecked)
    replace(builder, "create_masked_load", after(loads))
    replace(builder, "create_masked_store", after(stores))
    for name in FLOPS:
        replace(builder, f"create_{name}", after(operation))
    replace(builder, "create_fma", after(fused))
    replace(builder, "create_dot", after(matrices))
    replace(interpreter.ReduceOps, "apply_impl", after(reduction))
    replace(interpreter.GridExecutor, "__call__", launches)
    try:
        yield total
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _run_some(
    interpreter: Any,
    executor: Any,
    most: int,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> tuple[int, int]:
    """As `GridExecutor.__call__`, for at most so many programs: how many there are, and ran."""
    function, builder = executor.fn, interpreter.interpreter_builder
    names = inspect.getfullargspec(function)
    known = {k: v for k, v in options.items() if k in (*names.args, *names.kwonlyargs)}
    scope = interpreter._patch_lang(function)
    try:
        values = inspect.getcallargs(function, *arguments, **known)
        for name in values.keys() - set(executor.constexprs):
            values[name] = interpreter._implicit_cvt(values[name])
        grid = executor.grid(values) if callable(executor.grid) else executor.grid
        grid = (*grid, *(1,) * (3 - len(grid)))
        builder.set_grid_dim(*grid)
        whole = math.prod(grid)
        chosen = random.Random(0).sample(range(whole), min(most, whole))
        for program in chosen:
            builder.set_grid_idx(*map(int, np.unravel_index(program, grid)))
            function(**values)
    finally:
        scope.restore()
    return whole, len(chosen)


def count(
    bench: OpBench,
    case: Case,
    mode: str,
    dtype: torch.dtype,
    layout: str,
    programs: int | None = None,
) -> Counts:
    """What one call does, in a process where Triton's interpreter is on."""
    if programs is None:
        convolves = isinstance(case, DepthwiseCase)
        programs = PROGRAMS_OF_CONVOLUTIONS if convolves else PROGRAMS
    torch.manual_seed(0)
    call = Call(bench.ours, case, bench.inputs(case), bench.features, layout, dtype, "cpu")
    with use_backend("triton"), counting(programs) as total, np.errstate(all="ignore"):
        call.work(mode)()
    return total


def committed(op: str, shape: str, mode: str, dtype: str) -> dict[str, Traffic]:
    """What `kernel_traffic.csv` tells of a call, by layout; empty where it was not counted."""
    found = {layout: _table().get((op, shape, mode, dtype, layout)) for layout in LAYOUTS}
    return {layout: traffic for layout, traffic in found.items() if traffic}


@cache
def _table() -> dict[tuple[str, ...], Traffic]:
    return {
        key_of(row): Traffic(int(row["loaded_bytes"]) + int(row["stored_bytes"]), int(row["flops"]))
        for row in read(PATH).rows
    }


def key_of(row: Row) -> tuple[str, ...]:
    """Op, shape, mode, dtype and layout of a row."""
    return tuple(row[name] for name in WHICH)


def calls(only: re.Pattern[str], sample: int | None) -> dict[tuple[str, ...], tuple[Any, ...]]:
    """By what names a row, the arguments of `_count`, for each shape, mode, dtype and layout."""
    chosen: dict[tuple[str, ...], tuple[Any, ...]] = {}
    for bench in BENCHES.values():
        for mode in MODES:
            cases = [c for c in bench.cases() if only.search(f"{bench.name} {c} {mode}")]
            for case in evenly(cases, sample or len(cases)):
                for dtype, layout in product(DTYPES, LAYOUTS):
                    name = str(dtype).removeprefix("torch.")
                    which = (bench.name, case.label, mode, name, layout)
                    chosen[which] = (bench.name, case, mode, dtype, layout)
    return chosen


def rows(
    chosen: dict[tuple[str, ...], tuple[Any, ...]], tell: Callable[[str], None]
) -> Iterator[Row]:
    """A row for each of the `calls`, counted on all CPUs."""
    begin = time.perf_counter()
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        counted = processes.map(_count, *zip(*chosen.values(), strict=True))
        for number, (which, found) in enumerate(zip(chosen, counted, strict=True), 1):
            name, case, mode, dtype, _ = chosen[which]
            least = BENCHES[name].traffic(case, mode, dtype.itemsize)
            spent = time.perf_counter() - begin
            tell(
                f"[{number}/{len(chosen)}] {' '.join(which)}: "
                f"{(found.loaded + found.stored) / least.bytes:.2f} of the least bytes, "
                f"{found.flops / least.flops:.2f} of the least operations  "
                f"({spent:.0f} s, about {spent / number * (len(chosen) - number):.0f} s left)"
            )
            yield dict(zip(COLUMNS, (*which, *(f"{n:.0f}" for n in astuple(found))), strict=True))


def _count(op: str, *rest: Any) -> Counts:
    torch.set_num_threads(1)
    return count(BENCHES[op], *rest)


def main(argv: Sequence[str] | None = None) -> int:
    """Counts, and writes the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernel_traffic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        type=expression,
        metavar="REGEX",
        default="",
        help="only the cases it is found in: 'op model shape mode'; other rows of the file stay",
    )
    parser.add_argument(
        "--sample", type=positive, metavar="N", help="at most N cases of each op and mode"
    )
    parser.add_argument("--out", type=Path, default=PATH, help="the file to write (%(default)s)")
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") != "1":  # read when Triton is imported
        command = [sys.executable, "-m", "bench.kernel_traffic", *argv]
        os.execve(sys.executable, command, {**os.environ, "TRITON_INTERPRET": "1"})

    def tell(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    only = arguments.only
    chosen = calls(only, arguments.sample)
    if not chosen:
        parser.error(f"--only: found in no case's 'op model shape mode' (got {only.pattern!r})")
    table = {}
    if (only.pattern or arguments.sample) and arguments.out.exists():
        table = {key_of(row): row for row in read(arguments.out).rows}
    for row in rows(chosen, tell):
        table[key_of(row)] = row
    facts = {"programs of a launch": f"{PROGRAMS}, of convolutions {PROGRAMS_OF_CONVOLUTIONS}"}
    write_atomically(arguments.out, table_text(table.values(), COLUMNS, facts))
    tell(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
