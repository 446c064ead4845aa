"""`make gpu-check`: all that only a machine with a GPU can tell, in one command."""

import argparse
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench import machine

NO_TESTS = 5  # status of a pytest run that found no test
SANITIZER = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "compute-sanitizer")


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        title: what it does.
        command: its words.
        environment: added to the process's own.
        missing: why it is left out here; None where it runs.
    """

    title: str
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    missing: str | None = None

    def __str__(self) -> str:
        settings = "".join(f"{name}={value} " for name, value in self.environment.items())
        return settings + shlex.join(self.command)


def lacks() -> str | None:
    """What this machine is missing for a GPU check, in one line; None if nothing."""
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is built without CUDA; install a CUDA build of torch on a "
            "machine with an NVIDIA GPU"
        )
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device: no NVIDIA GPU, or no driver for it"
    return None


def steps(folder: str) -> list[Step]:
    """Everything to run, in order; `folder` gets the results."""
    python = sys.executable
    bench = (python, "-m", "bench", "--device", "cuda")
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(str(SANITIZER))
    return [
        Step("what is built and found", (python, "-m", "vmf_kernels.info")),
        Step("tests that need a GPU", (python, "-m", "pytest", "-m", "gpu", "-q")),
        Step(
            "memory accesses of every op on small layers",
            (
                *(sanitizer or "compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "86"),
                *(*bench, "--quick", "--check-only", "--only", "vmf_151m"),
            ),
            # With an allocation of its own for each tensor, an access beside it is an error.
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            None if sanitizer else "there is no compute-sanitizer here",
        ),
        Step("every op", (*bench, "--suite", "ops", "--out", folder)),
        Step(
            "networks",
            (*bench, "--suite", "model", "--out", folder),
            missing=None if importlib.util.find_spec("vmf") else "the package vmf is not here",
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the steps; 0 only if every one that can run here succeeds."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    arguments = parser.parse_args(argv)
    reason = lacks()
    if arguments.dry_run:
        for step in steps("bench/results/GPU" if reason else _folder()):
            print(f"# {step.title}" + (f" (left out here: {step.missing})" if step.missing else ""))
            print(step)
        return 0
    if reason:
        print(f"gpu-check: {reason}", file=sys.stderr)
        return 1
    return _run(steps(_folder()))


def _run(todo: list[Step]) -> int:
    """Runs all, whatever fails on the way, and says at the end what did."""
    outcomes = []
    for step in todo:
        print(f"\n== {step.title}", flush=True)
        if step.missing:
            outcomes.append((step, f"left out: {step.missing}"))
            print(step.missing)
            continue
        print(step, flush=True)
        environment = {**os.environ, **step.environment}
        code = subprocess.run(step.command, cwd=machine.ROOT, env=environment).returncode
        outcomes.append((step, _outcome(step, code)))
    print("\n== gpu-check")
    for step, outcome in outcomes:
        print(f"{step.title}: {outcome}")
    return int(any(outcome.startswith("FAILED") for _, outcome in outcomes))


def _outcome(step: Step, code: int) -> str:
    if code == 0:
        return "ok"
    if code == NO_TESTS and "pytest" in step.command:
        return "FAILED: no test carries the marker gpu, so nothing was tested"
    return f"FAILED with status {code}"


def _folder() -> str:
    return f"bench/results/{machine.folder_name('cuda')}"


if __name__ == "__main__":
    sys.exit(main())
