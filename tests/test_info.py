"""python -m vmf_kernels.info: what was built, what was found, which backend serves which op."""

import os
import subprocess
import sys
from types import ModuleType

import torch

import vmf_kernels
from vmf_kernels.backends import OPS


def info(*arguments: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "vmf_kernels.info", *arguments],
        env={**os.environ, "TRITON_INTERPRET": "0", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tells_versions_builds_and_backends(extension: ModuleType) -> None:
    said = info()
    for fact in (vmf_kernels.__version__, torch.__version__, extension.current_isa()):
        assert fact in said
    for isa in extension.built_isas():
        assert isa in said
    for op in OPS:
        assert op in said
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        assert dtype in said


def test_brief_is_one_line() -> None:
    (line,) = info("--brief").splitlines()
    assert line.startswith(f"vmf_kernels {vmf_kernels.__version__}: ")


def test_tells_a_pinned_instruction_set(extension: ModuleType) -> None:
    assert "in use: baseline" in info("--brief", VMF_CPU_ISA="baseline")


def test_tells_a_wrong_instruction_set_in_a_line(extension: ModuleType) -> None:
    assert "VMF_CPU_ISA: the instruction set must be one of" in info("--brief", VMF_CPU_ISA="sse9")
    assert "VMF_CPU_ISA: the instruction set must be one of" in info(VMF_CPU_ISA="sse9")


def test_tells_a_forced_backend() -> None:
    said = info(VMF_BACKEND="reference")
    assert "reference (VMF_BACKEND" in said


def test_tells_why_a_forced_backend_serves_nothing() -> None:
    said = info(VMF_BACKEND="triton")
    assert "backend 'triton' cannot run this call" in said


def test_tells_an_unknown_backend_in_a_line() -> None:
    assert "VMF_BACKEND: the backend must be one of" in info(VMF_BACKEND="fast")
