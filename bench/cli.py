"""`python -m bench`: the command line."""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import machine, report, suite
from bench.comparison import Comparison
from bench.files import write_atomically
from bench.ops import BENCHES
from bench.red import red_ops
from bench.suite import Plan
from bench.timing import FULL, QUICK, CudaClock, Effort, cpu_clock

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULT_DTYPES = {"cpu": ["float32"], "cuda": ["float32", "bfloat16"]}

DESCRIPTION = """\
Measures the kernels of this project against PyTorch's own ways, on the layers of real networks.

Every contender of a case runs once in every round, so that a machine that slows down slows all of
them; a speed-up is the median over rounds of the ratio to the best peer in its best layout. Numbers
are checked first: where ours are wrong there is no speed-up, and the exit status is 1."""

EXAMPLES = """\
examples:
  python -m bench --suite ops --device cpu --quick         minutes: every 3x3x3 layer, small batches
  python -m bench --only 'depthwise.*x3d_s'                one op on one network
  python -m bench --only 'k3x3x3.*forward.backward'        one kernel, training only
  python -m bench --only dynamic_relu --peers all          with compiled peers too
  python -m bench --suite model --out /tmp/results         whole networks; CSV and Markdown as well
  python -m bench --quick --check-only --dtype bfloat16    are the numbers right? No timing

how to read it: bench/README.md"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the suites; returns the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    plan = _plan(parser, arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.out is not None:
        _check_folder(parser, arguments.out)
    return Session(arguments.suite, plan, arguments.out).run()


class Session:
    """One run: what it measured, and where that goes.

    Args:
        name: of the suite.
        plan: what to measure.
        out: folder of the files; None writes none.
    """

    def __init__(self, name: str, plan: Plan, out: Path | None) -> None:
        self.name, self.plan, self.out = name, plan, out
        self.results: list[Comparison] = []

    def run(self) -> int:
        """Measures, prints, writes; 1 if anything of ours is wrong, 130 if interrupted."""
        begin = time.perf_counter()
        self.facts = machine.facts(self.plan.device)
        for name, value in self.facts.items():
            tell(f"{name:9} {value}")
        if self.plan.device == "cpu" and os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1):
            tell("warning: this machine is busy with other work; expect wide spreads")
        roofline = self._roofline()
        interrupted = False
        try:
            self._measure()
        except KeyboardInterrupt:
            interrupted = True
            tell("interrupted: what follows is what was measured until then")
        roofline = roofline.raised_by(self._roofline())
        seconds = time.perf_counter() - begin
        text = self._text(roofline, seconds, interrupted)
        print(text)
        if self.out is not None and not interrupted:
            stem = f"{self.name}-{self.plan.device}{'-quick' if self.plan.quick else ''}"
            csv = report.csv_text(self.results, self.facts, roofline)
            for path, content in ((f"{stem}.csv", csv), (f"{stem}.md", text + "\n")):
                write_atomically(self.out / path, content)
                tell(f"wrote {self.out / path}")
        wrong = sum(bool(r.wrong) for r in self.results)
        if wrong:
            tell(f"{wrong} of {len(self.results)} comparisons: our numbers are WRONG (see above)")
        return 130 if interrupted else int(wrong > 0)

    def _roofline(self) -> machine.Roofline:
        return machine.measure_roofline(self.plan.device, 0.1 if self.plan.check_only else 0.4)

    def _measure(self) -> None:
        if self.name == "model":
            from bench import model  # needs the package vmf; the ops do not

            found = model.run(self.plan, tell)
        else:
            todo = suite.tasks(list(BENCHES.values()), self.plan)
            if self.plan.tests_first:
                self.plan.red.update(red_ops(list(dict.fromkeys(t.bench.name for t in todo)), tell))
            found = suite.run(todo, self.plan, tell)
        for result in found:
            self.results.append(result)

    def _text(self, roofline: machine.Roofline, seconds: float, interrupted: bool) -> str:
        title = f"# Benchmark: {self.name} on {self.plan.device}"
        if self.plan.quick:
            title += ", quick"
        if interrupted:
            title += " (interrupted: not all cases)"
        facts = {**self.facts, "roofline": str(roofline), "took": f"{seconds:.0f} s"}
        parts = [title, "\n".join(f"- {name}: {value}" for name, value in facts.items())]
        if self.plan.check_only:
            parts.append("Numbers only: nothing was timed.")
        parts.append(
            "Before it was timed, the numbers of every contender were checked in every row"
            + (", and the op's tests were run." if self.plan.tests_first else ".")
        )
        if self.name == "model":
            parts.append(report.model_report(self.results))
        for op in BENCHES if self.name == "ops" else ():
            if found := [r for r in self.results if r.op == op]:
                parts.append(report.op_report(op, found, roofline))
        if not self.results:
            parts.append("No case matches --only.")
        return "\n\n".join(parts)


def tell(line: str) -> None:
    """Progress, apart from the tables."""
    print(line, file=sys.stderr, flush=True)


def _plan(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Plan:
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    try:
        only = re.compile(arguments.only)
    except re.error as error:
        parser.error(f"--only: not a regular expression: {error} (got {arguments.only!r})")
    effort: Effort = QUICK if arguments.quick else FULL
    return Plan(
        device=arguments.device,
        dtypes=tuple(DTYPES[d] for d in arguments.dtype or DEFAULT_DTYPES[arguments.device]),
        quick=arguments.quick,
        only=only,
        all_peers=arguments.peers == "all",
        check_only=arguments.check_only,
        effort=effort,
        tests_first=not (arguments.quick or arguments.check_only or arguments.skip_tests),
        clock=CudaClock() if arguments.device == "cuda" else cpu_clock,
    )


def _check_folder(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Finds out before the minutes of measuring whether the results can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / ".writable", "")
        (folder / ".writable").unlink()
    except OSError as error:
        parser.error(f"--out {folder}: {error.strerror or error}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 (got {value})")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--suite",
        choices=("ops", "model"),
        default="ops",
        help="ops: layer by layer (the default); model: inference and training step of networks",
    )
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where (cpu)")
    add(
        "--quick",
        action="store_true",
        help="minutes instead of an hour: every 3x3x3 depthwise layer and a sample of the others, "
        "large batches shrunk (the tables say which), fewer rounds",
    )
    add(
        "--only",
        metavar="REGEX",
        default="",
        help="only the cases it is found in: 'op model shape mode', such as "
        "'depthwise_conv3d x3d_s 8x54x13x40x40 k3x3x3 forward+backward'",
    )
    add(
        "--dtype",
        action="append",
        choices=DTYPES,
        help="may be repeated; float32, on cuda also bfloat16 by default. The model suite runs "
        "16-bit ones as autocast",
    )
    add(
        "--peers",
        choices=("default", "all"),
        default="default",
        help="all: the slow-to-prepare ones too (compiled by Inductor, sum of conv2d)",
    )
    add("--threads", type=_positive, metavar="N", help="CPU threads (torch's own choice)")
    add("--check-only", action="store_true", help="check the numbers of ours, time nothing")
    add(
        "--skip-tests",
        action="store_true",
        help="do not run the op's tests first (--quick and --check-only never do); the numbers "
        "of every case are checked in any event",
    )
    add("--out", type=Path, metavar="DIR", help="also write DIR/SUITE-DEVICE.csv and .md")
    return parser
