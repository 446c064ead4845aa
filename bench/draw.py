"""`python -m bench.draw DIR`: pictures from the CSV files of a folder of results.

For each `ops-*.csv` there: `…-speedup.png`, every layer against the best peer, and
`…-roofline.png`, arithmetic against traffic under the roofs that were measured in that run.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import Roofline
from bench.op import FORWARD, TRAINING
from bench.results import Layer, Results, layers, read, summarise

COLORS = {FORWARD: "#0072b2", TRAINING: "#d55e00"}
MARKERS = {FORWARD: "o", TRAINING: "s"}
INK, FAINT = "#222222", "#9aa0a6"
STYLE: Any = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "figure.titlesize": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
}
WIDTH, DPI = 9.0, 160  # inches: legible when a page shows it 800 pixels wide


def main(argv: Sequence[str] | None = None) -> int:
    """Draws everything that a folder has; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.draw",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="such as bench/results/MACHINE")
    folder = parser.parse_args(argv).folder
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        parser.error("matplotlib is not installed (the extra `bench` has it)")
    files = sorted(folder.glob("ops-*.csv"))
    if not files:
        parser.error(f"{folder}: there is no ops-*.csv")
    for path in files:
        for drawn in draw(path):
            print(f"wrote {drawn}", file=sys.stderr)
    return 0


def draw(path: Path) -> list[Path]:
    """Draws the pictures of one file beside it; returns those made."""
    from matplotlib import rc_context

    results = read(path)
    found = [layer for layer in layers(results.rows) if layer.speedup is not None]
    drawn = []
    with rc_context(STYLE):
        for name, figure in (("speedup", speedup), ("roofline", roofline)):
            if made := figure(found, results):
                target = path.with_name(f"{path.stem}-{name}.png")
                # Without the program's name, so that the same numbers give the same file.
                made.savefig(target, dpi=DPI, metadata={"Software": None})
                drawn.append(target)
    return drawn


def speedup(found: Sequence[Layer], results: Results) -> Any:
    """One panel per op and dtype: its layers sorted by speed-up, forward and with gradients."""
    panels = list(dict.fromkeys((layer.op, layer.dtype) for layer in found))
    if not panels:
        return None
    figure, axes = _figure(len(panels))
    for axis, (op, dtype) in zip(axes, panels, strict=True):
        chosen = [layer for layer in found if (layer.op, layer.dtype) == (op, dtype)]
        _speedup_panel(axis, chosen)
        axis.set_title(op if dtype == "float32" else f"{op}, {dtype}", loc="left")
    for axis in axes[::2]:
        axis.set_ylabel("times as fast as the best peer")
    figure.suptitle(_caption(results, "Every layer against the best peer in its best layout"))
    return figure


def _speedup_panel(axis: Any, chosen: list[Layer]) -> None:
    axis.axhline(1, color=INK, linewidth=1.1, zorder=1)
    for mode in (FORWARD, TRAINING):
        some = sorted((x for x in chosen if x.mode == mode), key=lambda x: x.speedup or 0)
        summary = summarise(some)
        if summary is None:
            continue
        values = [layer.speedup or 0 for layer in some]
        # From 0 to 100, so that ops with few layers fill their panel too.
        places = [100 * (i + 0.5) / len(values) for i in range(len(values))]
        color, marker = COLORS[mode], MARKERS[mode]
        size = 14 if len(values) > 40 else 24
        label = f"{mode}: geomean {summary.mean:.2g}×, worst {values[0]:.2g}×"
        axis.scatter(
            places, values, size, color, marker=marker, linewidths=0, label=label, zorder=3
        )
        axis.axhline(summary.mean, color=color, linewidth=1.1, linestyle=(0, (5, 3)), zorder=2)
        axis.annotate(
            summary.worst.name,
            (places[0], values[0]),
            xytext=(6, -3),
            textcoords="offset points",
            fontsize=6.5,
            color=color,
            va="top",
        )
    _log_speedups(axis, [layer.speedup or 1 for layer in chosen])
    axis.set_xlim(-1, 101)
    axis.set_xticks([0, 25, 50, 75, 100])
    number = len({layer.name for layer in chosen})
    axis.set_xlabel(f"% of the {number} layers, slowest to fastest")
    axis.legend(loc="upper left", fontsize=7.5, frameon=False, handletextpad=0.3)


