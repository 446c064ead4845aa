"""dynamic_relu in Triton: numbers of every path of its kernels."""

import math

import pytest
import torch

from tests.ops.compare import assert_accurate, gradients, in_dtype
from tests.ops.layouts import DENSE, LAYOUTS, is_dense
from tests.ops.test_dynamic_relu import pytorch
from tests.triton.conftest import DEVICE
from vmf_kernels import _triton, dynamic_relu
from vmf_kernels.tiles import forced

# Shape, and sizes that differ from the tile that a shape so small would get.
PATHS: dict[str, tuple[tuple[int, ...], dict[str, int]]] = {
    "one_element": ((1, 1, 1, 1, 1), {}),
    "one_tile": ((2, 3, 2, 3, 4), {}),
    "odd_everything": ((3, 7, 3, 5, 1), {"elements": 32, "columns": 8, "least_columns": 2}),
    "aligned_rows": ((2, 16, 1, 4, 8), {"elements": 64, "columns": 16}),
    "many_tiles_of_many_columns": ((2, 33, 1, 3, 11), {"elements": 16, "columns": 16}),
    "several_steps_and_splits": ((2, 5, 3, 5, 7), {"elements": 16, "steps": 2, "programs": 1}),
    "one_split": ((1, 4, 2, 2, 2), {"elements": 8, "steps": 99, "programs": 1}),
    "spatial_none": ((2, 5), {}),
    "spatial_1d": ((2, 5, 17), {}),
    "batch_0": ((0, 3, 2, 3, 4), {}),
    "no_position": ((2, 3, 2, 0, 4), {}),
}


def tiles(sizes: dict[str, int]) -> dict[str, dict[str, int]]:
    return {"dynamic_relu.forward": sizes, "dynamic_relu.backward": sizes}


@pytest.mark.parametrize("dtype", _triton.DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_numbers(path: str, dtype: torch.dtype) -> None:
    shape, sizes = PATHS[path]
    x, a1, a2, g = (torch.randn(s).to(dtype) for s in (shape, shape[:2], shape[:2], shape))
    truth = gradients(pytorch, in_dtype([x, a1, a2], torch.float64), g.double())
    peers = gradients(pytorch, in_dtype([x, a1, a2], torch.float32), g.float())
    terms = (x.double() * g.double()).view(*a1.shape, math.prod(shape[2:])).square().sum(2)
    sums = terms.max().sqrt() if terms.numel() else 0.0
    for layout, lay in DENSE.items():
        with forced(tiles(sizes)):
            inputs = [t.to(DEVICE) for t in (lay(x), a1, a2)]
            ours = gradients(dynamic_relu, inputs, lay(g).to(DEVICE))
        for i, (a, t, p) in enumerate(zip(ours, truth, in_dtype(peers, dtype), strict=True)):
            scale = sums if i > 1 else t.abs().max() if t.numel() else 0.0
            assert a.dtype == dtype
            assert_accurate(a.cpu(), t, p, scale, f"result {i} of {path}, {layout}")
        if len(shape) > 2 and math.prod(shape[1:]) > 1:
            assert is_dense(ours[0], layout) and is_dense(ours[1], layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    inputs = [torch.randn(s, device=DEVICE) for s in ((2, 6, 2, 2, 5), (2, 6), (2, 6))]
    plain = gradients(dynamic_relu, inputs, torch.ones_like(inputs[0]))
    expanded = torch.ones((), device=DEVICE).expand(inputs[0].shape)
    strange = gradients(dynamic_relu, [LAYOUTS[layout](x) for x in inputs], expanded)
    for a, b in zip(strange, plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", DENSE)
def test_gradient_of_a_tie_is_shared(layout: str) -> None:
    x = torch.randint(-2, 3, (2, 9, 1, 4, 5)).float()
    a1 = torch.randint(-2, 3, (2, 9)).float()
    a2 = a1.clone()
    a2[:, ::2] += 1
    grad_output = torch.randint(-3, 4, x.shape).float()
    lay = DENSE[layout]
    inputs = [t.to(DEVICE) for t in (lay(x), a1, a2)]
    ours = gradients(dynamic_relu, inputs, lay(grad_output).to(DEVICE))
    for a, e in zip(ours, gradients(pytorch, [x, a1, a2], grad_output), strict=True):
        assert torch.equal(a.cpu(), e)


def test_negative_zero_infinities_and_nan() -> None:
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, 1e-45, 3e38])
    x = special.to(DEVICE).view(1, 1, 1, 1, 9)
    for a, b in ((1.0, -1.0), (0.0, 0.0), (-0.0, 1.0), (3.0, -0.25)):
        slopes = torch.tensor([[a]], device=DEVICE), torch.tensor([[b]], device=DEVICE)
        torch.testing.assert_close(
            dynamic_relu(x, *slopes), pytorch(x, *slopes), atol=0, rtol=0, equal_nan=True
        )
