"""`python -m bench.gains [FOLDER]`: what the library tells and chooses by, from measurements.

Of a folder with ops-cpu.csv and ops-cpu-avx2.csv: the gains that `explain` tells, geometric means
over float32 layers, ours against the best peer in the same layout, by kind of layer. Writes
vmf_kernels/ops/depthwise_conv3d/gains.json.

Of a folder with parts.csv of a GPU: by which "auto" chooses between CUDA C++ and Triton, geometric
means of Triton's time over that of CUDA C++. With channels last and a multiplier Triton runs on
contiguous copies, whose time is estimated. Writes cuda_gains.json beside it.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import machine
from bench.files import write_atomically
from bench.op import CHANNELS_LAST, CONTIGUOUS, FORWARD, LAYOUTS, TRAINING
from bench.results import Layer, layers, read
from bench.timing import geomean
from vmf_kernels.ops.depthwise_conv3d import cuda_gains, gains
from vmf_kernels.ops.depthwise_conv3d.library import triton_keeps_last

OP = "depthwise_conv3d"
FILES = {"avx512": "ops-cpu.csv", "avx2": "ops-cpu-avx2.csv"}
PARTS = "parts.csv"
# Two copies read and write what a part does, and transposing copies at half of a copy's speed; two
# launches.
COPY_PASSES, COPY_US = 4, 4
TARGET = machine.ROOT / "vmf_kernels" / "ops" / OP / "gains.json"


def kind(shape: str) -> str:
    """Of a layer by the text of its shape, such as 8x54x13x40x40 k3x3x3 s1x2x2."""
    kernel, stride, _ = _sizes(shape)
    return gains.kind(kernel, stride)


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
    return _json(about, made)


def cuda_text(folder: Path) -> str:
    """Of cuda_gains.json, for the parts.csv of a folder."""
    times: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in read(folder / PARTS).rows:
        call = (row["case"], row["dtype"], row["layout"], row["part"])
        times.setdefault(call, {})[row["kernels"]] = float(row["us"])
        times[call]["pass"] = float(row["pass_us"])
    ratios: dict[Any, dict[str, list[float]]] = {}
    for (case, dtype, layout, part), us in times.items():
        if {"cuda", "triton"} <= us.keys():
            kernel, stride, multiplier = _sizes(case)
            bits = 32 if dtype == "float32" else 16
            name = cuda_gains.kind(bits, layout, kernel, stride, multiplier)
            triton = us["triton"]
            if _copied(layout, multiplier):
                triton = times[case, dtype, CONTIGUOUS, part]["triton"]
                triton += COPY_PASSES * us["pass"] + COPY_US
            ratios.setdefault(name, {}).setdefault(part, []).append(triton / us["cuda"])
    made = []
    for (bits, layout, kernel, stride, more), parts in ratios.items():
        found: dict[str, Any] = {"bits": bits, "layout": layout, "kernel": kernel, "stride": stride}
        found |= {"multiplier": 2 if more else 1, "rows": len(parts[cuda_gains.PARTS[0]])}
        found |= {part: round(geomean(parts[part]), 2) for part in cuda_gains.PARTS}
        made.append(found | ({"estimated": True} if _copied(layout, 1 + more) else {}))
    about = (
        f"Made by `python -m bench.gains bench/results/{folder.name}` from its {PARTS}. "
        "A multiplier of 2 stands for all above 1, rows for layers and dtypes. Estimated: Triton's "
        f"time in contiguous memory, {COPY_PASSES} passes and {COPY_US} us for the copies."
    )
    return _json(about, made)


def _copied(layout: str, multiplier: int) -> bool:
    """Whether Triton runs such layers on contiguous copies."""
    last = layout == CHANNELS_LAST
    return last and not triton_keeps_last(last, multiplier)


def _sizes(case: str) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Kernel, stride and multiplier of a layer by its text, as 8x32x8x28x28 k3x3x3 s1x2x2 m6."""
    words = {word[0]: word[1:] for word in case.split() if word[0] in "ksm" and word[1:2].isdigit()}
    kernel, stride = (tuple(map(int, words.get(name, "1x1x1").split("x"))) for name in ("k", "s"))
    return kernel, stride, int(words.get("m", 1))


def _json(about: str, rows: Sequence[dict[str, Any]]) -> str:
    lines = ",\n    ".join(json.dumps(row) for row in rows)
    return f'{{\n  "about": {json.dumps(about)},\n  "rows": [\n    {lines}\n  ]\n}}\n'


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the file."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gains",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    here = machine.ROOT / "bench" / "results" / machine.folder_name("cpu")
    parser.add_argument("folder", nargs="?", type=Path, default=here, help="(this machine's)")
    folder = parser.parse_args(argv).folder
    made = {
        TARGET: (text, FILES["avx512"]),
        TARGET.with_name("cuda_gains.json"): (cuda_text, PARTS),
    }
    known = {path: make for path, (make, name) in made.items() if (folder / name).exists()}
    if not known:
        parser.error(f"folder: it has neither {FILES['avx512']} nor {PARTS} (got {folder})")
    for path, make in known.items():
        write_atomically(path, make(folder))
        print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
