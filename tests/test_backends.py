"""Which backend runs a call: use_backend, VMF_BACKEND, and what a refusal says."""

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest
import torch

import vmf_kernels
from tests.ops.samples import FUNCTIONS, function_call
from vmf_kernels import depthwise_conv3d, use_backend
from vmf_kernels.backends import NAMES, OPS, current_backend

X, W = torch.ones(1, 2, 3, 4, 5), torch.ones(2, 1, 1, 1, 1)


def test_auto_is_the_default() -> None:
    assert current_backend() == "auto"


@pytest.mark.parametrize("name", NAMES)
def test_inside_the_block_only(name: str) -> None:
    with use_backend(name):
        assert current_backend() == name
        with use_backend("auto"):
            assert current_backend() == "auto"
        assert current_backend() == name
    assert current_backend() == "auto"


def test_ends_with_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), use_backend("reference"):
        raise ZeroDivisionError
    assert current_backend() == "auto"


def test_works_as_a_decorator() -> None:
    @use_backend("reference")
    def inner() -> str:
        return current_backend()

    assert inner() == inner() == "reference"
    assert current_backend() == "auto"


@pytest.mark.parametrize("name", ["", "CPU", "gpu", "pytorch", "auto "])
def test_unknown_name(name: str) -> None:
    message = f"^use_backend: the backend must be one of auto, .* \\(got {name!r}\\)$"
    with pytest.raises(ValueError, match=message), use_backend(name):
        pass
    assert current_backend() == "auto"


def test_local_to_the_thread() -> None:
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(current_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]

    barrier = threading.Barrier(2)

    def run(name: str) -> str:
        with use_backend(name):
            barrier.wait(timeout=60)
            return current_backend()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, ["reference", "triton"])) == ["reference", "triton"]


def test_local_to_the_context() -> None:
    async def task(name: str) -> str:
        with use_backend(name):
            await asyncio.sleep(0)
            return current_backend()

    async def both() -> list[str]:
        return list(await asyncio.gather(task("reference"), task("cuda")))

    assert asyncio.run(both()) == ["reference", "cuda"]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_a_forced_backend_that_cannot_says_why(name: str, backend: str) -> None:
    function, tensors = function_call(name)
    message = f"^{name}: backend '{backend}' cannot run this call: "
    with use_backend(backend), pytest.raises((NotImplementedError, RuntimeError), match=message):
        function(*tensors)


def test_auto_goes_on_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmf_kernels._extension, "LOADED", False)
    assert torch.equal(depthwise_conv3d(X, W), X)
    assert OPS["depthwise_conv3d"].select(*prepared()).name == "reference"
    with use_backend("cpu"), pytest.raises(RuntimeError, match="backend 'cpu' cannot run"):
        depthwise_conv3d(X, W)


def prepared() -> tuple[object, ...]:
    return OPS["depthwise_conv3d"].prepare(X, W, None, 1, 0, 1)


def test_auto_takes_the_kernels(extension: ModuleType) -> None:
    assert OPS["depthwise_conv3d"].select(*prepared()).name == "cpu"


def test_the_cpu_backend_refuses_other_devices(extension: ModuleType) -> None:
    message = "backend 'cpu' cannot run this call: it runs on the CPU .got a tensor on meta."
    with use_backend("cpu"), pytest.raises(NotImplementedError, match=message):
        depthwise_conv3d(X.to("meta"), W.to("meta"))


def test_reference_module_is_the_reference_backend() -> None:
    for name in FUNCTIONS:
        assert name in vmf_kernels.reference.__all__
    x = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    w = torch.randn(3, 1, 3, 3, 3, dtype=torch.float64)
    with use_backend("reference"):
        expected = depthwise_conv3d(x, w, padding=1)
    with use_backend("triton"):  # the module's functions do not care
        assert torch.equal(vmf_kernels.reference.depthwise_conv3d(x, w, padding=1), expected)
    assert torch.equal(expected, torch.nn.functional.conv3d(x, w, padding=1, groups=3))


def test_compiled_code_keeps_the_backend_of_its_tracing() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: depthwise_conv3d(x, W), backend="eager", fullgraph=True)
    with use_backend("reference"):
        assert torch.equal(compiled(X), X)
    with use_backend("cuda"):
        assert torch.equal(compiled(X), X)


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )


CALL = """
import torch, vmf_kernels
from vmf_kernels.backends import current_backend
x, w = torch.ones(1, 2, 3, 4, 5), torch.ones(2, 1, 1, 1, 1)
try:
    print(current_backend(), vmf_kernels.explain(vmf_kernels.depthwise_conv3d, x, w)[0].backend)
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


def test_environment_variable() -> None:
    assert python(CALL, VMF_BACKEND="reference").stdout.strip() == "reference reference"
    assert python(CALL, VMF_BACKEND="").stdout.startswith("auto ")


def test_environment_variable_with_an_unknown_name() -> None:
    said = python(CALL, VMF_BACKEND="fast").stdout
    assert said.startswith("ValueError: VMF_BACKEND: the backend must be one of auto, ")
    assert said.strip().endswith("(got 'fast')")
    assert python("import vmf_kernels", VMF_BACKEND="fast").returncode == 0, "import never fails"
