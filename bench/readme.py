"""`python -m bench.readme`: writes the tables of the READMEs from the committed results.

A region begins with `<!-- bench: KIND FOLDER/STEM ... -->` and ends with `<!-- /bench -->`; what
stands between is replaced. A file is FOLDER/STEM.csv, or FOLDER/STEM-quick.csv where there is no
such; paths are those from the top of the checkout. KIND is one of

    summary    geometric means, worst cases and how many are slower, per op and kind of layers
    targets    what shall be reached, what was, and whether that is enough
    pictures   those that `python -m bench.draw` made of the file
    overhead   microseconds per call
    model      networks: ours beside the best peer, with memory
    breakdown  where the time of the networks goes
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import machine, overhead
from bench.comparison import OURS
from bench.files import write_atomically
from bench.markdown import markdown_table
from bench.op import CONTIGUOUS, FORWARD, TRAINING
from bench.report import breakdown_table
from bench.results import RAN, Layer, Results, Row, kinds, layers, read, summarise
from bench.targets import overhead as overhead_limits
from bench.targets import targets as targets_of

REGION = re.compile(r"(<!-- bench: (\w+) (\S+(?: \S+)*) -->\n).*?(<!-- /bench -->)", re.DOTALL)
ABSENT = "Not measured on this machine yet."


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrites the READMEs, or with --check says which would change; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if any is outdated")
    check = parser.parse_args(argv).check
    outdated = 0
    for path in readmes(machine.ROOT):
        before = path.read_text(encoding="utf-8")
        after = rewritten(before, path, machine.ROOT)
        if after == before:
            continue
        outdated += 1
        print(f"{path}: {'outdated' if check else 'written'}", file=sys.stderr)
        if not check:
            write_atomically(path, after)
    return int(check and outdated > 0)


def readmes(root: Path) -> list[Path]:
    """Those that may have regions."""
    return [root / "README.md", *sorted((root / "vmf_kernels" / "ops").glob("*/README.md"))]


def rewritten(text: str, path: Path, root: Path) -> str:
    """The text of a README with every region made anew.

    Args:
        text: what it says now.
        path: where it lies; links are relative to its folder.
        root: top of the checkout.

    Raises:
        ValueError: a region asks for something that there is not.
    """

    def replace(found: "re.Match[str]") -> str:
        opening, kind, stems, closing = found.groups()
        if kind not in KINDS:
            raise ValueError(f"{path.name}: a region is one of {', '.join(KINDS)} (got {kind!r})")
        ending = "-breakdown.csv" if kind == "breakdown" else ".csv"
        sources = [s for stem in stems.split() if (s := _source(root / stem, ending))]
        body = KINDS[kind](sources, path) if sources else ABSENT
        return f"{opening}{body}\n{closing}"

    return REGION.sub(replace, text)


def summary(sources: Sequence[Path], readme: Path) -> str:
    """One line per op, and per kind of layers where there are targets for it."""
    files = _read(sources)
    results = _merged(files)
    found = layers(results.rows)
    targets = targets_of(results.facts).all
    rows = []
    for op, dtype in dict.fromkeys((layer.op, layer.dtype) for layer in found):
        chosen = [layer for layer in found if (layer.op, layer.dtype) == (op, dtype)]
        name = f"`{op}`" if dtype == "float32" else f"`{op}`, {dtype}"
        held = {target.group for target in targets if target.op == op}
        for kind, some in kinds(chosen):
            if kind == "all cases" or kind in held:
                rows.append(_summary_row(name if kind == "all cases" else f"… {kind}", some))
        if any(target.layout == CONTIGUOUS for target in targets if target.op == op):
            rows.append(_contiguous_row(chosen))
    header = ["layers", "number"]
    for mode in (FORWARD, TRAINING):
        header += [mode, "worst", "slower"]
    table = markdown_table(header, [row for row in rows if row])
    return f"{_caption(files, readme)}\n\n{table}"


def _summary_row(name: str, some: Sequence[Layer]) -> list[str]:
    cells, number = [], 0
    for mode in (FORWARD, TRAINING):
        found = summarise([layer for layer in some if layer.mode == mode])
        if found is None:
            cells += ["-", "-", "-"]
            continue
        number = max(number, found.number)
        cells += [f"**{found.mean:.2f}×**", f"{found.worst.speedup:.2f}×", str(len(found.slower))]
    return [name, str(number), *cells] if number else []


def _contiguous_row(some: Sequence[Layer]) -> list[str]:
    cells, number = [], 0
    for mode in (FORWARD, TRAINING):
        found = summarise([layer for layer in some if layer.mode == mode])
        if found is None or CONTIGUOUS not in found.same_layout:
            cells += ["-", "-", "-"]
            continue
        number = max(number, found.number)
        same = [x.same_layout[CONTIGUOUS] for x in some if x.mode == mode and x.same_layout]
        slower = sum(value < 1 for value in same)
        cells += [f"**{found.same_layout[CONTIGUOUS]:.2f}×**", f"{min(same):.2f}×", str(slower)]
    return ["… both contiguous", str(number), *cells] if number else []


def targets(sources: Sequence[Path], readme: Path) -> str:
    """What shall be reached, whether it is, and what the roofline leaves."""
    results = _merged(_read(sources))
    table = targets_of(results.facts).table(layers(results.rows))
    return table or ABSENT


def pictures(sources: Sequence[Path], readme: Path) -> str:
    """What was drawn of the file."""
    drawn = []
    for source in sources:
        for name, words in (("speedup", "Speed-up of every layer"), ("roofline", "Roofline")):
            if (path := source.with_name(f"{source.stem}-{name}.png")).exists():
                drawn.append(f"![{words}]({_link(path, readme)})")
    return "\n\n".join(drawn) or ABSENT


def overhead_table(sources: Sequence[Path], readme: Path) -> str:
    """Microseconds per call."""
    files = _read(sources)
    results = _merged(files)
    table = overhead.table(layers(results.rows), overhead_limits(results.facts))
    return f"{_caption(files, readme)}\n\n{table}"


def model(sources: Sequence[Path], readme: Path) -> str:
    """Ours beside the best peer, one line per network and phase."""
    files = _read(sources)
    results = _merged(files)
    cases: dict[tuple[str, ...], list[Row]] = {}
    for row in results.rows:
        if row["status"] == RAN and row["ms_median"]:
            which = (f"{row['model']} {row['shape']}", row["dtype"], row["mode"])
            cases.setdefault(which, []).append(row)
    rows = []
    for case, some in cases.items():
        best: list[list[str]] = []
        for ours in (True, False):
            of = [row for row in some if (row["contender"] == OURS) == ours]
            fastest = min(of, key=lambda row: float(row["ms_median"]), default=None)
            best.append(_model_cells(fastest))
        speedups = [row["speedup"] for row in some if row["speedup"]]
        shown = f"**{max(map(float, speedups)):.2f}×**" if speedups else "-"
        rows.append([*case, *best[0][1:], *best[1], shown])
    header = ["network", "dtype", "phase", "ours ms", "MB", "best peer", "its ms", "MB", "speed-up"]
    return f"{_caption(files, readme)}\n\n{markdown_table(header, rows)}"


def _model_cells(row: Row | None) -> list[str]:
    if row is None:
        return ["-", "-", "-"]
    memory = f"{int(row['peak_bytes']) / 1e6:.0f}" if row["peak_bytes"] else "-"
    return [f"{row['contender']} {row['layout']}", f"{float(row['ms_median']):.0f}", memory]


def breakdown(sources: Sequence[Path], readme: Path) -> str:
    """Where the time of the networks goes."""
    return breakdown_table(_merged(_read(sources)).rows)


KINDS: dict[str, Callable[[Sequence[Path], Path], str]] = {
    "summary": summary,
    "targets": targets,
    "pictures": pictures,
    "overhead": overhead_table,
    "model": model,
    "breakdown": breakdown,
}


def _source(stem: Path, ending: str) -> Path | None:
    """The file of a full run, else of a quick one."""
    for name in (f"{stem.name}{ending}", f"{stem.name}-quick{ending}"):
        if (path := stem.with_name(name)).exists():
            return path
    return None


def _read(sources: Sequence[Path]) -> dict[Path, Results]:
    return {source: read(source) for source in sources}


def _merged(files: dict[Path, Results]) -> Results:
    """The rows of all, the facts of the first."""
    found = list(files.values())
    return Results(found[0].facts, [row for results in found for row in results.rows])


def _caption(files: dict[Path, Results], readme: Path) -> str:
    """What was measured where, and the way to every row."""
    facts = next(iter(files.values())).facts
    if "gpu" in facts:
        versions = _torch(facts.get("versions", ""))
        return f"{facts['gpu']}, {versions}; {_every(files, readme)}."
    cpu, _, capability = facts.get("cpu", "unknown").partition(", ")
    threads = facts.get("threads", "?")
    return (
        f"{cpu}, {threads} thread{'s' if threads != '1' else ''}, "
        f"{capability.rpartition(' uses ')[2] or '?'}, {_torch(facts.get('versions', ''))}; "
        f"{_every(files, readme)}."
    )


def _every(files: dict[Path, Results], readme: Path) -> str:
    """Each file: of which revision, of which layers, and the way to every row."""
    told = []
    for source, results in files.items():
        dtypes = dict.fromkeys(row["dtype"] for row in results.rows)
        told.append(
            f"{' and '.join(dtypes)}{', quick' if source.stem.endswith('-quick') else ''}: "
            f"revision {results.facts.get('revision', 'unknown')}"
        )
        if (rows := source.with_suffix(".md")).exists():
            told[-1] += f", [every row]({_link(rows, readme)})"
    return "; ".join(told)


def _torch(versions: str) -> str:
    found = re.search(r"torch [^,+]+", versions)
    return found[0] if found else "torch"


def _link(path: Path, readme: Path) -> str:
    return Path(os.path.relpath(path, readme.parent)).as_posix()


if __name__ == "__main__":
    sys.exit(main())
