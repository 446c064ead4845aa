"""`python -m bench.everything`: every result that is committed, its pictures and tables.

Runs the suites one after the other, each in a process of its own, and writes into
bench/results/MACHINE. With --quick it takes some 25 minutes on two cores, without it an hour and a
half. A step that fails is named at the end; the others run all the same. Leave the machine alone
meanwhile.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import isa, machine

SAMPLE = 6  # cases of each op in 16 bits
# Their tests ran before: those of float32.
SIXTEEN_BITS = (
    "--skip-tests",
    "--sample",
    str(SAMPLE),
    "--dtype",
    "bfloat16",
    "--dtype",
    "float16",
)


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        title: what it makes.
        command: its words, after `python -m`.
        minutes: it takes about so long on two cores.
    """

    title: str
    command: tuple[str, ...]
    minutes: float


def steps(folder: Path, quick: bool, isas: Sequence[str | None]) -> list[Step]:
    """Everything to run, in order.

    Args:
        folder: of the results.
        quick: fewer cases, smaller batches, fewer rounds.
        isas: instruction sets; None is what the machine has.
    """
    bench = ("bench", "--out", str(folder), *(["--quick"] if quick else []))
    found = []
    for name in isas:
        limited = ("--isa", name) if name else ()
        with_isa = f", {name}" if name else ""
        found.append(
            Step(f"every op{with_isa}", (*bench, *limited, "--suite", "ops"), (20, 6.5)[quick])
        )
        found.append(
            Step(
                f"16-bit, {SAMPLE} cases an op{with_isa}",
                (*bench, *limited, *SIXTEEN_BITS),
                (5, 3)[quick],
            )
        )
        found.append(
            Step(
                f"call overhead{with_isa}",
                (*bench, *limited, "--suite", "overhead"),
                0.7,
            )
        )
    compiled = () if quick else ("--peers", "all")
    found.append(Step("networks", (*bench, "--suite", "model", *compiled), (45, 4)[quick]))
    kept = (*bench, "--suite", "model", "--keep-memory")
    found.append(Step("networks, freed memory kept", kept, (8, 4)[quick]))
    found.append(Step("pictures", ("bench.draw", str(folder)), 0.1))
    found.append(Step("tables of the READMEs", ("bench.readme",), 0.1))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the steps; 0 only if all succeed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.everything",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="25 minutes instead of 1.5 hours")
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    parser.add_argument(
        "--only",
        metavar="WORD",
        default="",
        help="only the steps with this word in their title, such as avx2, networks or pictures",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="another folder (bench/results/MACHINE); the READMEs show what is in theirs",
    )
    arguments = parser.parse_args(argv)
    folder = arguments.out or machine.ROOT / "bench" / "results" / machine.folder_name("cpu")
    found = steps(folder, arguments.quick, instruction_sets())
    chosen = [step for step in found if arguments.only in step.title]
    if not chosen:
        parser.error(f"--only: no step has it in its title (got {arguments.only!r})")
    if arguments.dry_run:
        for step in chosen:
            print(
                f"# {step.title}, about {step.minutes:g} min\npython -m {shlex.join(step.command)}"
            )
        return 0
    return run(chosen, _start)


def instruction_sets() -> list[str | None]:
    """What the machine has, and AVX2 where it has more: the targets are set for that."""
    more = isa.refusal("avx512") is None
    return [None, "avx2"] if more else [None]


def run(
    todo: Sequence[Step],
    start: Callable[[Step], int],
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Runs all, telling how far it is and how long the rest takes; says at the end what failed.

    Args:
        todo: the steps.
        start: runs one, returns its exit status.
        clock: seconds.
    """
    begin = clock()
    failed = []
    for number, step in enumerate(todo):
        spent = (clock() - begin) / 60
        left = sum(later.minutes for later in todo[number:])
        done = sum(earlier.minutes for earlier in todo[:number])
        # This machine's pace, once it is known.
        left *= spent / done if done >= 1 else 1
        print(
            f"\n== [{number + 1}/{len(todo)}] {step.title}: "
            f"{spent:.0f} min spent, about {left:.0f} min left",
            file=sys.stderr,
            flush=True,
        )
        if start(step):
            failed.append(step)
    minutes = (clock() - begin) / 60
    print(
        f"\n== {len(todo) - len(failed)} of {len(todo)} steps in {minutes:.0f} min", file=sys.stderr
    )
    for step in failed:
        print(f"FAILED: {step.title}: python -m {shlex.join(step.command)}", file=sys.stderr)
    return int(bool(failed))


def _start(step: Step) -> int:
    # The tables go to files; here only the progress is wanted.
    done = subprocess.run(
        [sys.executable, "-m", *step.command],
        cwd=machine.ROOT,
        env={**os.environ, "PYTHONPATH": _path()},
        stdout=subprocess.DEVNULL,
    )
    return done.returncode


def _path() -> str:
    """This tree before others, whatever is installed."""
    return os.pathsep.join(filter(None, [str(machine.ROOT), os.environ.get("PYTHONPATH")]))


if __name__ == "__main__":
    sys.exit(main())
