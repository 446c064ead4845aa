"""What every test has: poisoned memory, fixed seeds, and the ways to run the kernels."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

if not torch.cuda.is_available():  # before Triton is imported: its kernels then run in Python
    os.environ["TRITON_INTERPRET"] = "1"

from vmf_kernels import _extension, _triton, use_backend


@dataclass(frozen=True)
class Implementation:
    """One way to run the ops: a backend and, for the C++ one, its instruction set."""

    backend: str
    device: str = "cpu"
    isa: str | None = None

    def __str__(self) -> str:
        return f"{self.backend}-{self.isa}" if self.isa else self.backend


# Every test of an op's numbers runs once for each of these. A GPU backend is one line here, with
# `marks=pytest.mark.gpu`.
REFERENCE = Implementation("reference")
KERNELS = [Implementation("cpu", isa=isa) for isa in ("baseline", "avx2", "avx512")]
IMPLEMENTATIONS = [REFERENCE, *KERNELS]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pure-python",
        action="store_true",
        help="the installation has no C++ extension: skip what needs it instead of failing",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Several workers on all cores each would only wait for one another.
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device: torch sees none")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills every `torch.empty`, those of C++ too, with NaN: an element nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def interpreter_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter runs in the tests that ask for it (tests/triton), as elsewhere."""
    monkeypatch.setattr(_triton, "INTERPRETED", False)


@pytest.fixture
def extension(request: pytest.FixtureRequest) -> ModuleType:
    """The compiled host module. Its absence fails a test, except under `--pure-python`."""
    if _extension._C is None:
        if request.config.getoption("--pure-python"):
            pytest.skip(f"--pure-python: {_extension.REASON}")
        pytest.fail(_extension.REASON)
    return _extension._C


@pytest.fixture
def isa(extension: ModuleType) -> Iterator[ModuleType]:
    """The extension; its instruction set is restored afterwards."""
    before = extension.current_isa()
    yield extension
    extension.set_isa(before)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """`torch.set_num_threads`; restored afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=IMPLEMENTATIONS, ids=str)
def implementation(request: pytest.FixtureRequest) -> Iterator[Implementation]:
    """Forces one implementation; skips where this CPU lacks its instruction set."""
    chosen: Implementation = request.param
    before = None
    if chosen.backend == "cpu":
        extension = request.getfixturevalue("extension")
        if chosen.isa not in extension.supported_isas():
            pytest.skip(f"this CPU has no {chosen.isa}")
        before = extension.current_isa()
        extension.set_isa(chosen.isa)
    with use_backend(chosen.backend):
        yield chosen
    if before is not None:
        _extension._C.set_isa(before)
