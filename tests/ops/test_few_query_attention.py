"""few_query_attention: numbers of both roads, the public function and the operator."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vmf_kernels
from tests.conftest import Implementation
from tests.ops import attention_cases
from tests.ops.attention_cases import CASES, Attention, check
from tests.ops.compare import DTYPES, gradients
from tests.ops.layouts import DENSE, LAYOUTS, is_dense
from tests.ops.samples import served_by
from vmf_kernels.ops.few_query_attention import library

Function = Callable[[Tensor, Tensor], Tensor]

served = served_by("few_query_attention")
roads = pytest.mark.parametrize("road", ["public", "operator"])


def functions(case: Attention) -> dict[str, Function]:
    return {
        "public": lambda q, x: vmf_kernels.few_query_attention(q, x, case.heads, case.scale),
        "operator": lambda q, x: library.few_query_attention(q, x, case.heads, case.factor)[0],
    }


@roads
@pytest.mark.parametrize("case", CASES, ids=str)
@served
def test_numbers(case: Attention, road: str, implementation: Implementation) -> None:
    for dtype in DTYPES:
        query, features = case.token_values(dtype), case.features(dtype)
        for layout, lay in DENSE.items():
            inputs = [query, lay(features)]
            check(
                case,
                functions(case)[road],
                lambda q, x: attention_cases.few_query(case, q, x),
                inputs,
                layout,
            )


@roads
@pytest.mark.parametrize("layout", LAYOUTS)
@served
def test_any_strides(layout: str, road: str, implementation: Implementation) -> None:
    case = Attention("strides", spatial=(3, 4, 5))
    query, features = case.token_values(torch.float32), case.features(torch.float32)
    run = functions(case)[road]
    plain = gradients(run, [query, features], torch.ones_like(query))
    expanded = torch.ones(()).expand(query.shape)
    strange = gradients(run, [LAYOUTS[layout](query), LAYOUTS[layout](features)], expanded)
    for a, b in zip(strange, plain, strict=True):
        torch.testing.assert_close(a, b)
    assert strange[0].is_contiguous()


@roads
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@served
def test_scores_of_ten_thousand(
    dtype: torch.dtype, road: str, implementation: Implementation
) -> None:
    """Softmax of scores from -12800 to 12800: exact, one position takes all."""
    case = Attention("huge", tokens=3, channels=8, heads=1, spatial=(7,), scale=1.0)
    query = torch.full((2, 3, 8), 40.0, dtype=dtype)
    query[:, 1] *= -1
    levels = torch.tensor([-40, 10, 40, 20, 0, -20, 39], dtype=dtype)
    features = levels.expand(2, 8, 7).contiguous()
    run = functions(case)[road]
    output, grad_query, grad_features = gradients(run, [query, features], torch.ones_like(query))
    assert torch.equal(output[:, 0], torch.full((2, 8), 40.0, dtype=dtype))
    assert torch.equal(output[:, 1], torch.full((2, 8), -40.0, dtype=dtype))
    assert grad_query.isfinite().all()
    assert grad_features.isfinite().all()


@roads
@served
def test_scores_beyond_float16(road: str, implementation: Implementation) -> None:
    case = Attention("huge", tokens=2, channels=16, heads=1, spatial=(3,), scale=1.0)
    query = torch.full((1, 2, 16), 200.0, dtype=torch.float16)
    features = torch.tensor([100.0, 200.0, -200.0], dtype=torch.float16).expand(1, 16, 3)
    output = functions(case)[road](query, features)
    assert torch.equal(output, torch.full_like(query, 200.0))


@served
def test_equal_positions_share_equally(implementation: Implementation) -> None:
    features = torch.ones(1, 4, 2, 3, 5) * torch.arange(4.0).view(1, 4, 1, 1, 1)
    output = vmf_kernels.few_query_attention(torch.randn(1, 3, 4), features, 2)
    torch.testing.assert_close(output, torch.arange(4.0).expand(1, 3, 4))


@served
def test_log_sum_exp_is_saved_in_float32_or_wider(implementation: Implementation) -> None:
    case = Attention("saved")
    for dtype in DTYPES:
        query, features = case.token_values(dtype), case.features(dtype)
        _, lse, _ = library.few_query_attention(query, features, case.heads, case.factor)
        assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        q, x = (attention_cases.heads(t.double(), 2) for t in (query, features.flatten(2).mT))
        truth = torch.logsumexp(q @ x.mT * case.factor, -1)
        torch.testing.assert_close(lse.double(), truth, atol=1e-5, rtol=1e-5)


@served
def test_gradient_keeps_the_format_of_the_features(implementation: Implementation) -> None:
    case = Attention("format")
    for layout, lay in DENSE.items():
        features = lay(case.features(torch.float32))
        query = case.token_values(torch.float32)
        run = functions(case)["operator"]
        _, _, grad = gradients(run, [query, features], torch.ones_like(query))
        assert is_dense(grad, layout)


def of_value(q: Tensor, x: Tensor, heads: int, scale: float, value: Tensor) -> Tensor:
    """By the matrix products of the definition."""

    def split(t: Tensor) -> Tensor:
        return t.flatten(2).unflatten(1, (heads, -1))  # (B, heads, depth, n)

    tokens = q.unflatten(2, (heads, -1)).transpose(1, 2)
    attention = torch.softmax(tokens @ split(x) * scale, dim=-1)
    return (attention @ split(value).mT).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("depth", [2, 6])
def test_a_value_of_its_own(layout: str, depth: int) -> None:
    heads, scale = 2, 0.3
    q, x, value = torch.randn(2, 3, 8), torch.randn(2, 8, 3, 4, 5), torch.randn(2, depth, 3, 4, 5)
    grad = torch.randn(2, 3, depth)

    def ours(q: Tensor, x: Tensor, value: Tensor) -> Tensor:
        return vmf_kernels.few_query_attention(q, x, heads, scale, value=value)

    expected = gradients(lambda q, x, v: of_value(q, x, heads, scale, v), [q, x, value], grad)
    lay = LAYOUTS[layout]
    for a, b in zip(gradients(ours, [q, lay(x), lay(value)], grad), expected, strict=True):
        torch.testing.assert_close(a, b)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, x, value), expected[0])
    half = ours(*(t.bfloat16() for t in (q, x, value)))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected[0], rtol=2e-2, atol=2e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(q, x, value), half)
    same = vmf_kernels.few_query_attention(q, x, heads, scale)
    torch.testing.assert_close(ours(q, x, x), same)


def test_a_value_has_no_kernel_and_explain_says_so() -> None:
    q, x = torch.randn(2, 3, 8), torch.randn(2, 8, 4)
    with vmf_kernels.use_backend("cpu"), pytest.raises(NotImplementedError, match="no such kernel"):
        vmf_kernels.few_query_attention(q, x, value=x)
    (record,) = vmf_kernels.explain(vmf_kernels.few_query_attention, q, x, value=x)
    assert record.backend == "reference" and "no such kernel" in record.reason


@pytest.mark.parametrize(
    ("error", "words", "value"),
    [
        (ValueError, "batch and positions of the features", torch.zeros(1, 8, 4)),
        (ValueError, "batch and positions of the features", torch.zeros(2, 8, 5)),
        (ValueError, "batch and positions of the features", torch.zeros(2, 8, 2, 2)),
        (ValueError, "must divide the value's channels", torch.zeros(2, 3, 4)),
        (ValueError, "must divide the value's channels", torch.zeros(2, 0, 4)),
        (ValueError, "share one dtype", torch.zeros(2, 8, 4).double()),
        (TypeError, "value must be a tensor", 3),
    ],
)
def test_wrong_values(error: type, words: str, value: Any) -> None:
    q, x = torch.zeros(2, 3, 8), torch.zeros(2, 8, 4)
    with pytest.raises(error, match=rf"^few_query_attention: .*{words}"):
        vmf_kernels.few_query_attention(q, x, 2, value=value)


def test_attention_pooling_without_projecting_the_features() -> None:
    """Keys and values of a pooling layer, projected on the side of the few tokens."""
    channels, heads, tokens = 12, 3, 2
    depth = channels // heads
    to_key, to_value = nn.Linear(channels, channels), nn.Linear(channels, channels)
    q, x = torch.randn(2, tokens, channels), torch.randn(2, channels, 3, 4, 5)
    positions = x.flatten(2).mT
    key, value = (layer(positions).mT for layer in (to_key, to_value))
    expected = vmf_kernels.few_query_attention(q, key, heads, value=value)

    per_head = q.unflatten(2, (heads, depth))  # (B, M, H, depth)
    queries = torch.einsum("bmhd,hdc->bmhc", per_head, to_key.weight.unflatten(0, (heads, depth)))
    pooled = vmf_kernels.few_query_attention(queries.flatten(1, 2), x, 1, depth**-0.5)
    pooled = pooled.unflatten(1, (tokens, heads))
    weight = to_value.weight.unflatten(0, (heads, depth))
    ours = torch.einsum("bmhc,hdc->bmhd", pooled, weight).flatten(2) + to_value.bias
    torch.testing.assert_close(ours, expected)
