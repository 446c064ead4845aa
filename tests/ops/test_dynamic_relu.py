"""dynamic_relu: numbers of every road, ties, and any strides."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import vmf_kernels
from tests.conftest import Implementation
from tests.ops.compare import DTYPES, assert_accurate, gradients, in_dtype, widened
from tests.ops.layouts import DENSE, LAYOUTS, is_dense
from tests.ops.samples import served_by
from vmf_kernels.ops.dynamic_relu import library

SHAPES = {
    "small": (2, 3, 4, 5, 6),
    "one_element": (1, 1, 1, 1, 1),
    "one_channel": (3, 1, 2, 3, 5),
    "one_position": (3, 19, 1, 1, 1),
    "channels_17": (2, 17, 2, 3, 3),
    "channels_33_rows_7": (2, 33, 3, 7, 7),
    "channels_64": (1, 64, 2, 4, 4),
    "positions_1031": (2, 2, 1, 1031, 1),
    "spatial_1d": (2, 5, 37),
    "spatial_2d": (2, 5, 6, 7),
    "spatial_none": (2, 5),
    "spatial_4d": (2, 3, 2, 3, 2, 3),
    "batch_0": (0, 3, 2, 3, 4),
    "no_position": (2, 3, 2, 0, 4),
    "large": (2, 9, 8, 30, 31),
}


def pytorch(x: Tensor, a1: Tensor, a2: Tensor) -> Tensor:
    shape = (*a1.shape, *[1] * (x.dim() - 2))
    return torch.maximum(a1.view(shape) * x, a2.view(shape) * x)


ROADS: dict[str, Callable[..., Tensor]] = {
    "public": vmf_kernels.dynamic_relu,
    "operator": library.dynamic_relu,
}
served = served_by("dynamic_relu")
roads = pytest.mark.parametrize("road", ROADS)


@roads
@pytest.mark.parametrize("name", SHAPES)
@served
def test_numbers(name: str, road: str, implementation: Implementation) -> None:
    shape = SHAPES[name]
    for dtype in DTYPES:
        x, a1, a2 = (torch.randn(s).to(dtype) for s in (shape, shape[:2], shape[:2]))
        grad_output = torch.randn(shape).to(dtype)
        wide = widened(dtype)
        truth = gradients(pytorch, in_dtype([x, a1, a2], torch.float64), grad_output.double())
        peers = gradients(pytorch, in_dtype([x, a1, a2], wide), grad_output.to(wide))
        terms = (x.double() * grad_output.double()).view(*a1.shape, math.prod(shape[2:]))
        squares = terms.square().sum(2)
        sums = squares.max().sqrt() if squares.numel() else 0.0
        for layout, lay in DENSE.items():
            if x.dim() < 3 and layout == "channels_last":
                continue
            ours = gradients(ROADS[road], [lay(x), a1, a2], lay(grad_output))
            for i, (a, t, p) in enumerate(zip(ours, truth, in_dtype(peers, dtype), strict=True)):
                what = f"result {i} of {name} in {dtype}, {layout}"
                scale = sums if i > 1 else t.abs().max() if t.numel() else 0.0
                assert a.dtype == dtype
                assert_accurate(a, t, p, scale, what)
            if x[0:1, 0].numel() > 1:
                assert is_dense(ours[0], layout), f"{name}: {ours[0].stride()}"


@roads
@pytest.mark.parametrize("layout", LAYOUTS)
@served
def test_any_strides(layout: str, road: str, implementation: Implementation) -> None:
    inputs = [torch.randn(2, 6, 3, 4, 5), torch.randn(2, 6), torch.randn(2, 6)]
    plain = gradients(ROADS[road], inputs, torch.ones_like(inputs[0]))
    expanded = torch.ones(()).expand(inputs[0].shape)
    strange = gradients(ROADS[road], [LAYOUTS[layout](x) for x in inputs], expanded)
    for a, b in zip(strange, plain, strict=True):
        torch.testing.assert_close(a, b)
    last = layout in ("channels_last", "channel_slice")
    assert is_dense(strange[0], "channels_last" if last else "contiguous")


@roads
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@served
def test_gradient_of_a_tie_is_shared(
    dtype: torch.dtype, layout: str, road: str, implementation: Implementation
) -> None:
    """Where x is 0 or both slopes are equal, each branch gets half, as in torch.maximum."""
    x = torch.randint(-2, 3, (2, 9, 3, 4, 5)).to(dtype)
    a1 = torch.randint(-2, 3, (2, 9)).to(dtype)
    a2 = a1.clone()
    a2[:, ::2] += 1
    grad_output = torch.randint(-3, 4, x.shape).to(dtype)
    lay = DENSE[layout]
    ours = gradients(ROADS[road], [lay(x), a1, a2], lay(grad_output))
    expected = gradients(pytorch, in_dtype([x, a1, a2], torch.float64), grad_output.double())
    for a, e in zip(ours, expected, strict=True):
        assert torch.equal(a.double(), e)


@roads
@served
def test_negative_zero_infinities_and_nan(road: str, implementation: Implementation) -> None:
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, 1e-45, 3e38])
    for a, b in ((1.0, -1.0), (0.5, 2.0), (0.0, 0.0), (-0.0, 1.0), (3.0, -0.25)):
        x = special.repeat(5).view(1, 1, 1, 5, 9)
        slopes = torch.tensor([[a]]), torch.tensor([[b]])
        ours, expected = ROADS[road](x, *slopes), pytorch(x, *slopes)
        torch.testing.assert_close(ours, expected, atol=0, rtol=0, equal_nan=True)
