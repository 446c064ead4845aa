"""Another revision, checked out and built in a temporary folder that does not stay."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

# What is measured comes from the revision; how it is measured, `bench`, is always this tree's.
MEASURED = ("vmf_kernels", "vmf")


class CompareError(Exception):
    """Why there is nothing to compare, in words for the user."""


def commit_of(root: Path, revision: str) -> str:
    """The commit that git means by `revision`."""
    done = _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if done.returncode:
        raise CompareError(f"git knows no such revision here (got {revision!r})")
    return done.stdout.strip()


@contextmanager
def checked_out(
    root: Path, commit: str, build: Callable[[Path], None]
) -> Iterator[tuple[Path, Path]]:
    """A folder with `commit` built in it, gone when the block is left, however that happens.

    Args:
        root: the repository.
        commit: what to check out.
        build: builds the extension in the folder it is given.

    Yields:
        The tree, and an empty folder beside it.
    """
    with tempfile.TemporaryDirectory(prefix="vmf-bench-") as folder, _terminated_as_exit():
        tree, beside = Path(folder, "tree"), Path(folder, "beside")
        beside.mkdir()
        try:
            done = _git(root, "worktree", "add", "--detach", "--quiet", str(tree), commit)
            if done.returncode:
                raise CompareError(f"git worktree: {done.stderr.strip()}")
            build(tree)
            yield tree, beside
        finally:
            _git(root, "worktree", "remove", "--force", str(tree))
            _git(root, "worktree", "prune")


def build_extension(tree: Path) -> None:
    """Compiles the kernels of a tree into it, as `make build` would.

    Raises:
        CompareError: the build fails, or leaves no extension; with the end of what it said.
    """
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    said = run_group(command, tree)
    if not list((tree / "vmf_kernels").glob("_C*.so")):
        lines = "\n".join(said.strip().splitlines()[-15:])
        raise CompareError(f"{' '.join(command[1:])} leaves no extension:\n{lines}")


def run_group(command: Sequence[str], folder: Path) -> str:
    """Runs a command that starts others (ninja, compilers); ends them all if it is interrupted.

    Returns:
        What it printed.
    """
    with subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            return process.communicate()[0]
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def overlay(folder: Path, name: str, bench: Path, measured: Path) -> Path:
    """A folder to start Python in: `bench` from one tree, the packages measured from another.

    Args:
        folder: where to make it.
        name: of the new folder.
        bench: root of the tree that `bench` is taken from.
        measured: root of the other.
    """
    made = folder / name
    made.mkdir()
    (made / "bench").symlink_to(bench / "bench")
    for package in MEASURED:
        if (measured / package).exists():
            (made / package).symlink_to(measured / package)
    return made


def stale(root: Path) -> bool:
    """Whether a source is newer than the extension that lies in the tree."""
    built = list((root / "vmf_kernels").glob("_C*.so"))
    sources = [path for path in (root / "csrc").rglob("*") if path.is_file()]
    newest = max((path.stat().st_mtime for path in sources), default=0.0)
    return not built or newest > max(path.stat().st_mtime for path in built)


def _git(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    # In a session of its own: Ctrl-C must not end the command that cleans up.
    return subprocess.run(
        ["git", "-C", str(root), *arguments],
        capture_output=True,
        text=True,
        start_new_session=True,
    )


@contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """Turns SIGTERM into an exception, so that what is left behind is cleaned up."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
