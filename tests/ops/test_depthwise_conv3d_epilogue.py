"""Activation and residual behind depthwise_conv3d: numbers, layouts, gradients, refusals."""

from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conftest import Implementation
from tests.ops.compare import DTYPES, assert_accurate, assert_same_bits, gradients, widened
from tests.ops.conv_cases import Case
from tests.ops.layouts import DENSE, is_dense
from tests.ops.samples import served_by
from vmf_kernels import depthwise_conv3d, explain, use_backend
from vmf_kernels.ops.depthwise_conv3d.epilogue import ELEMENTWISE

ACTIVATIONS = (None, *ELEMENTWISE, "dynamic_relu")
CASES = [
    Case("lanes_of_two_samples", (3, 4, 5)),
    Case("rows_read_where_they_lie", (2, 5, 7), channels=32),
    Case("last_vector_overlaps_the_one_before", (2, 5, 7), channels=37),
    Case("many_vectors_and_rows", (3, 20, 9), channels=150, batch=1),
    Case("multiplier_and_stride", (5, 6, 7), channels=6, multiplier=3, stride=(1, 2, 2)),
    Case("one_column", (3, 4, 1), kernel=(3, 1, 1), channels=20, padding=(1, 0, 0)),
    Case("empty_batch", (3, 4, 5), batch=0),
]


def tensors(case: Case, dtype: torch.dtype, layout: str) -> list[Any]:
    """Input, weight, bias, residual, a1, a2; values on both sides of every kink."""
    [x, w, b], like_output = case.tensors(torch.float64)
    generator = torch.Generator().manual_seed(1)
    slopes = torch.randn((2, *like_output.shape[:2]), generator=generator, dtype=torch.float64)
    residual = 4 * like_output
    x, w, b, residual, a1, a2 = (t.to(dtype) for t in (x, w, b, residual, *slopes))
    return [DENSE[layout](x), w, b, DENSE[layout](residual), a1, a2]


def steps(case: Case, activation: str | None, x: Any, w: Any, b: Any, r: Any, *a: Any) -> Tensor:
    """The definition, in PyTorch's own ops."""
    y = case.pytorch(x, w, b)
    if r is not None:
        y = y + r
    if activation == "dynamic_relu":
        a1, a2 = (slope[:, :, None, None, None] for slope in a)
        return torch.maximum(a1 * y, a2 * y)
    return y if activation is None else getattr(F, activation)(y)


def ours(case: Case, activation: str | None, x: Any, w: Any, b: Any, r: Any, *a: Any) -> Tensor:
    chosen = a if activation == "dynamic_relu" else activation
    return depthwise_conv3d(x, w, b, *case.settings, activation=chosen, residual=r)


@served_by("depthwise_conv3d")
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("with_residual", (False, True))
def test_numbers(case: Case, with_residual: bool, implementation: Implementation) -> None:
    for dtype in DTYPES:
        for layout in DENSE:
            given = tensors(case, dtype, layout)
            given[3] = given[3] if with_residual else None
            for activation in ACTIVATIONS:
                if activation is None and not with_residual:
                    continue
                exact = [None if t is None else t.double() for t in given]
                plain = [None if t is None else t.to(widened(dtype)) for t in given]
                truth, peer = (steps(case, activation, *t) for t in (exact, plain))
                device = [None if t is None else t.to(implementation.device) for t in given]
                with torch.no_grad():
                    result = ours(case, activation, *device)
                what = f"{activation} of {case!r} in {dtype}, {layout}"
                assert result.dtype == dtype, what
                # The terms of a sum here, times the largest slope of any activation.
                scale = 2 * 6 * case.kernel[0] * case.kernel[1] * case.kernel[2] / 9
                assert_accurate(result.cpu(), truth, peer.to(dtype), scale, what)
                assert is_dense(result, layout) or case.batch == 0, what