def roofline(found: Sequence[Layer], results: Results) -> Any:
    """One panel per op: operations a second over operations a byte, ours and the best peer."""
    roofs = results.roofline
    drawn = [x for x in found if x.dtype == "float32" and x.bytes and x.flops and x.milliseconds]
    ops = list(dict.fromkeys(layer.op for layer in drawn))
    if not ops or roofs is None:
        return None
    figure, axes = _figure(len(ops))
    intensities = [_intensity(layer) for layer in drawn]
    span = min(intensities) / 1.6, max(intensities) * 1.6
    speeds = []
    for axis, op in zip(axes, ops, strict=True):
        for mode in (FORWARD, TRAINING):
            some = [layer for layer in drawn if (layer.op, layer.mode) == (op, mode)]
            x = [_intensity(layer) for layer in some]
            theirs = [_gigaflops(layer, layer.peer_milliseconds) for layer in some]
            ours = [_gigaflops(layer, layer.milliseconds) for layer in some]
            marker, color = MARKERS[mode], COLORS[mode]
            hollow = {"facecolors": "none", "edgecolors": color, "linewidths": 0.6, "alpha": 0.55}
            axis.scatter(x, theirs, 16, marker=marker, label=f"best peer, {mode}", **hollow)
            axis.scatter(
                x, ours, 16, color, marker=marker, linewidths=0, label=f"ours, {mode}", zorder=3
            )
            speeds += ours + theirs
        _roofs(axis, roofs, span)
        axis.set_title(op, loc="left")
        axis.set_xlabel("operations per byte that must move")
    for axis in axes:
        axis.set(xscale="log", yscale="log", xlim=span)
        axis.set_ylim(min(speeds) / 1.5, roofs.flops / 1e9 * 2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(True, which="major", color="#e6e6e6", linewidth=0.6)
    for axis in axes[::2]:
        axis.set_ylabel("GFLOP/s")
    axes[0].legend(loc="lower right", fontsize=7, frameon=False, handletextpad=0.3)
    figure.suptitle(_caption(results, "Under the roofs measured in the same run"))
    return figure


def _roofs(axis: Any, roofs: Roofline, span: tuple[float, float]) -> None:
    """The matrix product's speed, and the slopes of the copies up to it."""
    peak = roofs.flops / 1e9
    axis.axhline(peak, color=INK, linewidth=1.1, zorder=1)
    label = f"matrix product {peak:.0f} GFLOP/s"
    axis.text(span[1] / 1.05, peak * 1.08, label, fontsize=6.5, ha="right")
    slopes = [("memory", roofs.memory_bandwidth / 1e9)]
    if roofs.cache_bytes:
        slopes.append(("cache", roofs.cache_bandwidth / 1e9))
    for name, bandwidth in slopes:
        ridge = min(span[1], peak / bandwidth)
        axis.plot(
            [span[0], ridge], [span[0] * bandwidth, ridge * bandwidth], color=INK, lw=1.1, zorder=1
        )
        axis.annotate(
            f"{name} {bandwidth:.0f} GB/s",
            (span[0], span[0] * bandwidth),
            xytext=(4, 9),
            textcoords="offset points",
            fontsize=6.5,
            rotation=32,
            rotation_mode="anchor",
        )


def _figure(panels: int) -> tuple[Any, list[Any]]:
    """Two panels a row; a single one is as wide as the picture."""
    from matplotlib.figure import Figure

    columns = min(2, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(WIDTH, 0.5 + 3.1 * rows), layout="constrained", facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = list(grid.flat)
    for axis in axes[panels:]:
        axis.remove()
    for axis in axes[:panels]:
        axis.spines[["top", "right"]].set_visible(False)
        for side in ("left", "bottom"):
            axis.spines[side].set_color(FAINT)
        axis.tick_params(color=FAINT, labelcolor=INK)
    return figure, axes[:panels]


def _log_speedups(axis: Any, values: list[float]) -> None:
    """A logarithmic axis that says 1×, 2×, 5×."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.set_yscale("log")
    ticks = [m * 10.0**e for e in range(-3, 5) for m in (1, 2, 5)]
    axis.yaxis.set_major_locator(FixedLocator(ticks))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    # Room above for the legend, below for the name of the worst.
    axis.set_ylim(min([*values, 1]) / 1.6, max([*values, 1]) * 3.2)
    axis.grid(True, axis="y", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)


def _intensity(layer: Layer) -> float:
    return (layer.flops or 0) / (layer.bytes or 1)


def _gigaflops(layer: Layer, milliseconds: float | None) -> float:
    return (layer.flops or 0) / (milliseconds or float("nan")) / 1e6


def _caption(results: Results, text: str) -> str:
    facts = results.facts
    kernels = facts.get("kernels", "").rpartition("C++ kernels use ")[2]
    cpu = facts.get("cpu", "").partition(",")[0]
    return f"{text}\n{cpu}, {facts.get('threads', '?')} threads, {kernels}"


if __name__ == "__main__":
    sys.exit(main())
