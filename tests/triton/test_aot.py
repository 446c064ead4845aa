"""What the compiler makes of the kernels for real GPUs, held against a committed table.

After a change that is meant: `python -m tests.triton.aot sm_80 sm_90 sm_100 gfx942 --out
tests/triton/resources.json`, and look at the difference.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TABLE = json.loads(Path(__file__).with_name("resources.json").read_text())
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All of them, in a process without the interpreter."""
    pytest.importorskip("triton", reason="Triton is not installed")
    out = tmp_path_factory.mktemp("aot") / "resources.json"
    subprocess.run(
        [sys.executable, "-m", "tests.triton.aot", *ARCHITECTURES, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0"},
        check=True,
    )
    return json.loads(out.read_text())


def test_the_table_speaks_of_these_kernels(compiled: dict[str, Any]) -> None:
    assert compiled["kernels"].keys() == TABLE["kernels"].keys()


@pytest.mark.parametrize("name", TABLE["kernels"])
def test_nothing_is_spilled(name: str, compiled: dict[str, Any]) -> None:
    assert compiled["kernels"][name]["spills"] == 0


@pytest.mark.parametrize("name", TABLE["kernels"])
def test_loads_and_stores_are_as_wide_as_they_were(name: str, compiled: dict[str, Any]) -> None:
    ours, expected = compiled["kernels"][name], TABLE["kernels"][name]
    for kind in ("loads", "stores"):
        assert max(map(int, ours[kind])) >= max(map(int, expected[kind])), kind
        if compiled["triton"] == TABLE["triton"]:
            assert ours[kind] == expected[kind]


@pytest.mark.parametrize("name", TABLE["kernels"])
def test_registers_and_shared_memory_are_as_they_were(name: str, compiled: dict[str, Any]) -> None:
    """Exact for the compiler of the table; another one may take a quarter more."""
    ours, expected = compiled["kernels"][name], TABLE["kernels"][name]
    if compiled["triton"] == TABLE["triton"]:
        assert (ours["registers"], ours["shared"]) == (expected["registers"], expected["shared"])
    else:
        assert ours["registers"] <= max(32, expected["registers"]) * 1.25
