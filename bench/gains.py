"""`python -m bench.gains [FOLDER]`: the gains that `explain` tells, from a folder of results.

Geometric means over the float32 layers of ops-cpu.csv and ops-cpu-avx2.csv, ours against the best
peer in the same layout, by kind of layer. Writes vmf_kernels/ops/depthwise_conv3d/gains.json.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import machine
from bench.files import write_atomically
from bench.op import FORWARD, LAYOUTS, TRAINING
from bench.results import Layer, layers, read
from bench.timing import geomean
from vmf_kernels.ops.depthwise_conv3d import gains

OP = "depthwise_conv3d"
FILES = {"avx512": "ops-cpu.csv", "avx2": "ops-cpu-avx2.csv"}
TARGET = machine.ROOT / "vmf_kernels" / "ops" / OP / "gains.json"


def kind(shape: str) -> str:
    """Of a layer by the text of its shape, such as 8x54x13x40x40 k3x3x3 s1x2x2."""
    kernel = re.search(r" k(\S+)", shape)
    stride = re.search(r" s(\S+)", shape)
    assert kernel is not None
    taps, steps = (
        tuple(map(int, found.group(1).split("x"))) if found else (1, 1, 1)
        for found in (kernel, stride)
    )
    return gains.kind(taps, steps)


def rows(isa: str, found: Iterable[Layer]) -> list[dict[str, Any]]:
    """One for each layout and kind of layer."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for layer in found:
        if (layer.op, layer.dtype) == (OP, "float32"):
            for layout, speedup in layer.same_layout.items():
                values.setdefault((layout, kind(layer.shape), layer.mode), []).append(speedup)
    made = []
    for layout in LAYOUTS:
        for name in gains.KINDS:
            if forward := values.get((layout, name, FORWARD)):
                training = values[layout, name, TRAINING]
                made.append(
                    {
                        "isa": isa,
                        "layout": layout,
                        "kind": name,
                        "layers": len(forward),
                        "forward": round(geomean(forward), 2),
                        "training": round(geomean(training), 2),
                    }
                )
    return made


def text(folder: Path) -> str:
    """Of gains.json, for the results of a folder."""
    made, cpu = [], ""
    for isa, name in FILES.items():
        results = read(folder / name)
        made += rows(isa, layers(results.rows))
        cpu = results.facts["cpu"].partition(",")[0]
    about = f"Made by `python -m bench.gains` from {folder.name} ({cpu}, float32, 2 threads)."
    lines = ",\n    ".join(json.dumps(row) for row in made)
    return f'{{\n  "about": {json.dumps(about)},\n  "rows": [\n    {lines}\n  ]\n}}\n'


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the file."""
    parser = argparse.ArgumentParser(prog="python -m bench.gains", description=__doc__)
    here = machine.ROOT / "bench" / "results" / machine.folder_name("cpu")
    parser.add_argument("folder", nargs="?", type=Path, default=here, help="(this machine's)")
    write_atomically(TARGET, text(parser.parse_args(argv).folder))
    print(f"wrote {TARGET}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
