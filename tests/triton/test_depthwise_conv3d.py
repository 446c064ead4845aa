"""depthwise_conv3d in Triton: numbers of every path of its kernels."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.compare import assert_accurate, gradients, in_dtype
from tests.ops.layouts import DENSE, LAYOUTS, is_dense
from tests.triton.conftest import DEVICE
from vmf_kernels import _triton, depthwise_conv3d, use_backend
from vmf_kernels.ops.depthwise_conv3d.epilogue import ACTIVATIONS
from vmf_kernels.tiles import forced

TILES = {"elements": 32, "channels": 8, "frames": 2, "steps": 2, "programs": 1}
# Shape of the input, multiplier, kernel, stride, padding, dilation, sizes of tiles.
PATHS: dict[str, tuple[Any, ...]] = {
    "one_element": ((1, 1, 1, 1, 1), 1, (1, 1, 1), 1, 0, 1, {}),
    "cube": ((1, 3, 3, 4, 5), 1, (3, 3, 3), 1, 1, 1, {}),
    "frame_of_16_channels": ((2, 16, 2, 3, 2), 1, (1, 3, 3), 1, (0, 1, 1), 1, {}),
    "many_tiles_and_splits": ((2, 3, 3, 3, 4), 1, (3, 2, 2), 1, 1, 1, TILES),
    "one_split": ((1, 4, 2, 3, 3), 1, (3, 3, 3), 1, 1, 1, {"steps": 99, "programs": 1}),
    "below_the_kernel": ((1, 3, 1, 1, 2), 1, (3, 3, 3), 1, 1, 1, {}),
    "strided_frames": ((1, 5, 2, 6, 7), 1, (1, 3, 3), (1, 2, 2), (0, 1, 1), 1, TILES),
    "strided": ((1, 2, 5, 4, 5), 2, (3, 3, 3), 2, 1, 1, {}),
    "stride_3_leaves_some_out": ((1, 4, 5, 6, 7), 1, (3, 2, 3), 3, (1, 0, 1), 1, {}),
    "causal": ((1, 7, 5, 2, 3), 1, (5, 1, 1), 1, ((4, 0), (0, 0), (0, 0)), 1, TILES),
    "multiplier": ((1, 2, 3, 2, 3), 3, (3, 2, 2), 1, 1, 1, TILES),
    "dilated": ((1, 3, 5, 6, 7), 2, (3, 2, 3), 1, ((2, 1), (0, 3), (2, 2)), 2, {}),
    "groups_of_taps": ((1, 1, 3, 4, 3), 1, (5, 5, 5), 1, 2, 1, {}),
    "seven": ((1, 1, 2, 3, 3), 1, (7, 7, 7), 1, 3, 1, {}),
}


def tiles(sizes: dict[str, int]) -> dict[str, dict[str, int]]:
    return {f"depthwise_conv3d.{kernel}": sizes for kernel in ("gather", "sums")}


def call(backend: str, path: str, tensors: list[Tensor | None], g: Tensor) -> list[Tensor | None]:
    stride, padding, dilation = PATHS[path][3:6]

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv3d(x, weight, bias, stride, padding, dilation)

    with use_backend(backend):
        return gradients(function, tensors, g)


@pytest.mark.parametrize("dtype", _triton.DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_numbers(path: str, dtype: torch.dtype) -> None:
    shape, multiplier, kernel, stride, padding, dilation, sizes = PATHS[path]
    channels = shape[1] * multiplier
    x, w, b = (torch.randn(s).to(dtype) for s in (shape, (channels, 1, *kernel), (channels,)))
    with use_backend("reference"):
        y = depthwise_conv3d(x.float(), w.float(), None, stride, padding, dilation)
    g = torch.randn(y.shape).to(dtype)
    truth = call("reference", path, in_dtype([x, w, b], torch.float64), g.double())
    peers = call("reference", path, in_dtype([x, w, b], torch.float32), g.float())
    largest = max(t.abs().max().item() for t in (x, w)) * max(1.0, g.abs().max().item())
    terms = [math.prod(kernel), math.prod(kernel) * multiplier, g[:, 0].numel(), g[:, 0].numel()]
    for layout, lay in DENSE.items():
        with forced(tiles(sizes)):
            tensors = [t.to(DEVICE) for t in (lay(x), w, b)]
            ours = call("triton", path, tensors, lay(g).to(DEVICE))
        for i, (a, t, p) in enumerate(zip(ours, truth, in_dtype(peers, dtype), strict=True)):
            assert a.dtype == dtype
            scale = math.sqrt(terms[i]) * largest
            assert_accurate(a.cpu(), t, p, scale, f"result {i} of {path}, {layout}")
        if math.prod(shape[1:]) > 1 and math.prod(g.shape[2:]) > 1:
            assert is_dense(ours[0], layout) and is_dense(ours[1], layout)


FUSED = [
    (torch.float32, "contiguous", 1, True),
    (torch.bfloat16, "channels_last", 1, False),
    (torch.float16, "channels_last", 2, True),  # on contiguous copies
]


@pytest.mark.parametrize(("dtype", "layout", "multiplier", "with_residual"), FUSED)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_residual_and_activation_in_one_pass(
    activation: str | None, dtype: torch.dtype, layout: str, multiplier: int, with_residual: bool
) -> None:
    c = 3 * multiplier
    shapes = ((2, 3, 3, 4, 5), (c, 1, 3, 3, 3), (c,), (2, c, 3, 4, 5), (2, c), (2, c))
    x, w, b, r, *slopes = (3 * torch.randn(s).to(dtype) for s in shapes)
    r[0, 0, 0, 0, 0] = math.nan
    if activation != "gelu":  # PyTorch's of infinity is NaN in float32, not in float64
        r[0, 0, 0, 0, 1:3] = torch.tensor([math.inf, -math.inf])
    x, r = DENSE[layout](x), DENSE[layout](r)
    given = [x, w, b, r if with_residual else None, *slopes]

    def call(x: Tensor, w: Tensor, b: Tensor, r: Tensor | None, *slopes: Tensor) -> Tensor:
        chosen = slopes if activation == "dynamic_relu" else activation
        return depthwise_conv3d(x, w, b, padding=1, activation=chosen, residual=r)

    with use_backend("reference"):
        expected = call(*given)
    with use_backend("triton"):
        result = call(*(None if t is None else t.to(DEVICE) for t in given))
    assert is_dense(result, layout) and result.dtype == dtype
    # float32 rounds sums of 27 products up to 50 in another order.
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(result.cpu(), expected, equal_nan=True, **close)


@pytest.mark.parametrize("layout", DENSE)
def test_splits_are_summed_in_one_order(layout: str) -> None:
    x, w = torch.randn(1, 5, 3, 4, 5, device=DEVICE), torch.randn(5, 1, 1, 3, 3, device=DEVICE)
    x = DENSE[layout](x)

    def run() -> list[Tensor | None]:
        return gradients(lambda w: depthwise_conv3d(x, w, None, 1, (0, 1, 1)), [w], x)

    with forced(tiles(TILES)):
        first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    x, w = torch.randn(2, 4, 2, 2, 3, device=DEVICE), torch.randn(4, 1, 1, 3, 2, device=DEVICE)
    g = torch.randn(2, 1, 2, 2, 2, device=DEVICE).expand(2, 4, 2, 2, 2)
    strided = w.transpose(3, 4).contiguous().transpose(3, 4)

    def run(x: Tensor, w: Tensor, g: Tensor) -> list[Tensor | None]:
        return gradients(lambda x, w: depthwise_conv3d(x, w, None, 1, (0, 1, 0)), [x, w], g)

    for a, b in zip(run(LAYOUTS[layout](x), strided, g), run(x, w, g.contiguous()), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", DENSE)
def test_no_samples(layout: str) -> None:
    x, w = torch.empty(0, 3, 2, 3, 4, device=DEVICE), torch.randn(3, 1, 3, 3, 3, device=DEVICE)
    x = DENSE[layout](x)
    y, grad_x, grad_w = gradients(lambda x, w: depthwise_conv3d(x, w, None, 1, 1), [x, w], x)
    assert y.shape == grad_x.shape == x.shape
    assert torch.equal(grad_w, torch.zeros_like(w))


def test_a_sample_without_a_batch() -> None:
    x = torch.randn(6, 4, 5, 8, device=DEVICE)[::2, :, 1:]
    w = torch.randn(3, 1, 3, 1, 1, device=DEVICE)
    with use_backend("reference"):
        expected = depthwise_conv3d(x, w)
    torch.testing.assert_close(depthwise_conv3d(x, w), expected)


def test_what_the_kernels_refuse_is_told() -> None:
    x = torch.randn(1, 1, 11, 9, 9, device=DEVICE)
    with pytest.raises(NotImplementedError, match=r"at most 9 taps along T \(got 11\)"):
        depthwise_conv3d(x, torch.randn(1, 1, 11, 1, 1, device=DEVICE))
    with pytest.raises(NotImplementedError, match="no axis may have a stride and a dilation"):
        depthwise_conv3d(x, torch.randn(1, 1, 3, 1, 1, device=DEVICE), None, 2, 0, 2)
