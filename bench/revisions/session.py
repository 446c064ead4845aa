"""Old against new: who takes turns, and what is printed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import machine, suite
from bench.comparison import Key
from bench.files import write_atomically
from bench.markdown import markdown_table, three_digits
from bench.op import LAYOUTS
from bench.ops import BENCHES
from bench.results import table_text
from bench.revisions.tree import (
    CompareError,
    build_extension,
    checked_out,
    commit_of,
    overlay,
    stale,
)
from bench.suite import Plan, Task
from bench.timing import Times, geomean, interleave

OLD, NEW = "old", "new"
COLUMNS = ["op", "model", "shape", "mode", "dtype", "layout", "status"]
COLUMNS += ["old_ms", "new_ms", "speedup", "speedup_q20", "speedup_q80", "rounds"]
# Between two processes: the threads of the one that was timed go to sleep.
PAUSE = 0.005


class Side:
    """The process of one revision.

    Args:
        name: OLD or NEW.
        folder: to start in; Python finds `bench` and the packages measured there.
        argv: the arguments of `python -m bench`.
    """

    def __init__(self, name: str, folder: Path, argv: Sequence[str]) -> None:
        self.name = name
        # The folder before all else, an editable installation included.
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.revisions.worker", *argv],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def begin(self, measured: Path) -> dict[str, Any]:
        """Its first answer; makes sure that it runs the packages of the tree `measured`."""
        facts = self._answer()
        if not Path(facts["path"]).resolve().is_relative_to(measured.resolve()):
            raise CompareError(f"the {self.name} process imported {facts['path']}")
        return facts

    def ask(self, **message: Any) -> dict[str, Any]:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: reading tells
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise CompareError(
                f"the process of the {self.name} revision ended with status "
                f"{self.process.wait()} (what it said stands above)"
            )
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def end(self) -> None:
        """Ends the process, whatever it does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()


@dataclass
class Outcome:
    """One case, old against new.

    Attributes:
        task: the case.
        dtype: its name.
        times: of (OLD or NEW, layout).
        wrong: whose numbers are not right, and why.
    """

    task: Task
    dtype: str
    times: Times[Key] = field(default_factory=Times)
    wrong: dict[Key, str] = field(default_factory=dict)

    def speedup(self, layout: str) -> tuple[float, float, float] | None:
        """How many times faster the new one is: median, 20% and 80% quantiles over rounds."""
        old, new = (OLD, layout), (NEW, layout)
        if old not in self.times.seconds or new not in self.times.seconds:
            return None
        return self.times.ratio(new, old)


def run(
    revision: str,
    argv: Sequence[str],
    plan: Plan,
    files: Path | None,
    tell: Callable[[str], None],
    root: Path = machine.ROOT,
    build: Callable[[Path], None] = build_extension,
) -> int:
    """Builds a revision, compares this tree with it, prints, writes; returns the exit status.

    Args:
        revision: of `root`, in any words that git understands.
        argv: the arguments of `python -m bench`.
        plan: what to measure.
        files: path of the results without their endings; None writes none.
        tell: is told the progress.
        root: the repository that has the revision.
        build: builds the extension in the folder it is given.
    """
    try:
        return _run(revision, argv, plan, files, tell, root, build)
    except CompareError as error:
        tell(f"--compare: {error}")
        return 1


def _run(
    revision: str,
    argv: Sequence[str],
    plan: Plan,
    files: Path | None,
    tell: Callable[[str], None],
    root: Path,
    build: Callable[[Path], None],
) -> int:
    commit = commit_of(root, revision)
    if stale(machine.ROOT):
        tell("warning: sources are newer than the extension of this tree; `make build` first?")
    todo = suite.tasks(list(BENCHES.values()), plan)
    facts = machine.facts(plan.device)
    facts["old"], facts["new"] = f"{revision} ({commit[:12]})", facts.pop("revision")
    outcomes: list[Outcome] = []
    status = 0
    try:
        tell(f"building {facts['old']} in a temporary folder: minutes")
        with checked_out(root, commit, build) as (tree, beside), ExitStack() as stack:
            sides = {}
            for name, measured in ((OLD, tree), (NEW, machine.ROOT)):
                folder = overlay(beside, name, machine.ROOT, measured)
                sides[name] = stack.enter_context(_running(Side(name, folder, argv)))
                facts[f"{name} kernels"] = sides[name].begin(measured)["kernels"]
            for outcome in compare(todo, sides, plan, tell):
                outcomes.append(outcome)
    except KeyboardInterrupt:
        tell("interrupted: what follows is what was measured until then")
        status = 130
    text = report(outcomes, facts)
    print(text)
    if files is not None and not status:
        rows = [row for outcome in outcomes for row in rows_of(outcome)]
        for ending, content in ((".csv", table_text(rows, COLUMNS, facts)), (".md", text + "\n")):
            path = files.with_name(files.name + ending)
            write_atomically(path, content)
            tell(f"wrote {path}")
    if any(name == NEW for outcome in outcomes for name, _ in outcome.wrong):
        tell("the numbers of this tree are WRONG (see above)")
        return 1
    return status


