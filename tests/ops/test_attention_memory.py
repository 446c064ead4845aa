"""Both attentions: what threads, earlier calls and special values must not change."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tests.conftest import KERNELS, Implementation
from tests.ops.attention_cases import CASES, RESULTS, Attention, operator_calls
from tests.ops.compare import HALVES, assert_same_bits
from tests.ops.layouts import DENSE
from vmf_kernels import few_key_attention, few_query_attention, use_backend
from vmf_kernels.ops.few_query_attention import library, reference

kernels = pytest.mark.parametrize("implementation", KERNELS, ids=str, indirect=True)

LARGE = [
    Attention("large_narrow_heads", channels=12, spatial=(12000,)),
    Attention("large_wide_heads", channels=88, tokens=4, spatial=(1700,)),
    Attention("large_one_sample", channels=32, batch=1, spatial=(5001,)),
    Attention("large_many_tokens", channels=40, tokens=65, spatial=(3333,)),
]


def seeded(case: Attention, dtype: torch.dtype, layout: str) -> list[Tensor]:
    torch.manual_seed(1)
    return operator_calls(case, dtype, layout)


@kernels
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_same_bits_twice_and_on_any_threads(
    implementation: Implementation, case: Attention, layout: str
) -> None:
    assert_same_bits(lambda dtype: seeded(case, dtype, layout), RESULTS)


@kernels
def test_calls_from_many_python_threads(implementation: Implementation) -> None:
    """Each keeps its own workspace: shapes that differ run at once without mixing."""
    inputs = [(torch.randn(2, 6, 12 * k), torch.randn(2, 12 * k, 100 + k)) for k in range(1, 20)]

    def run(tensors: tuple[Tensor, Tensor]) -> list[Tensor]:
        query, features = tensors
        with use_backend("cpu"):
            return [
                few_query_attention(query, features, 2),
                few_key_attention(features, query, query, 2),
            ]

    expected = [run(tensors) for tensors in inputs]
    with ThreadPoolExecutor(4) as pool:
        for ours, alone in zip(pool.map(run, inputs), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, alone, strict=True))


@kernels
def test_workspace_of_an_earlier_call_is_not_read(implementation: Implementation) -> None:
    """Kernels keep memory between calls: here the call before left NaN in it."""
    nan = torch.full((2, 128, 700), float("nan"))
    for case in CASES:
        for layout, lay in DENSE.items():
            clean = seeded(case, torch.float32, layout)
            few_query_attention(nan[:, :70, :128].contiguous(), lay(nan), 2)
            few_key_attention(lay(nan), nan[:, :70, :128], nan[:, :70, :128], 2)
            for a, b in zip(seeded(case, torch.float32, layout), clean, strict=True):
                assert torch.equal(a, b), f"{case}, {layout}"
                assert not a.isnan().any()


@kernels
@pytest.mark.parametrize("layout", DENSE)
def test_large_batches_equal_their_samples(implementation: Implementation, layout: str) -> None:
    query, features = torch.randn(5, 6, 24), DENSE[layout](torch.randn(5, 24, 3, 7, 7))
    together = few_query_attention(query, features, 2), few_key_attention(features, query, query, 2)
    for b in range(5):
        q, x = query[b : b + 1], features[b : b + 1]
        assert torch.equal(few_query_attention(q, x, 2), together[0][b : b + 1])
        assert torch.equal(few_key_attention(x, q, q, 2), together[1][b : b + 1])


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@kernels
def test_special_values_go_where_they_go_in_pytorch(
    implementation: Implementation, value: float, layout: str
) -> None:
    """One bad position spoils its row (few_key) or what it is summed into (few_query)."""
    features = torch.randn(2, 24, 100)
    features[0, 3, 70] = value
    features = DENSE[layout](features)
    query = torch.randn(2, 6, 24)
    query[query.abs() < 0.1] = 0.1  # whose product with infinity would be NaN
    for dtype in (torch.float32, torch.float64):
        q, x = query.to(dtype), features.to(dtype)
        ours = few_query_attention(q, x, 2), few_key_attention(x, q, q, 2)
        with use_backend("reference"):
            expected = few_query_attention(q, x, 2), few_key_attention(x, q, q, 2)
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


@kernels
def test_minus_infinity_at_a_whole_block(implementation: Implementation) -> None:
    """Scores of -infinity weigh nothing, wherever they stand."""
    features = torch.randn(1, 2, 20000)
    features[:, 0, :10000] = -torch.inf
    query = torch.ones(1, 1, 2)
    query[..., 1] = 0
    output = few_query_attention(query, features, 1, 1.0)
    x = features[0, :, 10000:]
    expected = torch.softmax(x[0], 0) @ x[1]
    assert output[0, 0, 0].isnan(), "0 times infinity"
    torch.testing.assert_close(output[0, 0, 1], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@kernels
def test_saved_output_is_not_rounded(implementation: Implementation, dtype: torch.dtype) -> None:
    query, features = torch.randn(2, 6, 12).to(dtype), torch.randn(2, 12, 50).to(dtype)
    output, lse, exact = library.few_query_attention(query, features, 2, 0.3)
    assert torch.equal(exact.to(dtype), output)
    assert not torch.equal(exact, output.float())
    wide, wide_lse, empty = library.few_query_attention(query.float(), features.float(), 2, 0.3)
    torch.testing.assert_close(exact, wide)
    torch.testing.assert_close(lse, wide_lse)
    assert empty.numel() == 0


@pytest.mark.parametrize("layout", DENSE)
def test_hand_written_gradients_of_the_references(layout: str) -> None:
    """What devices without kernels run, which no CPU call reaches."""
    query, features = torch.randn(2, 3, 8).double(), DENSE[layout](torch.randn(2, 8, 3, 4)).double()
    grad = torch.randn(2, 3, 8).double()
    saved = library.saved(*reference.few_query_attention_forward(query, features, 2, 0.4))
    ours = reference.few_query_attention_backward(grad, query, features, *saved, 2, 0.4)
    leaves = [query.requires_grad_(), features.requires_grad_()]
    output = reference.few_query_attention(*leaves, 2, 0.4)
    torch.testing.assert_close(saved[0], output)
    expected = torch.autograd.grad(output, leaves, grad)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)
