"""Tables of what was measured, for people."""

from collections.abc import Iterable, Sequence

from bench.comparison import OURS, Comparison, Key
from bench.machine import Roofline
from bench.markdown import markdown_table, three_digits
from bench.op import LAYOUTS
from bench.results import Layer, Row, kinds, layers, rows_of, summarise
from bench.targets import Targets

BREAKDOWN_NOTE = (
    "Self time of PyTorch's operators in each part of the network, ours and eager each in its "
    "fastest layout, under the profiler (whose own cost stands in `rest` and in small operators)."
)
TARGETS_NOTE = (
    "Geometric means over the layers above, set for {machine} and all cases; each layer in our "
    "best layout over the best peer in its best layout. `most`: what it would be if every layer "
    "took the least time that the roofline leaves."
)


def op_report(op: str, results: list[Comparison], roofline: Roofline) -> str:
    """The tables of one op: one per mode and dtype, its geometric means, who did not run."""
    parts = [f"## {op}"]
    if all(r.backend == "reference" for r in results):
        parts.append(
            "`ours` here is the reference in plain PyTorch: this op has no kernel for this device "
            "and dtype yet."
        )
    if shrunk := [r for r in results if r.case.batch != r.full_batch]:
        parts.append(
            f"Shrunk: in {len(shrunk)} of {len(results)} rows the batch is smaller than in the "
            "list of cases, which stands behind `of`."
        )
    for mode, dtype in _distinct((r.mode, r.dtype) for r in results):
        chosen = [r for r in results if (r.mode, r.dtype) == (mode, dtype)]
        parts.append(f"### {op}: {mode}, {dtype}")
        if not any(r.wrong or r.times.seconds for r in chosen):
            parts.append(f"The numbers of ours are right in all {len(chosen)} rows.")
            continue
        parts.append(_times_table(chosen, roofline))
        parts += _means(layers(row for r in chosen for row in rows_of(r, roofline)))
    parts += absent(results)
    return "\n\n".join(parts)


def ops_report(results: list[Comparison], roofline: Roofline, targets: Targets) -> str:
    """The tables of every op, and last what they say about the targets."""
    ops = _distinct(r.op for r in results)
    parts = [op_report(op, [r for r in results if r.op == op], roofline) for op in ops]
    every = layers(row for r in results for row in rows_of(r, roofline))
    if table := targets.table(every):
        parts += ["## Targets", TARGETS_NOTE.format(machine=targets.machine), table]
    return "\n\n".join(parts)


def model_report(results: list[Comparison], breakdowns: list[Row]) -> str:
    """Times, clips a second, speed-up over the best peer, memory; then where the time goes."""
    header = ["model", "clips", "dtype", "phase", "contender", "layout", "ms", "clips/s"]
    header += ["speed-up", "20-80%", "peak MB"]
    rows = []
    for r in results:
        for key in r.times.seconds:
            speedup = r.speedup(key) if key[0] == OURS else None
            peak = r.peak_bytes.get(key)
            rows.append(
                [
                    *(r.case.model, shape(r), r.dtype, r.mode, *key, milliseconds(r, key)),
                    f"{r.case.batch / r.times.median(key):.1f}",
                    f"{speedup[0]:.2f}" if speedup else "-",
                    f"{speedup[1]:.2f}-{speedup[2]:.2f}" if speedup else "-",
                    f"{peak / 1e6:.0f}" if peak is not None else "-",
                ]
            )
    parts = ["## Networks", markdown_table(header, rows), *absent(results)]
    if breakdowns:
        parts += ["## Where the time goes", BREAKDOWN_NOTE, breakdown_table(breakdowns)]
    return "\n\n".join(parts)


def breakdown_table(rows: list[Row]) -> str:
    """A line per network, phase and part: milliseconds and share, ours beside eager."""
    cells: dict[tuple[str, ...], dict[str, float]] = {}
    totals: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        network = (f"{row['model']} {row['clips']}", row["dtype"], row["phase"])
        part = row["part"] if row["phase"] == "inference" else f"{row['part']}, {row['direction']}"
        milliseconds, who = float(row["ms"]), row["contender"]
        line = cells.setdefault((*network, part), {})
        line[who] = line.get(who, 0.0) + milliseconds
        total = totals.setdefault(network, {})
        total[who] = total.get(who, 0.0) + milliseconds
    contenders = _distinct(row["contender"] for row in rows)
    table = []
    for which, line in cells.items():
        shown = []
        for who in contenders:
            whole = totals[which[:3]].get(who)
            spent = line.get(who, 0.0)
            shown += [f"{spent:.1f}", f"{100 * spent / whole:.0f}"] if whole else ["-", "-"]
        table.append([*which, *shown])
    header = ["network", "dtype", "phase", "part"]
    header += [column for who in contenders for column in (f"{who} ms", "%")]
    return markdown_table(header, table)


