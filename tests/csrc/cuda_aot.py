"""Compiles the CUDA kernels for real GPUs, without one, and reads what became of them.

`python -m tests.csrc.cuda_aot ARCHITECTURE... [--out FILE]` writes registers, spilled bytes, shared
memory and the widest global load of each kernel as JSON.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton

ROOT = Path(__file__).resolve().parents[2]
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
USAGE = re.compile(
    r"Compiling entry function '(?P<symbol>\S+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


def version(nvcc: str) -> str:
    """Of the compiler, such as 13.0."""
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"release (\S+),", told)[1]  # type: ignore[index]


def readable(symbol: str) -> str:
    """`gather Convolution 3x3x3 s2` of a mangled name; with channels last also the width of
    elements and `pairs`, where the channels of a pair lie beside each other."""
    kernel, body, rest = re.search(  # type: ignore[misc]
        r"((?:gather|grad_weight)(?:_rows)?|add_partials)I(?:NS0_\d+([A-Za-z]+)I)?(.*)", symbol
    ).groups()
    numbers = re.findall(r"Li(\d+)E", rest)
    stride = [f"s{numbers[3]}"] if len(numbers) > 3 else []
    bits = {"j": ["32 bits"], "t": ["16 bits"]}.get(*re.findall(r"EE([jt])", rest)[:1] or [""], [])
    pairs = ["pairs"] if "Lb1E" in rest else []
    return " ".join(
        [kernel, *([body] if body else []), "x".join(numbers[:3]), *stride, *bits, *pairs]
    )


def resources(nvcc: str, architecture: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and resources of the kernels, as compiled for an architecture such as sm_90."""
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder, "kernels.cubin"))
            command = [nvcc, "-std=c++20", "-O3", f"-arch={architecture}", "-cubin", "-Xptxas=-v"]
            command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
            compiled = subprocess.run(
                [*command, str(source), "-o", out], capture_output=True, text=True, check=False
            )
            if compiled.returncode:
                raise RuntimeError(f"{source.name}: nvcc failed\n{compiled.stderr}")
            sass = subprocess.run(
                [str(CUOBJDUMP), "-sass", out], capture_output=True, text=True, check=True
            ).stdout
        code = dict(re.findall(r"Function : (\S+)\n(.*?)(?=\n\s*Function : |\Z)", sass, re.DOTALL))
        for match in USAGE.finditer(compiled.stderr):
            widths = re.findall(r"\bLDG\.E\S*?\.(64|128)\b", code[match["symbol"]])
            yield (
                f"{readable(match['symbol'])} {architecture}",
                {
                    "registers": int(match["registers"]),
                    # A stack frame is an array that is not in registers.
                    "spills": sum(int(match[name]) for name in ("stack", "stores", "loads")),
                    "shared": int(match["shared"] or 0),
                    "widest_load": max(map(int, widths), default=32),
                },
            )


def compile_all(nvcc: str, architectures: list[str]) -> dict[str, Any]:
    """What the committed table holds."""
    kernels = {}
    for architecture in architectures:
        kernels.update(dict(resources(nvcc, architecture)))
    return {"nvcc": version(nvcc), "kernels": kernels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="+")
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--out", type=Path, help="instead of standard output")
    arguments = parser.parse_args()
    table = compile_all(arguments.nvcc, arguments.architectures)
    rows = ",\n".join(f"{json.dumps(k)}: {json.dumps(row)}" for k, row in table["kernels"].items())
    text = f'{{"nvcc": "{table["nvcc"]}", "kernels": {{\n{rows}\n}}}}\n'
    if arguments.out:
        arguments.out.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
