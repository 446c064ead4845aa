"""Which calls go to Triton, told by fake CUDA tensors: no GPU is needed."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves

import vmf_kernels
from tests.ops.samples import function_call, operator_call
from vmf_kernels import _cuda, _triton, explain, use_backend
from vmf_kernels.explain import Record

OPS = ("depthwise_conv3d", "few_query_attention", "few_key_attention", "dynamic_relu")
OPERATORS = (
    "depthwise_conv3d",
    "depthwise_conv_transpose3d",
    "depthwise_conv3d_grad_weight",
    *(f"{op}{end}" for op in OPS[1:] for end in ("", "_backward")),
)


def on_cuda(mode: FakeTensorMode, x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    with mode:
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")


def backend_of(name: str, tensors: list[Tensor]) -> Record:
    return explain(getattr(vmf_kernels, name), *tensors)[0]


@pytest.mark.parametrize("name", OPS)
def test_auto_takes_triton_on_cuda(name: str) -> None:
    mode = FakeTensorMode()
    for dtype in _triton.DTYPES:
        tensors = [on_cuda(mode, x) for x in function_call(name, dtype=dtype)[1]]
        with use_backend("auto"), mode:
            record = backend_of(name, tensors)
            assert record.backend == "triton"
            assert "elements" in record.tile and "warps" in record.tile


@pytest.mark.parametrize(
    "channels, side, dtype, backend",
    [
        (192, 7, torch.float32, "reference"),
        (192, 7, torch.bfloat16, "triton"),
        (190, 7, torch.float32, "triton"),
        (192, 8, torch.float32, "triton"),
    ],
)
def test_wide_heads_with_few_positions_go_to_matmul_in_float32(
    channels: int, side: int, dtype: torch.dtype, backend: str
) -> None:
    with use_backend("auto"), FakeTensorMode():
        query = torch.empty(8, 6, channels, dtype=dtype, device="cuda")
        features = torch.empty(8, channels, 8, side, side, dtype=dtype, device="cuda")
        record = explain(vmf_kernels.few_query_attention, query, features, 2)[0]
    assert record.backend == backend
    assert ("PyTorch's matmul is faster" in record.reason) == (backend == "reference")


@pytest.mark.parametrize("name", OPS)
def test_float64_goes_to_the_reference_and_says_why(name: str) -> None:
    mode = FakeTensorMode()
    tensors = [on_cuda(mode, x) for x in function_call(name, dtype=torch.float64)[1]]
    with use_backend("auto"), mode:
        record = backend_of(name, tensors)
    assert record.backend == "reference"
    assert (
        "triton: its dtypes are float32, bfloat16 and float16 (got torch.float64)" in record.reason
    )


@pytest.mark.parametrize("name", OPS)
def test_without_triton(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "missing", lambda: "Triton is not installed (pip install triton)")
    mode = FakeTensorMode()
    tensors = [on_cuda(mode, x) for x in function_call(name)[1]]
    with use_backend("auto"), mode:
        record = backend_of(name, tensors)
    assert record.backend == "reference"
    assert "triton: Triton is not installed" in record.reason


@pytest.mark.parametrize("name", OPERATORS)
def test_the_kernels_are_registered_for_cuda(name: str) -> None:
    def registered(key: str) -> bool:
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"vmf_kernels::{name}", key)

    assert registered("CUDA")


@pytest.mark.parametrize("name", OPERATORS)
def test_fake_cuda_tensors_give_the_real_shapes(name: str) -> None:
    mode = FakeTensorMode()
    operator, args = operator_call(name)
    with use_backend("auto"):
        real = operator(*args)
        with mode:
            fake = operator(*(on_cuda(mode, x) for x in args))
    for a, b in zip(tree_leaves(real), tree_leaves(fake), strict=True):
        assert (b.device.type, b.shape, b.dtype, b.stride()) == (
            *("cuda", a.shape, a.dtype, a.stride()),
        )


@pytest.mark.parametrize("name", OPS)
def test_the_interpreter_must_be_asked_for_by_name(name: str) -> None:
    tensors = function_call(name)[1]
    with use_backend("auto"):
        assert not _triton.interpreting()
        assert backend_of(name, tensors).backend != "triton"


def test_what_the_kernels_do_not_cover_runs_through_the_reference() -> None:
    operator, args = operator_call("dynamic_relu", dtype=torch.float64)
    launcher: Callable[..., Tensor] = operator._launcher
    with use_backend("reference"):
        assert torch.equal(launcher(*args), vmf_kernels.dynamic_relu(*args))


def test_importing_the_library_imports_no_kernel() -> None:
    code = "import sys, vmf_kernels; print([m for m in sys.modules if m.endswith('.triton')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "vmf_kernels" not in done.stdout


@pytest.mark.parametrize("built", [False, True], ids=["without CUDA C++", "with CUDA C++"])
@pytest.mark.parametrize("strict", [False, True])
def test_traced_code_has_an_operator_that_chooses_when_it_runs(
    strict: bool, built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if built:
        monkeypatch.setattr(_cuda, "missing", lambda: None)

    class Layers(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            x = vmf_kernels.depthwise_conv3d(x, weight, None, 1, 1)
            return vmf_kernels.depthwise_conv_transpose3d(x, weight, None, 1, 1)

    def traced(backend: str) -> list[str]:
        with use_backend(backend), FakeTensorMode():
            x, weight = (torch.empty(s, device="cuda") for s in ((2, 4, 4, 8, 8), (4, 1, 3, 3, 3)))
            nodes = torch.export.export(Layers(), (x, weight), strict=strict).graph.nodes
        return [str(n.target) for n in nodes if "vmf_kernels" in str(n.target)]

    ops = ["vmf_kernels.depthwise_conv3d", "vmf_kernels.depthwise_conv_transpose3d"]
    assert traced("auto") == [f"{op}.default" for op in ops]
    assert traced("triton") == [f"{op}_triton.default" for op in ops]


@pytest.mark.parametrize("name", ["depthwise_conv3d", "depthwise_conv_transpose3d"])
def test_the_tile_that_is_told_is_that_of_what_runs(name: str) -> None:
    with use_backend("auto"), FakeTensorMode():
        x = torch.empty(2, 4, 4, 8, 8, device="cuda").to(memory_format=torch.channels_last_3d)
        shape = (4, 2, 3, 3, 3) if "transpose" in name else (8, 1, 3, 3, 3)
        record = explain(getattr(vmf_kernels, name), x, torch.empty(shape, device="cuda"))[0]
    lines = record.tile.splitlines()
    assert len(lines) == (1 if "transpose" in name else 3)
    for (
        line
    ) in lines:  # the transposed convolution repeats its input, which then has a channel each
        assert ("channels 1," in line) == ("on contiguous copies" in line) == (len(lines) == 3)
