"""What nvcc makes of the CUDA kernels, held against a committed table; what they compute is tested
in test_core.py.

After a change that is meant: `python -m tests.csrc.cuda_aot sm_90 --out
tests/csrc/cuda_resources.json`, and look at the difference.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

TABLE = json.loads(Path(__file__).with_name("cuda_resources.json").read_text())
ARCHITECTURES = ["sm_90"]  # each takes 40 s; sm_80 had no spills either when these were written


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc")
    pytest.importorskip("triton", reason="Triton, which has cuobjdump, is not installed")
    from tests.csrc.cuda_aot import compile_all

    return compile_all(nvcc, ARCHITECTURES)


def test_resources_of_the_cuda_kernels(compiled: dict[str, Any]) -> None:
    """Exact for the compiler of the table; another one may take a quarter more registers."""
    assert compiled["kernels"].keys() == TABLE["kernels"].keys()
    for name, expected in TABLE["kernels"].items():
        ours = compiled["kernels"][name]
        assert ours["spills"] == 0, name
        assert ours["widest_load"] >= expected["widest_load"], name
        if compiled["nvcc"] == TABLE["nvcc"]:
            assert ours == expected, name
        else:
            assert ours["registers"] <= max(32, expected["registers"]) * 1.25, name
