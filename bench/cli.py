"""`python -m bench`: one run, from its options to its files."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from bench import isa, machine, options, overhead, report, results, suite, targets
from bench.comparison import Comparison
from bench.files import write_atomically
from bench.ops import BENCHES
from bench.red import red_ops
from bench.revisions.session import run as compare_revisions
from bench.suite import Plan
from vmf_kernels import keep_freed_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a suite, or compares revisions; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = options.parser()
    arguments = parser.parse_args(argv)
    plan = options.plan(parser, arguments)
    if arguments.out is not None:
        options.check_folder(parser, arguments.out)
    if arguments.isa:
        isa.restart_limited(arguments.isa, argv)
    if arguments.keep_memory and not keep_freed_memory():
        parser.error("--keep-memory: this system's C library has no such setting")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    stem = options.stem(arguments)
    if arguments.compare:
        files = arguments.out / stem if arguments.out else None
        return compare_revisions(arguments.compare, argv, plan, files, tell)
    told = {"memory": "kept by the process when it is freed"} if arguments.keep_memory else {}
    return Session(arguments.suite, plan, arguments.out, stem, told).run()


class Session:
    """One run: what it measured, and where that goes.

    Args:
        name: of the suite.
        plan: what to measure.
        out: folder of the files; None writes none.
        stem: their name.
        told: facts of the run beside those of the machine.
    """

    def __init__(
        self, name: str, plan: Plan, out: Path | None, stem: str, told: dict[str, str]
    ) -> None:
        self.name, self.plan, self.out, self.stem = name, plan, out, stem
        self.told = told
        self.results: list[Comparison] = []
        self.breakdowns: list[results.Row] = []

    def run(self) -> int:
        """Measures, prints, writes; 1 if anything of ours is wrong, 130 if interrupted."""
        begin = time.perf_counter()
        self.facts = machine.facts(self.plan.device) | self.told
        if self.name == "overhead":
            self.facts["threads"] = str(overhead.THREADS)
        for name, value in self.facts.items():
            tell(f"{name:9} {value}")
        if self.plan.device == "cpu" and os.getloadavg()[0] > 0.5 * (os.cpu_count() or 1):
            tell("warning: this machine is busy with other work; expect wide spreads")
        roofline = self._roofline()
        interrupted = False
        # A time limit ends a run as Ctrl-C does: what was measured until then is not lost.
        handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            for result in self._measure():
                self.results.append(result)
        except KeyboardInterrupt:
            interrupted = True
            tell("interrupted: what follows is what was measured until then")
        finally:
            signal.signal(signal.SIGTERM, handler)
        roofline = roofline.raised_by(self._roofline())
        seconds = time.perf_counter() - begin
        text = self._text(roofline, seconds, interrupted)
        print(text)
        if self.out is not None:
            # A run that was cut short never takes the place of a whole one.
            stem = f"{self.stem}-interrupted" if interrupted else self.stem
            self._write(self.out / stem, text, roofline)
        wrong = sum(bool(r.wrong) for r in self.results)
        if wrong:
            tell(f"{wrong} of {len(self.results)} comparisons: our numbers are WRONG (see above)")
        return 130 if interrupted else int(wrong > 0)

    def _roofline(self) -> machine.Roofline:
        return machine.measure_roofline(self.plan.device, 0.1 if self.plan.check_only else 0.4)

    def _measure(self) -> Iterator[Comparison]:
        if self.name == "model":
            from bench import model  # needs the package vmf; the ops do not

            return model.run(self.plan, tell, self.breakdowns)
        if self.name == "overhead":
            return overhead.run(list(BENCHES.values()), self.plan, tell)
        todo = suite.tasks(list(BENCHES.values()), self.plan)
        if self.plan.tests_first:
            self.plan.red.update(red_ops(list(dict.fromkeys(t.bench.name for t in todo)), tell))
        return suite.run(todo, self.plan, tell)

    def _write(self, stem: Path, text: str, roofline: machine.Roofline) -> None:
        files = {
            ".csv": results.csv_text(self.results, self.facts, roofline),
            ".md": text + "\n",
        }
        if self.breakdowns:
            columns = list(self.breakdowns[0])
            files["-breakdown.csv"] = results.table_text(self.breakdowns, columns, self.facts)
        for ending, content in files.items():
            path = stem.with_name(f"{stem.name}{ending}")
            write_atomically(path, content)
            tell(f"wrote {path}")

    def _text(self, roofline: machine.Roofline, seconds: float, interrupted: bool) -> str:
        title = f"# Benchmark: {self.name} on {self.plan.device}"
        if self.plan.quick:
            title += ", quick"
        if self.plan.sample:
            title += f", at most {self.plan.sample} cases an op"
        if interrupted:
            title += " (interrupted: not all cases)"
        facts = {**self.facts, "roofline": str(roofline), "took": f"{seconds:.0f} s"}
        parts = [title, "\n".join(f"- {name}: {value}" for name, value in facts.items())]
        if self.plan.check_only:
            parts.append("Numbers only: nothing was timed.")
        parts.append(
            "Before it was timed, the numbers of every contender were checked in every row"
            + (", and the op's tests were run." if self._tested else ".")
        )
        if not self.results:
            parts.append("No case matches --only.")
        elif self.name == "model":
            parts.append(report.model_report(self.results, self.breakdowns))
        elif self.name == "overhead":
            parts.append(overhead.report(self.results, targets.overhead(self.facts)))
        else:
            parts.append(report.ops_report(self.results, roofline, targets.targets(self.facts)))
        return "\n\n".join(parts)

    @property
    def _tested(self) -> bool:
        return self.name == "ops" and self.plan.tests_first


def tell(line: str) -> None:
    """Progress, apart from the tables."""
    print(line, file=sys.stderr, flush=True)
