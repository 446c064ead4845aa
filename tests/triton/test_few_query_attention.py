"""few_query_attention in Triton: numbers of every path of its kernels."""

import math

import pytest
import torch
from torch import Tensor

from tests.ops.compare import assert_accurate, gradients, in_dtype
from tests.ops.layouts import DENSE, LAYOUTS, is_dense
from tests.triton.conftest import DEVICE
from vmf_kernels import _triton, few_query_attention, use_backend
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
    "more_splits_than_the_second_stage_takes_at_once": ((1, 4, 2100), 2, 1, MANY_SPLITS),
    "one_token_one_head": ((1, 7, 2, 3, 5), 1, 1, {}),
    "odd_heads": ((2, 15, 1, 4, 5), 5, 3, {}),
    "more_tokens_than_a_group_takes": ((1, 24, 1, 4, 5), 20, 4, SPLITS),
    "heads_wider_than_a_group": ((1, 400, 1, 3, 7), 3, 2, {}),
    "spatial_1d": ((1, 40, 70), 7, 4, SPLITS),
}


def tiles(sizes: dict[str, int]) -> dict[str, dict[str, int]]:
    return {"few_query_attention.forward": sizes, "few_query_attention.backward": sizes}


def call(heads: int, tensors: list[Tensor], g: Tensor, backend: str) -> list[Tensor]:
    with use_backend(backend):
        return gradients(lambda q, x: few_query_attention(q, x, heads), tensors, g)


@pytest.mark.parametrize("dtype", _triton.DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_numbers(path: str, dtype: torch.dtype) -> None:
    shape, tokens, heads, sizes = PATHS[path]
    x = torch.randn(shape).to(dtype)
    q, g = (torch.randn(shape[0], tokens, shape[1]).to(dtype) for _ in range(2))
    truth = call(heads, in_dtype([q, x], torch.float64), g.double(), "reference")
    peers = call(heads, in_dtype([q, x], torch.float32), g.float(), "reference")
    scale = max(1.0, math.sqrt(shape[1] / heads)) * g.abs().max().double() * x.abs().max().double()
    for layout, lay in DENSE.items():
        with forced(tiles(sizes)):
            ours = call(heads, [q.to(DEVICE), lay(x).to(DEVICE)], g.to(DEVICE), "triton")
        for i, (a, t, p) in enumerate(zip(ours, truth, in_dtype(peers, dtype), strict=True)):
            assert a.dtype == dtype
            assert_accurate(a.cpu(), t, p, scale, f"result {i} of {path}, {layout}")
        if math.prod(shape[2:]) > 1:
            assert is_dense(ours[2], layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    q, x = torch.randn(2, 3, 6, device=DEVICE), torch.randn(2, 6, 2, 2, 5, device=DEVICE)
    g = torch.randn(2, 3, 6, device=DEVICE)
    plain = call(2, [q, x], g, "triton")
    tensors = [q.mT.contiguous().mT, LAYOUTS[layout](x)]
    strange = call(2, tensors, g[:, :1].expand(2, 3, 6), "triton")
    torch.testing.assert_close(strange[0], plain[0])
    again = call(2, [q, x], g[:, :1].expand(2, 3, 6).contiguous(), "triton")
    for a, b in zip(strange, again, strict=True):
        torch.testing.assert_close(a, b)


def test_large_scores_do_not_overflow() -> None:
    q, x = torch.zeros(1, 2, 4), torch.randn(1, 4, 1, 5, 9)
    q[0, 0], q[0, 1] = 3e4, -3e4
    with forced(tiles(MANY_SPLITS)):
        ours = call(1, [q.to(DEVICE), x.to(DEVICE)], torch.ones(1, 2, 4, device=DEVICE), "triton")
    truth = call(1, [q.double(), x.double()], torch.ones(1, 2, 4).double(), "reference")
    torch.testing.assert_close(ours[0].cpu(), truth[0].float())


def test_what_the_kernels_refuse_is_told() -> None:
    x = torch.randn(1, 4, 1, 2, 2, device=DEVICE)
    with pytest.raises(NotImplementedError, match=r"at most 64 tokens \(got 65\)"):
        few_query_attention(torch.randn(1, 65, 4, device=DEVICE), x)
    with pytest.raises(NotImplementedError, match=r"at most 256 channels a head \(got 257\)"):
        few_query_attention(
            torch.randn(1, 2, 257, device=DEVICE), torch.randn(1, 257, 2, 2, 2, device=DEVICE)
        )
