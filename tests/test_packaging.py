"""The package as users get it: wheel, sdist, and an installation without a C++ compiler."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from vmf_kernels import _cuda

ROOT = Path(__file__).parents[1]
CALL = """
import torch, vmf_kernels
from vmf_kernels import _extension
x, w = torch.randn(2, 4, 3, 5, 6), torch.randn(4, 1, 3, 3, 3)
expected = torch.nn.functional.conv3d(x, w, padding=1, groups=4)
torch.testing.assert_close(vmf_kernels.depthwise_conv3d(x, w, padding=1), expected)
torch.testing.assert_close(vmf_kernels.DepthwiseConv3d(4, 4, 3, padding=1)(x).shape, x.shape)
print(vmf_kernels.__file__)
print(vmf_kernels.explain(vmf_kernels.depthwise_conv3d, x, w)[0].backend)
"""


def copy_checkout(folder: Path) -> Path:
    """A copy of the source tree in `folder`, without anything that was built in it."""
    built = shutil.ignore_patterns(
        *(".*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__")
    )

    def ignore(path: str, names: list[str]) -> set[str]:
        # What the demo made lies at the top; vmf/demo is source.
        return built(path, names) | ({"demo"} if Path(path) == ROOT else set())

    return Path(shutil.copytree(ROOT, folder / "checkout", ignore=ignore))


def test_the_library_of_cuda_kernels_hides_no_module() -> None:
    """Python takes NAME.so for a module of that name, before NAME.py."""
    assert not _cuda.PATH.with_suffix(".py").exists()
    assert f'"{_cuda.PATH.name}"' in (ROOT / "setup.py").read_text()  # which writes it


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Standard output and error of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def pip(*arguments: str | Path, cwd: Path, **env: str) -> str:
    options = ("--disable-pip-version-check", "--no-index", "--no-deps", "--verbose")
    return run(sys.executable, "-m", "pip", *arguments, *options, cwd=cwd, **env)


def fresh_environment(folder: Path) -> tuple[Path, Path]:
    """A new virtual environment that sees torch, but no vmf_kernels: its python, its packages."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    names = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=names))
    # A path listed in a .pth is searched, but the editable installation there is not activated.
    (packages / "outside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python", packages


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `pip wheel` does, but without optimisation: the compiler would take minutes."""
    checkout = copy_checkout(tmp_path_factory.mktemp("packaging"))
    real = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if real is None:
        pytest.skip("needs a C++ compiler: there is none")
    cxx = checkout.parent / "quick-c++"
    cxx.write_text(f'#!/bin/sh\nexec "{real}" "$@" -O0\n')
    cxx.chmod(0o755)
    said = pip(
        *("wheel", "--no-build-isolation", "--wheel-dir", checkout.parent, checkout),
        cwd=checkout.parent,
        CXX=str(cxx),
        MAX_JOBS="2",
    )
    assert "built _C" in said, "the build does not say what it built"
    (built,) = checkout.parent.glob("vmf_kernels-*.whl")
    return built


def test_wheel_holds_the_extension_and_both_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("vmf_kernels/_C.") and name.endswith(".so") for name in names)
    assert "vmf_kernels/ops/depthwise_conv3d/reference.py" in names
    assert "vmf/models/__init__.py" in names
    assert not [name for name in names if name.split("/")[0] in ("tests", "bench", "csrc", "build")]


def test_wheel_runs_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    python, packages = fresh_environment(tmp_path / "venv")
    pip("install", "--target", packages, wheel, cwd=tmp_path)
    where, backend = run(python, "-c", CALL, cwd=tmp_path).splitlines()[-2:]
    assert Path(where).is_relative_to(packages)
    assert backend == "cpu"
    said = run(python, "-m", "vmf_kernels.info", "--brief", cwd=tmp_path)
    assert "CPU kernels for baseline" in said
    # In a clone Python finds the sources first.
    said = run(python, "-m", "vmf_kernels.info", cwd=copy_checkout(tmp_path))
    assert f"installed package in {packages}: start it from another folder" in said


def test_without_a_compiler_it_installs_in_pure_python(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path)
    python, packages = fresh_environment(tmp_path / "venv")
    (tmp_path / "bin").mkdir()
    said = pip(
        *("install", "--no-build-isolation", "--target", packages, checkout),
        cwd=tmp_path,
        CXX="/nonexistent",
        PATH=str(tmp_path / "bin"),
    )
    assert "no C++ extension: there is no C++ compiler" in said
    assert "installing in pure Python" in said
    assert not list(packages.rglob("*.so"))

    where, backend = run(python, "-c", CALL, cwd=tmp_path).splitlines()[-2:]
    assert Path(where).is_relative_to(packages)
    assert backend == "reference"
    said = run(python, "-m", "vmf_kernels.info", cwd=tmp_path)
    assert "the C++ extension is not built" in said
    forced = """
import torch, vmf_kernels
try:
    with vmf_kernels.use_backend("cpu"):
        vmf_kernels.depthwise_conv3d(torch.zeros(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1))
except RuntimeError as error:
    print(error)
"""
    said = run(python, "-c", forced, cwd=tmp_path)
    assert "depthwise_conv3d: backend 'cpu' cannot run this call: the C++ extension" in said


def test_a_broken_extension_does_not_break_the_import(tmp_path: Path) -> None:
    """Import never fails: an extension of another torch, say, is reported and passed over."""
    copy = tmp_path / "vmf_kernels"
    shutil.copytree(ROOT / "vmf_kernels", copy, ignore=shutil.ignore_patterns("*.so"))
    (copy / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"not a library")
    said = run(sys.executable, "-m", "vmf_kernels.info", cwd=tmp_path)
    assert "the C++ extension does not load" in said
    where, backend = run(sys.executable, "-c", CALL, cwd=tmp_path).splitlines()[-2:]
    assert Path(where).is_relative_to(tmp_path)
    assert backend == "reference"


def test_sdist_holds_all_that_a_build_needs(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path)
    hook = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    run(sys.executable, "-c", hook, cwd=checkout)
    (built,) = tmp_path.glob("vmf_kernels-*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {str(p.relative_to(checkout)) for p in (checkout / "csrc").rglob("*") if p.is_file()}
    assert sources
    assert sources <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "vmf_kernels/_extension.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".o"))]