def milliseconds(result: Comparison, key: Key | None) -> str:
    """Median and spread, "1.56 (1.50-1.63)"."""
    if key is None or key not in result.times.seconds:
        return "-"
    median, (low, high) = result.times.median(key), result.times.spread(key)
    shown = [three_digits(1e3 * seconds) for seconds in (median, low, high)]
    return f"{shown[0]} ({shown[1]}-{shown[2]})"


def shape(result: Comparison) -> str:
    """The case's label, and its batch in the list where it was shrunk."""
    if result.case.batch == result.full_batch:
        return result.case.label
    return f"{result.case.label} (of {result.full_batch})"


def _times_table(results: list[Comparison], roofline: Roofline) -> str:
    """One row per case and layout of ours."""
    peers = _distinct(key for r in results for key in r.peers)
    header = ["model", "shape", "backend", "layout", "ours ms"]
    header += [f"{name} {layout} ms" for name, layout in peers]
    header += ["speed-up", "20-80%", "same layout", "MB"]
    counted = any(r.kernel_traffic for r in results)
    header += ["MB requested", "MFLOP", "MFLOP executed"] if counted else []
    header += ["% of roofline"]
    rows = []
    for r in results:
        traffic = f"{r.traffic.bytes / 1e6:.1f}" if r.traffic else "-"
        start = [r.case.model, shape(r), r.backend]
        theirs = [milliseconds(r, key) for key in peers]
        if r.wrong:
            rest = ["-"] * (4 if counted else 1)
            rows.append([*start, "-", "WRONG", *theirs, "none", "-", "-", traffic, *rest])
        for key in [] if r.wrong else r.ours:
            speedup, same = r.speedup(key), r.speedup(key, same_layout=True)
            share = r.roofline_share(key, roofline)
            rows.append(
                [
                    *start,
                    key[1],
                    milliseconds(r, key),
                    *theirs,
                    f"{speedup[0]:.2f}" if speedup else "-",
                    f"{speedup[1]:.2f}-{speedup[2]:.2f}" if speedup else "-",
                    f"{same[0]:.2f}" if same else "-",
                    traffic,
                    *(_kernel_traffic(r, key[1]) if counted else []),
                    f"{100 * share:.0f}" if share else "-",
                ]
            )
    return markdown_table(header, rows)


def _kernel_traffic(r: Comparison, layout: str) -> list[str]:
    """Bytes requested, operations that cannot be avoided, operations executed."""
    found = r.kernel_traffic.get(layout)
    return [
        f"{found.bytes / 1e6:.1f}" if found else "-",
        f"{r.traffic.flops / 1e6:.0f}" if r.traffic else "-",
        f"{found.flops / 1e6:.0f}" if found else "-",
    ]


def _means(some: list[Layer]) -> list[str]:
    """Geometric means over the best peer in its best layout, by kind and network; the worst."""
    whole = summarise(some)
    if whole is None:
        return []
    rows = []
    for name, part in kinds(some):
        if summary := summarise(part):
            same = [summary.same_layout.get(layout) for layout in LAYOUTS]
            rows.append(
                [
                    name,
                    str(summary.number),
                    f"{summary.mean:.2f}",
                    f"{summary.weighted:.2f}",
                    *(f"{value:.2f}" if value else "-" for value in same),
                    f"{summary.worst.speedup:.2f}",
                    summary.worst.name,
                    str(len(summary.slower)),
                ]
            )
    header = ["cases", "number", "geomean", "weighted by count"]
    header += [f"both {layout}" for layout in LAYOUTS]
    header += ["worst", "worst case", "slower than peer"]
    lines = [
        "Speed-up of our best layout over the best peer in its best layout:",
        markdown_table(header, rows),
    ]
    if whole.slower:
        named = "\n".join(f"- {layer.speedup:.2f} {layer.name}" for layer in whole.slower)
        lines.append(f"Slower than the best peer:\n\n{named}")
    return lines


def absent(results: Sequence[Comparison]) -> list[str]:
    """Wrong numbers of ours, row by row; peers that did not run, why and in how many rows."""
    wrong: list[str] = []
    others: dict[tuple[str, str], tuple[set[str], set[int]]] = {}
    for r in results:
        for (name, layout), reason in r.reasons.items():
            if name == OURS:
                wrong.append(f"- {r.case.model} {shape(r)} {r.mode} {r.dtype} {layout}: {reason}")
            else:
                layouts, rows = others.setdefault((name, reason), (set(), set()))
                layouts.add(layout)
                rows.add(id(r))
    parts = []
    if wrong:
        parts.append("**Our numbers are WRONG:**\n\n" + "\n".join(wrong))
    if others:
        lines = [
            f"- {name} ({', '.join(sorted(layouts))}), {len(rows)} of {len(results)} rows: {reason}"
            for (name, reason), (layouts, rows) in others.items()
        ]
        parts.append("Not run:\n\n" + "\n".join(lines))
    return parts


def _distinct(values: Iterable) -> list:
    return list(dict.fromkeys(values))
