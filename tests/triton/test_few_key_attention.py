"""few_key_attention in Triton: numbers of every path of its kernels."""

import math

import pytest
import torch
from torch import Tensor

from tests.ops.compare import assert_accurate, gradients, in_dtype
from tests.ops.layouts import DENSE, LAYOUTS, is_dense
from tests.triton.conftest import DEVICE
from vmf_kernels import _triton, few_key_attention, use_backend
from vmf_kernels.tiles import forced

ONE_TILE = {"steps": 99, "programs": 1}
SPLITS = {"elements": 16, "positions": 16, "least_steps": 1, "steps": 2, "programs": 1}
MANY_SPLITS = {"elements": 16, "positions": 16, "least_steps": 1, "steps": 1, "programs": 1}
# Features, tokens, heads, and sizes that differ from the tile that a shape so small would get.
PATHS: dict[str, tuple[tuple[int, ...], int, int, dict[str, int]]] = {
    "one_position": ((2, 16, 1, 1, 1), 6, 2, {}),
    "one_tile": ((2, 12, 2, 3, 7), 6, 2, {}),
    "several_steps": ((2, 16, 2, 5, 5), 4, 2, {**ONE_TILE, "elements": 16, "positions": 16}),
    "splits_of_several_steps": ((2, 12, 3, 5, 7), 6, 2, SPLITS),
    "a_split_of_one_step": ((1, 24, 1, 7, 7), 6, 2, MANY_SPLITS),
    "one_token_one_head": ((1, 7, 2, 3, 5), 1, 1, {}),
    "odd_heads": ((2, 15, 1, 4, 5), 5, 3, {}),
    "more_tokens_than_a_group_takes": ((1, 24, 1, 4, 5), 20, 4, SPLITS),
    "heads_wider_than_a_group": ((1, 400, 1, 3, 7), 3, 2, {}),
    "spatial_1d": ((1, 40, 70), 7, 4, SPLITS),
}


def tiles(sizes: dict[str, int]) -> dict[str, dict[str, int]]:
    return {"few_key_attention.forward": sizes, "few_key_attention.backward": sizes}


def call(heads: int, residual: bool, tensors: list[Tensor], g: Tensor, name: str) -> list[Tensor]:
    def function(x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return few_key_attention(x, k, v, heads, None, residual)

    with use_backend(name):
        return gradients(function, tensors, g)


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("dtype", _triton.DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_numbers(path: str, dtype: torch.dtype, residual: bool) -> None:
    shape, tokens, heads, sizes = PATHS[path]
    x, g = (torch.randn(shape).to(dtype) for _ in range(2))
    k, v = (torch.randn(shape[0], tokens, shape[1]).to(dtype) for _ in range(2))
    truth = call(heads, residual, in_dtype([x, k, v], torch.float64), g.double(), "reference")
    peers = call(heads, residual, in_dtype([x, k, v], torch.float32), g.float(), "reference")
    largest = g.abs().max().double() * max(y.abs().max().double() for y in (x, v))
    scale = math.sqrt(max(math.prod(shape[2:]), shape[1] / heads)) * largest
    for layout, lay in DENSE.items():
        with forced(tiles(sizes)):
            tensors = [y.to(DEVICE) for y in (lay(x), k, v)]
            ours = call(heads, residual, tensors, lay(g).to(DEVICE), "triton")
        for i, (a, t, p) in enumerate(zip(ours, truth, in_dtype(peers, dtype), strict=True)):
            assert a.dtype == dtype
            assert_accurate(a.cpu(), t, p, scale, f"result {i} of {path}, {layout}")
        if math.prod(shape[2:]) > 1:
            assert is_dense(ours[0], layout) and is_dense(ours[1], layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    x, g = (torch.randn(2, 6, 2, 2, 5, device=DEVICE) for _ in range(2))
    k, v = (torch.randn(2, 3, 6, device=DEVICE) for _ in range(2))
    g = g[:, :1].expand(x.shape)
    plain = call(2, True, [x, k, v], g.contiguous(), "triton")
    strange = call(2, True, [LAYOUTS[layout](x), k.mT.contiguous().mT, v], g, "triton")
    for a, b in zip(strange, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_large_scores_do_not_overflow() -> None:
    x = torch.full((1, 4, 1, 3, 3), 3e4)
    k, v = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    tensors = [y.to(DEVICE) for y in (x, k, v)]
    ours = call(1, False, tensors, torch.ones(x.shape, device=DEVICE), "triton")
    truth = call(
        1, False, [y.double() for y in (x, k, v)], torch.ones(x.shape).double(), "reference"
    )
    torch.testing.assert_close(ours[0].cpu(), truth[0].float())


def test_what_the_kernels_refuse_is_told() -> None:
    x = torch.randn(1, 4, 1, 2, 2, device=DEVICE)
    tokens = torch.randn(1, 65, 4, device=DEVICE)
    with pytest.raises(NotImplementedError, match=r"at most 64 tokens \(got 65\)"):
        few_key_attention(x, tokens, tokens)
