"""Results as rows: written as CSV, read back, and seen layer by layer."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.comparison import OURS, OURS_IN_CUDA, Comparison, Key
from bench.machine import Roofline
from bench.op import LAYOUTS
from bench.timing import geomean

COLUMNS = [
    *("op", "model", "shape", "batch_in_list", "count", "group", "mode", "dtype"),
    *("contender", "layout", "backend", "status"),
    *("ms_median", "ms_q20", "ms_q80", "rounds"),
    *("speedup", "speedup_q20", "speedup_q80", "same_layout_speedup"),
    *("bytes", "flops", "roofline_percent", "peak_bytes"),
]
RAN = "ran"

Row = dict[str, str]


@dataclass
class Results:
    """A file of results.

    Attributes:
        facts: what its header says: machine, versions, revision.
        rows: one per contender and case, by `COLUMNS`.
    """

    facts: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    @property
    def roofline(self) -> Roofline | None:
        return Roofline.parse(self.facts.get("roofline", ""))


@dataclass(frozen=True)
class Layer:
    """One case in one mode and dtype: ours in its fastest layout against the best peer.

    Attributes:
        op, model, shape, mode, dtype: which.
        count: how often it stands in its network.
        groups: the kinds it is of.
        speedup: over the best peer in its best layout; None where there is none to tell.
        same_layout: by layout, over the best peer in that layout.
        milliseconds: of ours.
        peer: the best one and its layout.
        peer_milliseconds: of that.
        peer_in_layout: milliseconds, by layout, of the best peer in that layout.
        least_milliseconds: what the roofline of that run leaves.
        bytes, flops: of the traffic model.
    """

    op: str
    model: str
    shape: str
    mode: str
    dtype: str
    count: int
    groups: tuple[str, ...]
    speedup: float | None
    same_layout: dict[str, float]
    milliseconds: float | None
    peer: Key | None
    peer_milliseconds: float | None
    peer_in_layout: dict[str, float]
    least_milliseconds: float | None
    bytes: int | None
    flops: int | None

    @property
    def name(self) -> str:
        return f"{self.model} {self.shape}"

    def most(self, layout: str | None = None) -> float | None:
        """The speed-up of a kernel that takes the least time which the roofline leaves.

        Args:
            layout: that of the peer; its best if None.
        """
        peer = self.peer_in_layout.get(layout) if layout else self.peer_milliseconds
        if peer is None or self.least_milliseconds is None:
            return None
        return peer / self.least_milliseconds


@dataclass(frozen=True)
class Summary:
    """Many layers in one line; of the speed-ups over the best peer unless said otherwise.

    Attributes:
        number: of layers.
        mean: geometric, each layer once.
        weighted: geometric, each layer as often as it stands in its network.
        same_layout: geometric, by layout, of ours and the peers both in that layout.
        worst: the layer with the least.
        slower: those with less than 1.
    """

    number: int
    mean: float
    weighted: float
    same_layout: dict[str, float]
    worst: Layer
    slower: list[Layer]


def rows_of(result: Comparison, roofline: Roofline) -> list[Row]:
    """One row per contender, those too that did not run."""
    return [_row(result, key, roofline) for key in [*result.times.seconds, *result.reasons]]


def csv_text(results: Iterable[Comparison], facts: dict[str, str], roofline: Roofline) -> str:
    """All rows; before them the machine, in lines that start with #."""
    rows = [row for result in results for row in rows_of(result, roofline)]
    return table_text(rows, COLUMNS, {**facts, "roofline": str(roofline)})


