"""The torch-free core alone, under AddressSanitizer and UndefinedBehaviorSanitizer.

Random shapes of every op against loops in double precision, tensors in blocks of exactly their
size, work in pieces and out of order, with each instruction set. See check.h.
"""

import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from ninja import BIN_DIR
from ninja.ninja_syntax import Writer, escape_path

from setup import ISA_FLAGS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "core-test"
# Unoptimised: four times as fast to compile, and 40 s of running in all.
OPTIMISE = "-O0 -g1"
SANITIZE = "-fsanitize=address,undefined -fno-sanitize-recover=all"
CASES = 250
OPS = ["depthwise_conv3d", "dynamic_relu", "few_key_attention", "few_query_attention"]
# Kernels of csrc/cuda that fibers run on the CPU, whatever its instruction set.
CUDA = ["cuda_depthwise_conv3d", "cuda_depthwise_conv3d_channels_last"]
CUDA_CASES = {**dict.fromkeys(CUDA, 150), "cuda_divisor": 100_000}
MUST_FAIL = {"step_beyond": "AddressSanitizer: heap-buffer-overflow", "overflow": "runtime error"}


def write_ninja(path: Path, cxx: str) -> None:
    """The kernels of every instruction set, the entry points and the tests, in one program."""
    includes = " ".join(f"-I{ROOT / p}" for p in ("csrc/include", "csrc", "tests/csrc"))
    with path.open("w") as file:
        ninja = Writer(file)
        ninja.rule(
            "cxx",
            f"{cxx} -MMD -MF $out.d {OPTIMISE} -std=c++20 -Wall -Wextra -Wno-unknown-pragmas "
            f"{SANITIZE} {includes} "
            "$flags -c $in -o $out",
            depfile="$out.d",
            deps="gcc",
        )
        ninja.rule("link", f"{cxx} {SANITIZE} $in -o $out -pthread")
        objects = []
        sources = [(s, "", "") for s in (ROOT / "csrc").glob("*.cpp")]
        sources += [(s, "", "") for s in (ROOT / "tests" / "csrc").glob("*.cpp")]
        for isa, flags in ISA_FLAGS.items():
            kernels = (ROOT / "csrc" / "cpu").glob("*.cpp")
            sources += [(s, f"-DVMF_ISA={isa} {flags}", f".{isa}") for s in kernels]
        for source, flags, suffix in sorted(sources):
            objects.append(str(source.relative_to(ROOT)).replace("/", ".") + suffix + ".o")
            ninja.build(objects[-1], "cxx", escape_path(str(source)), variables={"flags": flags})
        ninja.build("core_test", "link", objects)


@pytest.fixture(scope="session")
def core_test(request: pytest.FixtureRequest) -> Path:
    """The program, built by the first worker that asks; again only for what changed."""
    if request.config.getoption("--pure-python"):
        pytest.skip("--pure-python: there need not be a C++ compiler")
    cxx = shutil.which(os.environ.get("CXX", "g++"))
    assert cxx is not None, "there is no C++ compiler"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_ninja(FOLDER / "build.ninja", cxx)
        ninja = [str(Path(BIN_DIR, "ninja")), "-C", str(FOLDER)]
        built = subprocess.run(ninja, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return FOLDER / "core_test"


def run(program: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *args], capture_output=True, text=True)


@pytest.mark.parametrize("isa", ISA_FLAGS)
@pytest.mark.parametrize("op", OPS)
def test_random_cases(core_test: Path, op: str, isa: str, extension: ModuleType) -> None:
    if isa not in extension.supported_isas():
        pytest.skip(f"this CPU has no {isa}")
    result = run(core_test, op, isa, str(CASES))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == f"{op} {isa}: {CASES} cases\n"


@pytest.mark.parametrize("op", CUDA_CASES)
def test_random_cases_of_the_cuda_kernels(core_test: Path, op: str) -> None:
    result = run(core_test, op, "baseline", str(CUDA_CASES[op]))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == f"{op} baseline: {CUDA_CASES[op]} cases\n"


@pytest.mark.parametrize("name", MUST_FAIL)
def test_the_sanitizers_are_at_work(core_test: Path, name: str) -> None:
    result = run(core_test, name, "baseline", "1")
    assert result.returncode != 0
    assert re.search(MUST_FAIL[name], result.stderr)


def test_every_op_with_kernels_is_tested() -> None:
    assert (
        sorted(
            path.stem
            for path in (ROOT / "csrc" / "include" / "vmf").glob("*.h")
            if (ROOT / "csrc" / "bindings" / f"{path.stem}.cpp").exists()
        )
        == OPS
    )
    assert sorted(f"cuda_{path.stem}" for path in (ROOT / "csrc" / "cuda").glob("*.cu")) == CUDA