@served_by("depthwise_conv3d")
def test_nan_and_large_values_go_through(implementation: Implementation) -> None:
    x = torch.tensor([float("nan"), 1e30, -100.0, 100.0, 0.0, -3.0, 3.0, 6.5])
    x = x.reshape(1, 1, 1, 1, 8).repeat(1, 16, 1, 1, 1).to(implementation.device)
    w = torch.ones(16, 1, 1, 1, 1, device=implementation.device)
    for layout in DENSE:
        for activation in ELEMENTWISE:
            with torch.no_grad():
                result = depthwise_conv3d(DENSE[layout](x), w, activation=activation)
            expected = getattr(F, activation)(x)
            torch.testing.assert_close(result, expected, equal_nan=True, msg=activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_the_steps(activation: str | None) -> None:
    case = CASES[4]
    for layout in DENSE:
        given = tensors(case, torch.float64, layout)
        used = given if activation == "dynamic_relu" else given[:4]
        grad = torch.randn(case.batch, 18, *case.output, dtype=torch.float64)
        mine = gradients(lambda *t: ours(case, activation, *t), used, grad)
        theirs = gradients(lambda *t: steps(case, activation, *t), used, grad)
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_one_sample_without_its_dimension() -> None:
    case = CASES[2]
    x, w, b, r, a1, a2 = tensors(case, torch.float32, "channels_last")
    for activation, one in (("silu", "silu"), ((a1, a2), (a1[1], a2[1]))):
        batch = depthwise_conv3d(x, w, b, *case.settings, activation=activation, residual=r)
        sample = depthwise_conv3d(x[1], w, b, *case.settings, activation=one, residual=r[1])
        torch.testing.assert_close(sample, batch[1])


def test_same_bits_again_and_on_any_number_of_threads() -> None:
    case = CASES[3]

    def results(dtype: torch.dtype) -> list[Tensor]:
        given = tensors(case, dtype, "channels_last")
        with torch.no_grad():
            return [ours(case, activation, *given) for activation in ACTIVATIONS]

    assert_same_bits(results, [str(a) for a in ACTIVATIONS])


def test_autocast_casts_all_of_them() -> None:
    case = CASES[1]
    given = tensors(case, torch.float32, "contiguous")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        result = ours(case, "dynamic_relu", *given)
    rounded = [t.bfloat16() for t in given]
    with torch.no_grad():
        assert torch.equal(result, ours(case, "dynamic_relu", *rounded))


def test_it_compiles_whole() -> None:
    case = CASES[1]
    given = tensors(case, torch.float32, "channels_last")
    compiled = torch.compile(lambda *t: ours(case, "silu", *t), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(*given), ours(case, "silu", *given))
    given[1].requires_grad_()
    torch.testing.assert_close(compiled(*given), ours(case, "silu", *given))


def test_explain_tells_of_it() -> None:
    case = CASES[1]
    x, w, b, r, *_ = tensors(case, torch.float32, "contiguous")
    with use_backend("reference"):
        [record] = explain(depthwise_conv3d, x, w, b, 1, 1, activation="relu", residual=r)
    assert record.backend == "reference"
    [record] = explain(depthwise_conv3d, x, w, b, 1, 1, activation="relu", residual=r)
    assert record.backend == "cpu"


@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="CPU without bfloat16")
def test_where_pytorch_convolves_faster_it_follows_in_steps(isa: ModuleType) -> None:
    isa.set_isa("avx512")
    x = torch.randn(3, 96, 8, 28, 28).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    w, slopes = torch.randn(96, 1, 3, 3, 3).bfloat16(), (torch.ones(3, 96).bfloat16(),) * 2
    for activation in ("silu", slopes):
        options = {"padding": 1, "activation": activation, "residual": x}
        [record] = explain(depthwise_conv3d, x, w, **options)
        assert record.backend == "pytorch"
        result = depthwise_conv3d(x, w, **options)
        with use_backend("cpu"):
            in_one_pass = depthwise_conv3d(x, w, **options)
        torch.testing.assert_close(result, in_one_pass, rtol=2e-2, atol=5e-2)


X, W = torch.zeros(2, 3, 4, 4, 4), torch.zeros(3, 1, 3, 3, 3)
A = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (ValueError, "activation must be one of relu", {"activation": "tanh"}),
        (ValueError, "the two slopes", {"activation": (A, A, A)}),
        (TypeError, "activation must be a name", {"activation": 3}),
        (TypeError, "a1 must be a tensor", {"activation": (1.0, A)}),
        (ValueError, "a2 must have shape", {"activation": (A, A[:1])}),
        (ValueError, "share one dtype", {"activation": (A, A.double())}),
        (ValueError, "residual must have shape", {"residual": X[:1]}),
        (TypeError, "residual must be a tensor", {"residual": 1.0}),
        (ValueError, "share one dtype", {"residual": X.half()}),
    ],
)
@pytest.mark.parametrize("grad", (False, True))
def test_refusals(error: type, words: str, options: dict[str, Any], grad: bool) -> None:
    with pytest.raises(error, match=rf"^depthwise_conv3d: .*{words}"):
        depthwise_conv3d(X, W.clone().requires_grad_(grad), None, 1, 1, **options)
