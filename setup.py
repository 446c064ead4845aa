"""Builds vmf_kernels._C with ninja; all other metadata is in pyproject.toml.

The kernels of csrc/cpu are compiled once per instruction set, everything else in csrc once.
CUDA kernels become a library of their own, vmf_kernels/libvmf_cuda.so, where nvcc and a CUDA build
of torch are. Without a C++ compiler the package installs in pure Python. `MAX_JOBS` limits the
compilers that run at once; `CXX` names one.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

# One entry per instruction set of csrc/isa.cpp. Flags only: the sources are the same.
ISA_FLAGS = {"baseline": ""}
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS["avx2"] = "-mavx2 -mfma -mf16c"
    ISA_FLAGS["avx512"] = f"{ISA_FLAGS['avx2']} -mavx512f -mavx512bw -mavx512vl -mavx512dq"

CUDA_ARCHITECTURES = "80 90"  # and PTX of the last for newer GPUs
STABLE_ABI = "0x020b000000000000"  # torch 2.11: the oldest that can load the binary


def say(message: str) -> None:
    print(f"vmf_kernels: {message}", file=sys.stderr, flush=True)


def compiler() -> str | None:
    """The C++ compiler, or None after saying what is missing."""
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if sys.platform != "linux":
        say(f"no C++ extension: it is built on Linux (this is {sys.platform})")
    elif found is None:
        say("no C++ extension: there is no C++ compiler (install g++, or set CXX)")
    elif not headers.exists():
        say(f"no C++ extension: Python's headers are missing ({headers}; install python3-dev)")
    else:
        return found
    say("installing in pure Python: every op runs, through PyTorch")
    return None


def nvcc() -> str | None:
    """The CUDA compiler where CUDA kernels can be built, else None after saying why."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    found = shutil.which("nvcc", path=f"{CUDA_HOME}/bin") if CUDA_HOME else None
    if torch.version.cuda is None:
        say(f"no CUDA kernels: torch {torch.__version__} is built without CUDA")
    elif found is None:
        say("no CUDA kernels: there is no nvcc (put it on the PATH, or set CUDA_HOME)")
    else:
        return found
    return None


def write_ninja(path: Path, target: Path, cxx: str) -> None:
    """Writes the build graph of the extension."""
    import pybind11
    from ninja.ninja_syntax import Writer, escape_path
    from torch.utils.cpp_extension import include_paths, library_paths

    includes = [CSRC / "include", CSRC]
    # First, since torch carries a pybind11 that some releases refuse beside the stable ABI.
    torch_includes = [pybind11.get_include(), *include_paths(), sysconfig.get_path("include")]
    links = [f"-L{p}" for p in library_paths()] + ["-ltorch", "-ltorch_cpu", "-lc10"]
    with path.open("w") as file:
        ninja = Writer(file)
        ninja.variable(
            "flags",
            f"-O3 -std=c++20 -fPIC -fvisibility=hidden -Wall -Wextra -ffile-prefix-map={ROOT}=.",
        )
        ninja.variable("includes", " ".join(f"-I{p}" for p in includes))
        # System headers: their warnings are not ours.
        ninja.variable("torch", " ".join(f"-isystem {p}" for p in torch_includes))
        ninja.rule(
            "cxx",
            f"{cxx} -MMD -MF $out.d $flags $includes $extra -c $in -o $out",
            depfile="$out.d",
            deps="gcc",
            description="compile $out",
        )
        ninja.rule("link", f"{cxx} -shared $in $links -o $out", description="link $out")
        objects = []

        def compile(source: Path, extra: str, suffix: str = "", rule: str = "cxx") -> None:
            name = str(source.relative_to(CSRC).with_suffix("")).replace("/", ".")
            objects.append(f"{name}{suffix}.o")
            ninja.build(objects[-1], rule, escape_path(str(source)), variables={"extra": extra})

        for source in sorted(CSRC.glob("*.cpp")):
            compile(source, "")
        for source in sorted((CSRC / "cpu").glob("*.cpp")):
            for isa, isa_flags in ISA_FLAGS.items():
                compile(source, f"-DVMF_ISA={isa} {isa_flags}", f".{isa}")
        for source in sorted((CSRC / "bindings").glob("*.cpp")):
            compile(source, f"-DTORCH_TARGET_VERSION={STABLE_ABI} $torch")
        ninja.build(escape_path(str(target)), "link", objects, variables={"links": " ".join(links)})


def write_cuda_ninja(path: Path, target: Path, nvcc: str) -> None:
    """Writes the build graph of the CUDA kernels: a library of its own, without torch."""
    from ninja.ninja_syntax import Writer, escape_path

    archs = [f"-gencode arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES.split()]
    last = CUDA_ARCHITECTURES.split()[-1]
    archs.append(f"-gencode arch=compute_{last},code=compute_{last}")
    with path.open("w") as file:
        ninja = Writer(file)
        ninja.rule(
            "nvcc",
            f"{nvcc} -O3 -std=c++20 -Xcompiler -fPIC,-fvisibility=hidden {' '.join(archs)} "
            f"-I{CSRC / 'include'} -I{CSRC} -MD -MF $out.d -c $in -o $out",
            depfile="$out.d",
            deps="gcc",
            description="compile $out",
        )
        ninja.rule("link", f"{nvcc} -shared $in -o $out", description="link $out")
        objects = []
        for source in sorted([*(CSRC / "cuda").glob("*.cu"), *(CSRC / "cuda").glob("*.cpp")]):
            objects.append(f"cuda.{source.name}.o")
            ninja.build(objects[-1], "nvcc", escape_path(str(source)))
        ninja.build(escape_path(str(target)), "link", objects)


class NinjaBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        cxx = compiler()
        if cxx is None:
            return
        import ninja

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = ROOT / "build" / f"ninja-{sysconfig.get_config_var('SOABI')}"
        folder.mkdir(parents=True, exist_ok=True)
        write_ninja(folder / "build.ninja", target, cxx)
        command = [str(Path(ninja.BIN_DIR, "ninja")), "-C", str(folder)]
        if jobs := os.environ.get("MAX_JOBS"):
            command += ["-j", jobs]
        subprocess.run(command, check=True)
        say(f"built {target.name}: CPU kernels for {', '.join(ISA_FLAGS)}")
        if cuda := nvcc():
            target = target.with_name("libvmf_cuda.so")
            write_cuda_ninja(folder / "cuda.ninja", target, cuda)
            if subprocess.run([*command, "-f", "cuda.ninja"], check=False).returncode == 0:
                say(f"built {target.name}: CUDA kernels for sm_{CUDA_ARCHITECTURES}")
            else:  # everything else works without them
                say("no CUDA kernels: nvcc failed (its message is above)")


if __name__ == "__main__":  # the tests of the core import ISA_FLAGS
    setup(
        # `optional`: a pure-Python install goes on without the file.
        ext_modules=[Extension("vmf_kernels._C", sources=[], optional=True)],
        cmdclass={"build_ext": NinjaBuild},
    )