@contextmanager
def _running(side: Side) -> Iterator[Side]:
    try:
        yield side
    finally:
        side.end()


def compare(
    todo: Sequence[Task], sides: dict[str, Side], plan: Plan, tell: Callable[[str], None]
) -> Iterator[Outcome]:
    """Opens each case in both processes, then lets them run in turns."""
    begin = time.perf_counter()
    for number, task in enumerate(todo):
        outcome = Outcome(task, str(task.dtype).removeprefix("torch."))
        contenders: dict[Key, Timed] = {}
        for name, side in sides.items():
            for layout, wrong in side.ask(open=number)["wrong"].items():
                if wrong:
                    outcome.wrong[name, layout] = wrong
                else:
                    contenders[name, layout] = Timed(side, layout)
        if contenders:
            outcome.times = interleave(
                dict(contenders), lambda work, calls: work.time(calls), plan.effort
            )
        spent = time.perf_counter() - begin
        left = spent / (number + 1) * (len(todo) - number - 1)
        told = " ".join(
            f"{layout} {s[0]:.2f}x" for layout in LAYOUTS if (s := outcome.speedup(layout))
        )
        tell(
            f"[{number + 1}/{len(todo)}] {task.bench.name} {task.case} {task.mode} "
            f"{outcome.dtype}: {told or 'WRONG'}  ({spent:.0f} s, about {left:.0f} s left)"
        )
        yield outcome


class Timed:
    """One revision in one layout, as `interleave` calls it."""

    last: Side | None = None

    def __init__(self, side: Side, layout: str) -> None:
        self.side, self.layout = side, layout

    def time(self, calls: int) -> float:
        if Timed.last is not self.side:
            time.sleep(PAUSE)
            Timed.last = self.side
        return float(self.side.ask(time=self.layout, calls=calls)["seconds"])

    def __call__(self) -> None:
        self.time(1)


def rows_of(outcome: Outcome) -> list[dict[str, str]]:
    """One row per layout."""
    rows = []
    for layout in LAYOUTS:
        row = dict.fromkeys(COLUMNS, "")
        case = outcome.task.case
        row |= {"op": outcome.task.bench.name, "model": case.model, "shape": case.label}
        row |= {"mode": outcome.task.mode, "dtype": outcome.dtype, "layout": layout}
        wrong = [
            f"{n}: {outcome.wrong[n, layout]}" for n in (OLD, NEW) if (n, layout) in outcome.wrong
        ]
        row["status"] = "; ".join(wrong) or "ran"
        for name in (OLD, NEW):
            if (name, layout) in outcome.times.seconds:
                row[f"{name}_ms"] = f"{1e3 * outcome.times.median((name, layout)):.6g}"
        if speedup := outcome.speedup(layout):
            row["speedup"], row["speedup_q20"], row["speedup_q80"] = (f"{s:.4g}" for s in speedup)
            row["rounds"] = str(len(outcome.times.seconds[NEW, layout]))
        rows.append(row)
    return rows


def report(outcomes: Sequence[Outcome], facts: dict[str, str]) -> str:
    """Every case, then geometric means by op, mode and dtype."""
    parts = ["# Benchmark: old against new"]
    parts.append("\n".join(f"- {name}: {value}" for name, value in facts.items()))
    parts.append("`speed-up` is old over new: above 1 the new one is faster.")
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for outcome in outcomes:
        which = (outcome.task.bench.name, outcome.task.mode, outcome.dtype)
        groups.setdefault(which, []).append(outcome)
    means = []
    for (op, mode, dtype), some in groups.items():
        parts += [f"## {op}: {mode}, {dtype}", _table(some)]
        for layout in LAYOUTS:
            found = [(o, s[0]) for o in some if (s := o.speedup(layout))]
            if found:
                worst = min(found, key=lambda pair: pair[1])
                best = max(found, key=lambda pair: pair[1])
                cells = [f"{s:.2f} {o.task.case}" for o, s in (worst, best)]
                mean = f"{geomean([s for _, s in found]):.3f}"
                means.append([op, mode, dtype, layout, str(len(found)), mean, *cells])
    if means:
        header = ["op", "mode", "dtype", "layout", "number", "geomean", "worst", "best"]
        parts += ["## Old against new", markdown_table(header, means)]
    if not outcomes:
        parts.append("No case was compared.")
    return "\n\n".join(parts)


def _table(some: Sequence[Outcome]) -> str:
    rows = []
    for outcome in some:
        case = outcome.task.case
        for row in rows_of(outcome):
            ms = [
                three_digits(float(row[f"{n}_ms"])) if row[f"{n}_ms"] else "-" for n in (OLD, NEW)
            ]
            speedup = outcome.speedup(row["layout"])
            told = [f"{speedup[0]:.2f}", f"{speedup[1]:.2f}-{speedup[2]:.2f}"] if speedup else None
            wrong = "" if row["status"] == "ran" else f"WRONG: {row['status']}"
            rows.append([case.model, case.label, row["layout"], *ms, *(told or ["none", wrong])])
    header = ["model", "shape", "layout", "old ms", "new ms", "speed-up", "20-80%"]
    return markdown_table(header, rows)
