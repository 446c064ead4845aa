"""Memory that is kept: of large outputs by the kernels, of everything by the C library."""

import ctypes
import multiprocessing
import pickle
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from vmf_kernels import dynamic_relu, keep_freed_memory, memory, release_memory, use_backend

MIB = 1 << 20
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="memory is kept on Linux")
pytestmark = LINUX


@pytest.fixture(autouse=True)
def nothing_kept(extension: ModuleType) -> Iterator[None]:
    # Fresh memory is not filled here: the kernels take the short road.
    torch.use_deterministic_algorithms(False)
    release_memory()
    yield
    release_memory()


def large(mib: int = 36, dtype: torch.dtype = torch.float32) -> Tensor:
    """An input whose output is as large."""
    return torch.ones(1, 4, 1, mib, MIB // 4 // dtype.itemsize, dtype=dtype)


def copy(x: Tensor) -> Tensor:
    """Made by a kernel."""
    one = torch.ones(1, 4, dtype=x.dtype)
    with use_backend("cpu"):
        return dynamic_relu(x, one, one)


def kept(extension: ModuleType) -> int:
    return extension.kept_memory() // MIB


def test_the_next_output_takes_it(extension: ModuleType) -> None:
    x = large()
    y = copy(x)
    address = y.data_ptr()
    assert kept(extension) == 0
    y.fill_(torch.nan)
    del y
    assert kept(extension) == 36
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    y = copy(x)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert y.data_ptr() == address and kept(extension) == 0
    assert torch.equal(y, x)
    assert faults < 36 * MIB // 4096 // 2, "most of its pages are there"


def test_an_output_that_lives_is_never_given_away() -> None:
    x = large()
    first, second = copy(x), copy(2 * x)
    del x
    assert first.data_ptr() != second.data_ptr()
    assert first.eq(1).all() and second.eq(2).all()
    view = first[0, 1]
    del first
    third = copy(large())
    third.zero_()
    assert view.eq(1).all(), "a view keeps the block"


def test_smaller_ones_and_other_sizes(extension: ModuleType) -> None:
    del_me = copy(large(7))
    del del_me
    assert kept(extension) == 0, "the C library sees to blocks below 8 MB"
    sizes = {}
    for mib in (80, 40, 33):
        y = copy(large(mib))
        sizes[mib] = y.data_ptr()
        del y
    # 33 MiB fit into the 40; 40 into neither what is left nor, sensibly, the 80.
    assert sizes[33] == sizes[40] and sizes[40] != sizes[80]
    assert kept(extension) == 80 + 34
    y = copy(large(40))
    assert kept(extension) == 80 + 34 and y.eq(1).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    for _ in range(2):
        x = large(dtype=dtype)
        y = copy(x)
        assert y.dtype == dtype and torch.equal(y, x)


def test_it_can_be_given_back(extension: ModuleType) -> None:
    y = copy(large())
    del y
    assert release_memory() == 36 * MIB
    assert release_memory() == 0 == kept(extension)


def test_it_is_bounded(extension: ModuleType) -> None:
    before = extension.limit_kept_memory(80 * MIB)
    try:
        several = [copy(large(mib)) for mib in (34, 36, 38)]
        last = several[-1].data_ptr()
        while several:
            several.pop(0)
        assert kept(extension) == 36 + 38, "the oldest has gone"
        assert extension.limit_kept_memory(40 * MIB) == 80 * MIB
        assert kept(extension) == 38
        y = copy(large(38))
        assert y.data_ptr() == last
        extension.limit_kept_memory(0)
        del y
        assert kept(extension) == 0
    finally:
        extension.limit_kept_memory(before)


def offered() -> int:
    """MiB that the system may take from this process."""
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("LazyFree:")) // 1024


def test_all_but_the_newest_are_offered_to_the_system(extension: ModuleType) -> None:
    before, already = extension.limit_kept_memory(160 * MIB), offered()
    try:
        outputs = [copy(large(mib)) for mib in (34, 10, 12)]
        while outputs:
            outputs.pop(0)
        assert kept(extension) == 34 + 10 + 12
        assert offered() - already == 34, "a quarter of the limit, 40, is more than 10 and 12"
    finally:
        extension.limit_kept_memory(before)


def test_an_impossible_size(extension: ModuleType) -> None:
    x, a = torch.ones(1, 1, 1, 1, 1).expand(1, 1, 1, 1, 1 << 62), torch.ones(1, 1)
    with pytest.raises(RuntimeError), use_backend("cpu"):
        dynamic_relu(x, a, a)
    assert kept(extension) == 0


def test_tensors_are_ordinary(extension: ModuleType) -> None:
    x = large()
    x.requires_grad_()
    y = copy(x)
    y.sum().backward()
    assert x.grad is not None and x.grad.eq(1).all()
    y = y.detach()
    again = pickle.loads(pickle.dumps(y))
    assert torch.equal(again, y)
    assert y.numpy().shape == tuple(y.shape)
    y += 1
    assert y.clone().eq(2).all()
    shared = y.share_memory_()
    assert shared.is_shared() and shared.eq(2).all()


def test_threads(extension: ModuleType) -> None:
    """Each gets memory of its own, whoever holds the lock."""
    wrong = []

    def work(value: int) -> None:
        x = large(32) * value
        for _ in range(8):
            y = copy(x)
            if not y.eq(value).all():
                wrong.append(value)
            y.fill_(torch.nan)
            del y

    threads = [threading.Thread(target=work, args=(value,)) for value in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert kept(extension) <= 3 * 32


def in_child() -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    y = copy(large())
    assert y.eq(1).all()


def test_after_a_fork(extension: ModuleType) -> None:
    y = copy(large())
    del y
    process = multiprocessing.get_context("fork").Process(target=in_child)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    y = copy(large() * 3)
    assert y.eq(3).all(), "the child wrote to pages of its own"


KEEPS = """
import resource, torch, vmf_kernels
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def held():
    pages = open("/proc/self/statm").read().split()[1]
    return int(pages) * resource.getpagesize() >> 20
def step():  # activations that live together, as in training
    before = faults()
    activations = [torch.ones(2 ** 20) for _ in range(30)] + [torch.ones(2 ** 24)]
    return faults() - before
torch.ones(2 ** 16)
before = held()
step(); usual = step()
told = vmf_kernels.keep_freed_memory()
step()
keeping, kept = min(step() for _ in range(3)), held() - before  # blocks may move once more
told = told and vmf_kernels.keep_freed_memory(False)
print(told, usual, keeping, kept, held() - before)
"""


def test_the_c_library_keeps_everything_when_told_to() -> None:
    if memory._c_library() is None:
        pytest.skip("this C library has no mallopt")
    command = [sys.executable, "-c", KEEPS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told, *numbers = done.stdout.split()
    usual, keeping, kept, left = map(int, numbers)
    assert told == "True"
    assert usual > 10_000 and keeping < 100, "each step mapped some of its 184 MiB anew"
    assert kept > 150 and left < 50, "until it is told otherwise"


def test_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False
    assert release_memory() == 0
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert keep_freed_memory() is False
