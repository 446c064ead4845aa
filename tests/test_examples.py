"""The examples run, and say what they promise."""

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_x3d() -> None:
    options = ["--batch", "2", "--frames", "4", "--size", "32", "--rounds", "1"]
    command = [sys.executable, str(EXAMPLES / "x3d.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (differences,) = re.findall("differences in float64: (.*)", done.stdout)
    found = [float(number) for number in re.findall(r"\de-\d+", differences)]
    assert len(found) == 3 and max(found) < 1e-10
    rows = re.findall(r"^  (.+?) +\d+ ms +[\d.]+x +[\d.]+x$", done.stdout, re.MULTILINE)
    models = ["eager, contiguous", "eager, channels_last", "accelerate"]
    expected = [*models, *models, "fuse"]
    if "kept" in " ".join(rows):  # where the C library is glibc
        kept = [f"{name}, kept" for name in models]
        expected = [*models, *kept, *models, "fuse", *kept, "fuse, kept"]
    assert rows == expected
