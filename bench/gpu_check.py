"""`make gpu-check`: all that only a machine with a GPU can tell, in one command."""

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench import machine
from bench.ops import BENCHES

NO_TESTS = 5  # status of a pytest run that found no test
CUDA_TESTS = "tests/ops/test_depthwise_conv3d_cuda.py"
# Names of tests of the kernels: tails, strides, groups, splits, a second stage.
FEW = (
    *("cube", "strided-", "groups_of_taps", "many_tiles_and_splits"),
    *("odd_everything", "several_steps", "splits_of_several_steps", "odd_heads"),
    "on_a_gpu",  # of the CUDA kernels
)
SANITIZER = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "compute-sanitizer")


@dataclass(frozen=True)
class Step:
    """One command, or several that run at once.

    Attributes:
        title: what it does.
        commands: the words of each.
        environment: added to the process's own.
        missing: why it is left out here; None where it runs.
    """

    title: str
    commands: tuple[tuple[str, ...], ...]
    environment: dict[str, str] = field(default_factory=dict)
    missing: str | None = None

    def __str__(self) -> str:
        settings = "".join(f"{name}={value} " for name, value in self.environment.items())
        return "\n".join(settings + shlex.join(command) for command in self.commands)


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
    pytest = (python, "-m", "pytest", "-q")
    bench = (python, "-m", "bench", "--device", "cuda")
    found = [
        Step("what is built and found", ((python, "-m", "vmf_kernels.info"),)),
        Step(
            "the Triton kernels' tests, on the GPU",
            # What the compiler makes for other GPUs is told without one, by `make test`.
            ((*pytest, *_workers(), "--ignore", "tests/triton/test_aot.py", "tests/triton"),),
        ),
        Step("other tests that need a GPU", ((*pytest, "-m", "gpu"),)),
        # Each in a process of its own, so that what is compiled first is compiled at once. What
        # follows finds the kernels in Triton's cache.
        Step(
            "numbers of every layer",
            tuple((*bench, "--check-only", "--only", words) for words in _parts()),
            {"OMP_NUM_THREADS": "1"},
        ),
    ]
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(str(SANITIZER))
    found += [
        Step(
            f"{tool} over a few tests of every kernel",
            (
                (
                    *(sanitizer or "compute-sanitizer", "--tool", tool, "--error-exitcode", "86"),
                    # Not the compiler's processes.
                    *("--target-processes", "application-only"),
                    *(*pytest, "tests/triton", CUDA_TESTS),
                    *("-k", f"test_numbers and ({' or '.join(FEW)})"),
                ),
            ),
            # With an allocation of its own for each tensor, an access beside it is an error.
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {},
            None if sanitizer else "there is no compute-sanitizer here",
        )
        for tool in ("memcheck", "racecheck")
    ]
    return [
        *found,
        Step("call overhead", ((*bench, "--suite", "overhead", "--out", folder),)),
        Step(
            "parts of a convolution's training step",
            ((python, "-m", "bench.parts", "--device", "cuda", "--out", f"{folder}/parts.csv"),),
        ),
        Step("every op", ((*bench, "--skip-tests", "--out", folder),)),
        Step(
            "networks",
            ((*bench, "--suite", "model", "--out", folder),),
            missing=None if importlib.util.find_spec("vmf") else "the package vmf is not here",
        ),
        Step(
            "compiled peers, two layers an op",
            (
                (
                    *(*bench, "--skip-tests", "--peers", "all", "--sample", "2"),
                    *("--out", f"{folder}/compiled-peers"),
                ),
            ),
        ),
    ]


def _workers() -> tuple[str, ...]:
    """Tests on several processes, where pytest can: compiling is most of what they do."""
    return ("-n", "8") if importlib.util.find_spec("xdist") else ()


def _parts() -> list[str]:
    """Expressions for `--only` which together match every layer of every op."""
    networks = dict.fromkeys(case.model for case in BENCHES["depthwise_conv3d"].cases())
    found = [f"^depthwise_conv3d {re.escape(network)} " for network in networks]
    return [*found, *(f"^{op} " for op in BENCHES if op != "depthwise_conv3d")]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the steps; 0 only if every one that can run here succeeds."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    parser.add_argument(
        "--only",
        metavar="WORD",
        default="",
        help="only the steps with this word in their title, such as tests, networks or memcheck",
    )
    arguments = parser.parse_args(argv)
    reason = lacks()
    if arguments.dry_run:
        for step in _chosen(parser, arguments.only, "bench/results/GPU" if reason else _folder()):
            print(f"# {step.title}" + (f" (left out here: {step.missing})" if step.missing else ""))
            print(step)
        return 0
    if reason:
        print(f"gpu-check: {reason}", file=sys.stderr)
        return 1
    return _run(_chosen(parser, arguments.only, _folder()))


def _chosen(parser: argparse.ArgumentParser, word: str, folder: str) -> list[Step]:
    found = [step for step in steps(folder) if word in step.title]
    if not found:
        parser.error(f"--only: no step has it in its title (got {word!r})")
    return found


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
        begin = time.monotonic()
        outcome = _outcome(step, _start(step))
        outcomes.append((step, f"{outcome} ({time.monotonic() - begin:.0f} s)"))
    print("\n== gpu-check")
    for step, outcome in outcomes:
        print(f"{step.title}: {outcome}")
    return int(any(outcome.startswith("FAILED") for _, outcome in outcomes))


def _start(step: Step) -> int:
    """Runs a step's commands; the first status that is not 0, else 0."""
    environment = {**os.environ, **step.environment}
    running = [
        subprocess.Popen(command, cwd=machine.ROOT, env=environment) for command in step.commands
    ]
    return next((code for code in [process.wait() for process in running] if code), 0)


def _outcome(step: Step, code: int) -> str:
    if code == 0:
        return "ok"
    if code == NO_TESTS and "pytest" in step.commands[0]:
        return "FAILED: no test carries the marker gpu, so nothing was tested"
    return f"FAILED with status {code}"


def _folder() -> str:
    return f"bench/results/{machine.folder_name('cuda')}"


if __name__ == "__main__":
    sys.exit(main())
