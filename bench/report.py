"""Tables of what was measured: Markdown for people, CSV for programs."""

import csv
import io
from collections.abc import Iterable, Sequence

from bench.comparison import OURS, Comparison, Key
from bench.machine import Roofline
from bench.timing import geomean

COLUMNS = [
    *("op", "model", "shape", "batch_in_list", "count", "group", "mode", "dtype"),
    *("contender", "layout", "backend", "status"),
    *("ms_median", "ms_q20", "ms_q80", "rounds"),
    *("speedup", "speedup_q20", "speedup_q80", "same_layout_speedup"),
    *("bytes", "flops", "roofline_percent", "peak_bytes"),
]

Rows = list[list[str]]


def markdown_table(header: Sequence[str], rows: Rows) -> str:
    """A table that reads as well unrendered: columns padded, numbers to the right."""
    lines = [list(header), *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    right = [all(_numeric(row[i]) for row in rows) for i in range(len(header))]
    rule = [("-" * (w - 1) + ":") if r else "-" * w for w, r in zip(widths, right, strict=True)]

    def join(cells: Sequence[str]) -> str:
        padded = (
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)
        )
        return "| " + " | ".join(padded) + " |"

    return "\n".join([join(header), join(rule), *(join(row) for row in rows)])


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
        parts += _means(chosen)
    parts += _absent(results)
    return "\n\n".join(parts)


def model_report(results: list[Comparison]) -> str:
    """One row per contender: times, clips a second, speed-up over the best peer, memory."""
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
    return "\n\n".join(["## Networks", markdown_table(header, rows), *_absent(results)])


def csv_text(results: Iterable[Comparison], facts: dict[str, str], roofline: Roofline) -> str:
    """One line per contender of each case; before them the machine, in lines that start with #."""
    text = io.StringIO()
    for name, value in {**facts, "roofline": str(roofline)}.items():
        text.write(f"# {name}: {value}\n")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for result in results:
        for key in [*result.times.seconds, *result.reasons]:
            writer.writerow(_csv_row(result, key, roofline))
    return text.getvalue()


def milliseconds(result: Comparison, key: Key | None) -> str:
    """Median and spread, "1.56 (1.50-1.63)"."""
    if key is None or key not in result.times.seconds:
        return "-"
    low, high = result.times.spread(key)
    return f"{_3(1e3 * result.times.median(key))} ({_3(1e3 * low)}-{_3(1e3 * high)})"


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
    header += ["speed-up", "20-80%", "same layout", "MB", "% of roofline"]
    rows = []
    for r in results:
        traffic = f"{r.traffic.bytes / 1e6:.1f}" if r.traffic else "-"
        start = [r.case.model, shape(r), r.backend]
        theirs = [milliseconds(r, key) for key in peers]
        if r.wrong:
            rows.append([*start, "-", "WRONG", *theirs, "none", "-", "-", traffic, "-"])
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
                    f"{100 * share:.0f}" if share else "-",
                ]
            )
    return markdown_table(header, rows)


def _means(results: list[Comparison]) -> list[str]:
    """Geometric means over the best peer in its best layout, by model and kind; the worst case."""
    found = [(r, s) for r in results if (s := r.best_speedup())]
    if not found:
        return []
    chosen = [("all cases", found)]
    for group in _distinct(r.group for r in results if r.group):
        chosen.append((group, [(r, s) for r, s in found if r.group == group]))
    for model in _distinct(r.case.model for r in results):
        chosen.append((model, [(r, s) for r, s in found if r.case.model == model]))
    rows = []
    for name, part in chosen:
        if not part:
            continue
        worst, least = min(part, key=lambda pair: pair[1])
        speedups, counts = [s for _, s in part], [float(r.case.count) for r, _ in part]
        same = [
            [v[0] for r, _ in part if (v := r.speedup((OURS, layout), same_layout=True))]
            for layout in ("contiguous", "channels_last_3d")
        ]
        rows.append(
            [
                name,
                str(len(part)),
                f"{geomean(speedups):.2f}",
                f"{geomean(speedups, counts):.2f}",
                *(f"{geomean(values):.2f}" if values else "-" for values in same),
                f"{least:.2f}",
                f"{worst.case.model} {shape(worst)}",
                str(sum(s < 1 for s in speedups)),
            ]
        )
    header = ["cases", "number", "geomean", "weighted by count"]
    header += [
        "both contiguous",
        "both channels_last_3d",
        "worst",
        "worst case",
        "slower than peer",
    ]
    lines = [
        "Speed-up of our best layout over the best peer in its best layout:",
        markdown_table(header, rows),
    ]
    if behind := [(r, s) for r, s in found if s < 1]:
        named = "\n".join(f"- {s:.2f} {r.case.model} {shape(r)}" for r, s in behind)
        lines.append(f"Slower than the best peer:\n\n{named}")
    return lines


def _absent(results: list[Comparison]) -> list[str]:
    """Wrong numbers of ours, row by row; peers that did not run, why and in how many rows."""
    wrong: list[str] = []
    absent: dict[tuple[str, str], tuple[set[str], set[int]]] = {}
    for r in results:
        for (name, layout), reason in r.reasons.items():
            if name == OURS:
                wrong.append(f"- {r.case.model} {shape(r)} {r.mode} {r.dtype} {layout}: {reason}")
            else:
                layouts, rows = absent.setdefault((name, reason), (set(), set()))
                layouts.add(layout)
                rows.add(id(r))
    parts = []
    if wrong:
        parts.append("**Our numbers are WRONG:**\n\n" + "\n".join(wrong))
    if absent:
        lines = [
            f"- {name} ({', '.join(sorted(layouts))}), {len(rows)} of {len(results)} rows: {reason}"
            for (name, reason), (layouts, rows) in absent.items()
        ]
        parts.append("Not run:\n\n" + "\n".join(lines))
    return parts


def _csv_row(r: Comparison, key: Key, roofline: Roofline) -> dict[str, object]:
    row: dict[str, object] = {
        "op": r.op,
        "model": r.case.model,
        "shape": r.case.label,
        "batch_in_list": r.full_batch,
        "count": r.case.count,
        "group": r.group or "",
        "mode": r.mode,
        "dtype": r.dtype,
        "contender": key[0],
        "layout": key[1],
        "backend": r.backend if key[0] == OURS else "",
        "status": r.reasons.get(key, "ran"),
        "bytes": r.traffic.bytes if r.traffic else "",
        "flops": r.traffic.flops if r.traffic else "",
        "peak_bytes": r.peak_bytes.get(key, ""),
    }
    if key not in r.times.seconds:
        return row
    low, high = r.times.spread(key)
    row["ms_median"] = f"{1e3 * r.times.median(key):.6g}"
    row["ms_q20"], row["ms_q80"] = f"{1e3 * low:.6g}", f"{1e3 * high:.6g}"
    row["rounds"] = len(r.times.seconds[key])
    share = r.roofline_share(key, roofline)
    row["roofline_percent"] = f"{100 * share:.1f}" if share else ""
    if key[0] == OURS and (speedup := r.speedup(key)):
        row["speedup"], row["speedup_q20"], row["speedup_q80"] = (f"{s:.4g}" for s in speedup)
        same = r.speedup(key, same_layout=True)
        row["same_layout_speedup"] = f"{same[0]:.4g}" if same else ""
    return row


def _distinct(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def _3(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _numeric(cell: str) -> bool:
    return cell[:1].isdigit() or cell in ("-", "none", "WRONG")
