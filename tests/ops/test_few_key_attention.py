"""few_key_attention: numbers of both roads, the public function and the operator."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import vmf_kernels
from tests.conftest import Implementation
from tests.ops import attention_cases
from tests.ops.attention_cases import CASES, Attention, check
from tests.ops.compare import DTYPES, gradients
from tests.ops.layouts import DENSE, LAYOUTS, is_dense
from tests.ops.samples import served_by
from vmf_kernels.ops.few_key_attention import library

Function = Callable[[Tensor, Tensor, Tensor], Tensor]

served = served_by("few_key_attention")
roads = pytest.mark.parametrize("road", ["public", "operator"])


def functions(case: Attention) -> dict[str, Function]:
    heads, residual = case.heads, case.residual
    return {
        "public": lambda x, k, v: vmf_kernels.few_key_attention(
            x, k, v, heads, case.scale, residual
        ),
        "operator": lambda x, k, v: library.few_key_attention(
            x, k, v, heads, case.factor, residual
        ),
    }


@roads
@pytest.mark.parametrize("case", CASES, ids=str)
@served
def test_numbers(case: Attention, road: str, implementation: Implementation) -> None:
    for dtype in DTYPES:
        features = case.features(dtype)
        key, value = case.token_values(dtype), case.token_values(dtype)
        for layout, lay in DENSE.items():
            ours = check(
                case,
                functions(case)[road],
                lambda x, k, v: attention_cases.few_key(case, x, k, v),
                [lay(features), key, value],
                layout,
            )
            if features[0:1, 0].numel() > 1:
                assert is_dense(ours[0], layout)


@roads
@pytest.mark.parametrize("layout", LAYOUTS)
@served
def test_any_strides(layout: str, road: str, implementation: Implementation) -> None:
    case = Attention("strides", spatial=(3, 4, 5))
    inputs = [case.features(torch.float32), *(case.token_values(torch.float32) for _ in "kv")]
    run = functions(case)[road]
    plain = gradients(run, inputs, torch.ones_like(inputs[0]))
    expanded = torch.ones(()).expand(inputs[0].shape)
    strange = gradients(run, [LAYOUTS[layout](x) for x in inputs], expanded)
    for a, b in zip(strange, plain, strict=True):
        torch.testing.assert_close(a, b)
    last = layout in ("channels_last", "channel_slice")
    assert is_dense(strange[0], "channels_last" if last else "contiguous")


@roads
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@served
def test_scores_of_ten_thousand(
    dtype: torch.dtype, road: str, implementation: Implementation
) -> None:
    """Softmax of scores from -12800 to 12800: exact, one token takes all."""
    case = Attention("huge", tokens=3, heads=1, scale=1.0, residual=False)
    features = torch.full((2, 8, 2, 3, 4), 40.0, dtype=dtype)
    features[:, :, 1] *= -1
    levels = torch.tensor([-40, 10, 40], dtype=dtype)
    key = levels.view(1, 3, 1).expand(2, 3, 8)
    value = torch.arange(3.0, dtype=dtype).view(1, 3, 1).expand(2, 3, 8)
    run = functions(case)[road]
    output, *grads = gradients(run, [features, key, value], torch.ones_like(features))
    assert (output[:, :, 0] == 2).all()
    assert (output[:, :, 1] == 0).all()
    assert all(grad.isfinite().all() for grad in grads)


@roads
@served
def test_residual_adds_the_features(road: str, implementation: Implementation) -> None:
    features, key = torch.randn(2, 12, 3, 4), torch.randn(2, 6, 12)
    with_it = functions(Attention("with"))[road](features, key, key)
    without = functions(Attention("without", residual=False))[road](features, key, key)
    torch.testing.assert_close(with_it, features + without)


@served
def test_values_of_zero_leave_the_features(implementation: Implementation) -> None:
    features, key = torch.randn(2, 4, 3, 5), torch.randn(2, 6, 4)
    assert torch.equal(vmf_kernels.few_key_attention(features, key, key * 0), features)
