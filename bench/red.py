"""Whether an op's tests pass: where they do not, its speed means nothing."""

import subprocess
import sys
from collections.abc import Callable

from bench.machine import ROOT


def red_ops(ops: list[str], tell: Callable[[str], None]) -> dict[str, str]:
    """Runs the tests of each op; returns why those that are not green are not.

    Args:
        ops: names; the tests of one are those in tests/ops with its name in theirs.
        tell: is told the progress.
    """
    red = {}
    for op in ops:
        tell(f"tests of {op} ...")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "tests/ops", "-k", op]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["silent"]
        if done.returncode:
            red[op] = f"its tests are red: {lines[-1].strip('= ')}"
        tell(f"tests of {op}: {lines[-1].strip('= ')}")
    return red