def table_text(rows: Iterable[Row], columns: Sequence[str], facts: dict[str, str]) -> str:
    """CSV with the facts in front, in lines that start with #."""
    text = io.StringIO()
    for name, value in facts.items():
        text.write(f"# {name}: {value}\n")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read(path: Path) -> Results:
    """A file that `table_text` made."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comments = [re.fullmatch(r"# ([^:]+): (.*)", line) for line in lines]
    facts = {found[1]: found[2] for found in comments if found}
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return Results(facts, list(rows))


def layers(rows: Iterable[Row]) -> list[Layer]:
    """The layers in order of appearance."""
    cases: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        which = tuple(row[name] for name in ("op", "model", "shape", "mode", "dtype"))
        cases.setdefault(which, []).append(row)
    return [_layer(found) for found in cases.values()]


def summarise(some: Sequence[Layer]) -> Summary | None:
    """None where no layer has a speed-up."""
    found = [(layer, layer.speedup) for layer in some if layer.speedup is not None]
    if not found:
        return None
    speedups, counts = [s for _, s in found], [float(layer.count) for layer, _ in found]
    same = {
        layout: geomean(values)
        for layout in LAYOUTS
        if (values := [x.same_layout[layout] for x, _ in found if layout in x.same_layout])
    }
    return Summary(
        number=len(found),
        mean=geomean(speedups),
        weighted=geomean(speedups, counts),
        same_layout=same,
        worst=min(found, key=lambda pair: pair[1])[0],
        slower=[layer for layer, speedup in found if speedup < 1],
    )


def kinds(some: Sequence[Layer]) -> list[tuple[str, list[Layer]]]:
    """All layers, then those of each kind, then those of each network, by name."""
    found = [("all cases", list(some))]
    for group in dict.fromkeys(g for layer in some for g in layer.groups):
        found.append((group, [layer for layer in some if group in layer.groups]))
    for model in dict.fromkeys(layer.model for layer in some):
        found.append((model, [layer for layer in some if layer.model == model]))
    return found


def _layer(rows: list[Row]) -> Layer:
    first = rows[0]
    ran = [row for row in rows if row["status"] == RAN and row["ms_median"]]
    ran.sort(key=_milliseconds)
    ours = [row for row in ran if row["contender"] == OURS]
    peers = [row for row in ran if row["contender"] not in (OURS, OURS_IN_CUDA)]
    batch = int(first["shape"].partition("x")[0])
    shrunk = f" (of {first['batch_in_list']})" if int(first["batch_in_list"]) != batch else ""
    same = {r["layout"]: float(r["same_layout_speedup"]) for r in ours if r["same_layout_speedup"]}
    return Layer(
        op=first["op"],
        model=first["model"],
        shape=first["shape"] + shrunk,
        mode=first["mode"],
        dtype=first["dtype"],
        count=int(first["count"]),
        groups=tuple(g for g in first["group"].split("; ") if g),
        speedup=float(ours[0]["speedup"]) if ours and ours[0]["speedup"] else None,
        same_layout=same,
        milliseconds=_milliseconds(ours[0]) if ours else None,
        peer=(peers[0]["contender"], peers[0]["layout"]) if peers else None,
        peer_milliseconds=_milliseconds(peers[0]) if peers else None,
        # The fastest comes last and stays.
        peer_in_layout={r["layout"]: _milliseconds(r) for r in reversed(peers)},
        least_milliseconds=_least_milliseconds(ours[0]) if ours else None,
        bytes=int(first["bytes"]) if first["bytes"] else None,
        flops=int(first["flops"]) if first["flops"] else None,
    )


def _milliseconds(row: Row) -> float:
    return float(row["ms_median"])


def _least_milliseconds(row: Row) -> float | None:
    percent = float(row["roofline_percent"] or 0)
    return _milliseconds(row) * percent / 100 if percent > 0 else None


def _row(r: Comparison, key: Key, roofline: Roofline) -> Row:
    row = dict.fromkeys(COLUMNS, "")
    row |= {
        "op": r.op,
        "model": r.case.model,
        "shape": r.case.label,
        "batch_in_list": str(r.full_batch),
        "count": str(r.case.count),
        "group": "; ".join(r.groups),
        "mode": r.mode,
        "dtype": r.dtype,
        "contender": key[0],
        "layout": key[1],
        "backend": r.backend if key[0] == OURS else "",
        "status": r.reasons.get(key, RAN),
        "bytes": str(r.traffic.bytes) if r.traffic else "",
        "flops": str(r.traffic.flops) if r.traffic else "",
        "peak_bytes": str(r.peak_bytes.get(key, "")),
    }
    if key not in r.times.seconds:
        return row
    low, high = r.times.spread(key)
    row["ms_median"] = f"{1e3 * r.times.median(key):.6g}"
    row["ms_q20"], row["ms_q80"] = f"{1e3 * low:.6g}", f"{1e3 * high:.6g}"
    row["rounds"] = str(len(r.times.seconds[key]))
    share = r.roofline_share(key, roofline)
    row["roofline_percent"] = f"{100 * share:.6g}" if share else ""
    if key[0] == OURS and (speedup := r.speedup(key)):
        row["speedup"], row["speedup_q20"], row["speedup_q80"] = (f"{s:.4g}" for s in speedup)
        same = r.speedup(key, same_layout=True)
        row["same_layout_speedup"] = f"{same[0]:.4g}" if same else ""
    return row
