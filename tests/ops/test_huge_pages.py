"""Large outputs ask for pages of 2 MiB, by whichever road they are allocated."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vmf_kernels import dynamic_relu, use_backend

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the advice is given on Linux")
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def advised(address: int) -> bool:
    """Whether the mapping around an address carries the advice MADV_HUGEPAGE."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError(f"no mapping holds {address:#x}")


@LINUX
@pytest.mark.parametrize("listens", [False, True], ids=["direct", "dispatcher"])
def test_a_large_output_is_advised(listens: bool, extension: ModuleType) -> None:
    if not SETTING.exists():
        pytest.skip("this kernel has no transparent huge pages")
    torch.use_deterministic_algorithms(listens)  # which the dispatcher sees to
    x = torch.ones(1, 4, 3, 1000, 1000)
    a = torch.ones(1, 4)
    with use_backend("cpu"):
        y = dynamic_relu(x, a, a)
    assert advised(y.data_ptr() + y.nbytes // 2)
    assert not advised(x.data_ptr() + x.nbytes // 2)
    assert torch.equal(y, x)


@LINUX
def test_a_small_output_is_not(extension: ModuleType) -> None:
    x, a = torch.ones(1, 4, 1, 100, 100), torch.ones(1, 4)
    with use_backend("cpu"):
        assert not advised(dynamic_relu(x, a, a).data_ptr())
