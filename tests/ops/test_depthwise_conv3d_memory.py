"""depthwise_conv3d on tensors of any strides, and what it leaves and touches in memory."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.conftest import KERNELS, Implementation
from tests.ops.compare import assert_accurate, gradients
from tests.ops.conv_cases import NAMES, Case, peer, problem
from tests.ops.layouts import DENSE, LAYOUTS, STRANGE, is_dense
from vmf_kernels import depthwise_conv3d

CASE = Case("memory", (4, 5, 9), channels=6, multiplier=2, stride=(1, 1, 2))
SAME = Case("memory_same_size", (4, 5, 9), channels=6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strange_strides_of_every_argument(
    implementation: Implementation, dtype: torch.dtype
) -> None:
    p = problem(CASE, dtype)
    x, w, b = p.inputs
    peers = peer(CASE, dtype, "contiguous")
    for lay_x, lay_g, lay_w in itertools.product(LAYOUTS, LAYOUTS, ("contiguous", "transposed")):
        arguments = [LAYOUTS[lay_x](x), LAYOUTS[lay_w](w), STRANGE["strided"](b)]
        grad = LAYOUTS[lay_g](p.grad_output)

        def run(*args: torch.Tensor) -> torch.Tensor:
            return depthwise_conv3d(*args, *CASE.settings)

        ours = gradients(run, arguments, grad)
        for name, *rest in zip(NAMES, ours, p.truth, peers, p.scale, strict=True):
            assert_accurate(*rest, f"{name}, x {lay_x}, grad_output {lay_g}, weight {lay_w}")


def test_format_follows_where_channels_vary_fastest(implementation: Implementation) -> None:
    x, w, b = problem(CASE, torch.float32).inputs
    for name, lay in LAYOUTS.items():
        output = depthwise_conv3d(lay(x), w, b, *CASE.settings)
        last = name in ("channels_last", "channel_slice")
        assert is_dense(output, "channels_last" if last else "contiguous"), name


@pytest.mark.parametrize("layout", DENSE)
def test_expanded_gradient_of_a_sum(implementation: Implementation, layout: str) -> None:
    p = problem(CASE, torch.float32)
    x, w, b = p.inputs
    ones = torch.ones_like(p.grad_output)
    expanded = torch.ones(()).expand(p.grad_output.shape)

    def run(*args: torch.Tensor) -> torch.Tensor:
        return depthwise_conv3d(*args, *CASE.settings)

    of_ones = gradients(run, [DENSE[layout](x), w, b], DENSE[layout](ones))
    of_sum = gradients(run, [DENSE[layout](x), w, b], expanded)
    for ours, expected in zip(of_sum, of_ones, strict=True):
        assert torch.equal(ours, expected)


def test_expanded_input_and_weight(implementation: Implementation) -> None:
    x = torch.randn(1, 1, 4, 5, 6).expand(2, 3, 4, 5, 6)
    w = torch.randn(1, 1, 3, 3, 3).expand(6, 1, 3, 3, 3)
    output = depthwise_conv3d(x, w, padding=1)
    assert torch.equal(output, depthwise_conv3d(x.clone(), w.clone(), padding=1))
    assert torch.equal(output[0, 0], output[1, 5])


@pytest.mark.parametrize("layout", DENSE)
def test_unbatched_input(implementation: Implementation, layout: str) -> None:
    x, w, b = problem(CASE, torch.float32).inputs
    x, grad_output = DENSE[layout](x), problem(CASE, torch.float32).grad_output

    def run(*args: torch.Tensor) -> torch.Tensor:
        return depthwise_conv3d(*args, *CASE.settings)

    batched = gradients(run, [x[:1], w, b], grad_output[:1])
    single = gradients(run, [x[0], w, b], grad_output[0])
    # The reference may sum in another order where there is no batch dimension.
    torch.testing.assert_close(single[0], batched[0][0])
    torch.testing.assert_close(single[1], batched[1][0])
    torch.testing.assert_close(single[2], batched[2])


def test_arguments_are_left_alone(implementation: Implementation) -> None:
    for lay in LAYOUTS.values():
        x, w, b = (t.clone() for t in problem(SAME, torch.float32).inputs)
        x, grad = lay(x), lay(problem(SAME, torch.float32).grad_output)
        before = [t.clone() for t in (x, w, b, grad)]
        gradients(lambda *args: depthwise_conv3d(*args, *SAME.settings), [x, w, b], grad)
        assert all(torch.equal(a, c) for a, c in zip(before, (x, w, b, grad), strict=True))


def test_workspace_of_an_earlier_call_is_not_read(implementation: Implementation) -> None:
    """Kernels keep memory between calls: here the call before left NaN in it."""
    for dtype in (torch.float32, torch.float64):
        dirty = torch.full((2, 40, 6, 20, 20), float("nan"), dtype=dtype)
        weight = torch.full((40, 1, 5, 5, 5), float("nan"), dtype=dtype)
        for layout, lay in DENSE.items():

            def run(*args: torch.Tensor) -> torch.Tensor:
                return depthwise_conv3d(*args, *CASE.settings)

            gradients(
                lambda x, w: depthwise_conv3d(x, w, padding=2), [lay(dirty), weight], lay(dirty)
            )
            p = problem(CASE, dtype)
            x, w, b = p.inputs
            ours = gradients(run, [lay(x), w, b], lay(p.grad_output))
            peers = peer(CASE, dtype, layout)
            for name, *rest in zip(NAMES, ours, p.truth, peers, p.scale, strict=True):
                assert_accurate(*rest, f"{name} after NaN, {layout}")


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The allocator that puts every tensor and workspace against an unmapped page."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C compiler for the allocator with guard pages: there is none")
    library = tmp_path_factory.mktemp("guard") / "guard.so"
    source = Path(__file__).with_name("guard_malloc.c")
    command = [compiler, "-O1", "-shared", "-fPIC", "-x", "c", source, "-o", library]
    subprocess.run(command, check=True)
    return library


def guarded_run(guard: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.ops.guarded_run", str(guard), *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "LD_PRELOAD": str(guard), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("edge", ["end", "begin"])
def test_nothing_outside_the_tensors_is_touched(
    extension: ModuleType, guard: Path, edge: str
) -> None:
    isas = [k.isa for k in KERNELS if k.isa in extension.supported_isas()]
    run = guarded_run(guard, edge, *isas)
    last = run.stdout.strip().splitlines()[-1:]
    assert run.returncode == 0, f"exit {run.returncode} in {last}\n{run.stderr[-2000:]}"
    assert last == ["done"]


@pytest.mark.parametrize("edge", ["end", "begin"])
def test_the_guard_stops_a_stray_access(guard: Path, edge: str) -> None:
    run = guarded_run(guard, edge, "stray")
    assert run.returncode == -signal.SIGSEGV, f"exit {run.returncode}: {run.stdout}"
    assert run.stdout.strip() == "inside is fine"
