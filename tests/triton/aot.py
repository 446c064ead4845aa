"""Compiles the Triton kernels ahead of time, without a GPU, and reads what became of them.

`python -m tests.triton.aot ARCHITECTURE... [--out FILE]` runs every launcher of `calls.py` on meta
tensors, takes the launches instead of making them, compiles each for the architectures, and writes
registers, spilled bytes, shared memory and the widths of global loads and stores as JSON. It is a
process of its own, as the tests' process has Triton's interpreter instead of the compiler.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from tests.triton.calls import CALLS
from vmf_kernels import tiles

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# The width in bits stands behind a point; without one it is 32.
WIDTHS = ("8", "16", "64", "128")
ACCESS = re.compile(r"\b(LDG|STG|LDL|STL)((?:\.\w+)*)")
ALIGNED = [["tt.divisibility", 16]]


class Taken(list[tuple[JITFunction, dict[str, Any], dict[str, Any]]]):
    """The launches that were to be made: kernel, arguments by name, options."""

    def __enter__(self) -> "Taken":
        self.run = JITFunction.run

        def take(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
            values = dict(zip(kernel.arg_names, args, strict=False))
            options = {k: v for k, v in kwargs.items() if k not in kernel.arg_names}
            self.append(
                (kernel, values | {k: kwargs[k] for k in kwargs if k not in options}, options)
            )
            assert all(0 < n < 2**31 for n in grid[:1]) and all(0 < n < 2**16 for n in grid[1:])

        JITFunction.run = take
        return self

    def __exit__(self, *exception: object) -> None:
        JITFunction.run = self.run


def source(kernel: JITFunction, values: dict[str, Any]) -> ASTSource:
    """What the just-in-time compiler would make of these arguments."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(i,)] = ALIGNED
        elif parameter.is_constexpr or value is None or value is True or value is False:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif value == 1 and not parameter.do_not_specialize:
            signature[parameter.name], constants[parameter.name] = "constexpr", 1
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = ALIGNED
    return ASTSource(kernel, signature, constants, attributes)


def resources(compiled: Any, target: GPUTarget) -> dict[str, Any]:
    """Registers, spills, shared memory and widths of global accesses, by bits, of one kernel."""
    result = {"shared": compiled.metadata.shared}
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]
        spills = re.findall(r"\.(?:sgpr|vgpr)_spill_count:\s*(\d+)", text)
        result["registers"] = int(re.search(r"\.vgpr_count:\s*(\d+)", text)[1])
        result["spills"] = sum(map(int, spills))
        widths = re.findall(r"\b(global|buffer)_(load|store)_(\w+)", text)
        sizes = {"dword": 32, "dwordx2": 64, "dwordx3": 96, "dwordx4": 128}
        counts = Counter((kind, sizes.get(w, 16)) for _, kind, w in widths)
        pairs = (("load", "load"), ("store", "store"))
    else:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage = _tool("cuobjdump", "-res-usage", file.name)
            text = _tool("cuobjdump", "-sass", file.name)
        result["registers"] = int(re.search(r"REG:(\d+)", usage)[1])
        counts = Counter()
        for kind, parts in ACCESS.findall(text):
            bits = [part for part in re.findall(r"\.[US]?(\d+)", parts) if part in WIDTHS]
            counts[kind, int(bits[-1]) if bits else 32] += 1
        result["spills"] = sum(n for (kind, _), n in counts.items() if kind in ("LDL", "STL"))
        pairs = (("load", "LDG"), ("store", "STG"))
    for name, kind in pairs:
        result[f"{name}s"] = {str(b): n for (k, b), n in sorted(counts.items()) if k == kind}
    return result


def _tool(name: str, *arguments: str) -> str:
    command = [str(TOOLS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compile_all(architectures: list[str], only: str) -> dict[str, dict[str, Any]]:
    """Resources by "call kernel number architecture"."""
    result: dict[str, dict[str, Any]] = {}
    for architecture in architectures:
        if architecture.startswith("gfx"):
            target = GPUTarget("hip", architecture, 64)
        else:
            target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
        tiles.architecture = lambda device, name=architecture: name
        for name, call in CALLS.items():
            if not re.search(only, name):
                continue
            if call.architectures and architecture not in call.architectures:
                continue
            with Taken() as launches, torch.device("meta"):
                call.run()
            for kernel, values, options in launches:
                if kernel.__name__ == "_sum_splits" and not call.second_stage:
                    continue
                compiled = triton.compile(source(kernel, values), target=target, options=options)
                # One kernel runs a convolution in both directions.
                back = " back" if values.get("DIL_T", 1) < 0 else ""
                key = f"{name} {kernel.__name__.strip('_')}{back} {architecture}"
                assert key not in result, key
                result[key] = resources(compiled, target)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("architectures", nargs="+")
    parser.add_argument("--only", default="", help="calls whose name matches")
    parser.add_argument("--out", type=Path, help="instead of standard output")
    arguments = parser.parse_args()
    table = compile_all(arguments.architectures, arguments.only)
    rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in table.items())
    text = f'{{"triton": "{triton.__version__}", "kernels": {{\n{rows}\n}}}}\n'
    if arguments.out:
        arguments.out.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
