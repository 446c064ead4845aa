"""depthwise_conv3d in Triton: numbers of every path of its kernels."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.ops.layouts import DENSE, is_dense
from tests.triton.conftest import DEVICE
from vmf_kernels import _triton, depthwise_conv3d
from vmf_kernels.tiles import forced

SMALL = {"elements": 64, "least_columns": 4, "columns": 8, "taps": 8, "programs": 6}
# Shape of the input, multiplier, kernel, stride, padding before and after, dilation, sizes.
PATHS: dict[str, tuple[Any, ...]] = {
    "one_element": ((1, 1, 1, 1, 1), 1, (1, 1, 1), 1, (0, 0) * 3, 1, {}),
    "cube": ((2, 16, 4, 5, 6), 1, (3, 3, 3), 1, (1, 1) * 3, 1, {}),
    "many_tiles": ((2, 9, 3, 4, 5), 1, (3, 3, 3), 1, (1, 1) * 3, 1, SMALL),
    "below_the_kernel": ((1, 3, 1, 1, 2), 1, (3, 3, 3), 1, (1, 1) * 3, 1, {}),
    "frame": ((1, 5, 2, 6, 7), 1, (1, 3, 3), (1, 2, 2), (0, 0, 1, 1, 1, 1), 1, SMALL),
    "causal": ((1, 7, 5, 2, 3), 1, (5, 1, 1), 1, (4, 0, 0, 0, 0, 0), 1, {}),
    "stride_2_of_2": ((1, 6, 5, 6, 7), 2, (3, 3, 3), 2, (1, 1) * 3, 1, SMALL),
    "dilated": ((1, 3, 5, 6, 7), 2, (3, 2, 3), 1, (2, 1, 0, 3, 2, 2), 2, {}),
    "five": ((1, 2, 5, 5, 6), 1, (5, 5, 5), 1, (2, 2) * 3, 1, {}),
    "batch_0": ((0, 3, 2, 3, 4), 1, (3, 3, 3), 1, (1, 1) * 3, 1, {}),
}


def tiles(sizes: dict[str, int]) -> dict[str, dict[str, int]]:
    return {f"depthwise_conv3d.{k}": sizes for k in ("forward", "grad_input", "grad_weight")}


def triple(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,) * 3


def pytorch(x: Any, w: Any, b: Any, stride: Any, padding: Any, dilation: Any) -> torch.Tensor:
    t0, t1, h0, h1, w0, w1 = padding
    padded = F.pad(x, (w0, w1, h0, h1, t0, t1))
    return F.conv3d(padded, w, b, stride, 0, dilation, groups=x.shape[1])


def results(run: Any, inputs: list[torch.Tensor], grad: torch.Tensor) -> list[torch.Tensor]:
    leaves = [t.detach().requires_grad_() for t in inputs]
    y = run(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize("dtype", _triton.DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_numbers(path: str, dtype: torch.dtype) -> None:
    shape, m, kernel, stride, padding, dilation, sizes = PATHS[path]
    stride, dilation = triple(stride), triple(dilation)
    torch.manual_seed(0)
    channels = m * shape[1]
    x = torch.randn(shape).to(dtype)
    w, b = torch.randn(channels, 1, *kernel).to(dtype), torch.randn(channels).to(dtype)
    pairs = tuple(zip(padding[0::2], padding[1::2], strict=True))
    g = torch.randn_like(pytorch(x.float(), w.float(), b.float(), stride, padding, dilation))
    g = g.to(dtype)
    wide = [t.double() for t in (x, w, b)]
    truth = results(lambda *a: pytorch(*a, stride, padding, dilation), wide, g.double())
    for layout, lay in DENSE.items():
        inputs = [t.to(DEVICE) for t in (lay(x), w, b)]
        with forced(tiles(sizes)):
            ours = results(
                lambda *a: depthwise_conv3d(*a, stride, pairs, dilation), inputs, lay(g).to(DEVICE)
            )
        eps = torch.finfo(dtype).eps
        for a, t in zip(ours, truth, strict=True):
            assert a.dtype == dtype
            # Rounding of the result, and of float32 sums of up to a few hundred products.
            torch.testing.assert_close(a.cpu().double(), t, rtol=eps, atol=2e-5)
        if x.numel() > 1 and g.numel() > 1 and g[0, 0].numel() > 1:
            assert is_dense(ours[0], layout) and is_dense(ours[1], layout)


@pytest.mark.parametrize("layout", DENSE)
def test_splits_are_summed_in_one_order(layout: str) -> None:
    x, w = torch.randn(1, 5, 3, 4, 5, device=DEVICE), torch.randn(5, 1, 1, 3, 3, device=DEVICE)
    x = DENSE[layout](x)

    def run(w: torch.Tensor) -> torch.Tensor:
        return depthwise_conv3d(x, w, None, 1, (0, 1, 1))

    with forced(tiles(SMALL)):
        first, second = (results(run, [w], x) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_slices_and_one_sample() -> None:
    x = torch.randn(6, 4, 5, 8, device=DEVICE)[::2, :, 1:]
    w = torch.randn(3, 1, 3, 3, 3, device=DEVICE)
    expected = pytorch(x[None], w, None, 1, (1, 1) * 3, 1)[0]
    torch.testing.assert_close(depthwise_conv3d(x, w, None, 1, 1), expected, atol=1e-4, rtol=1e-4)


def test_what_is_too_large_is_refused_in_words() -> None:
    x, w = torch.randn(1, 1, 9, 9, 9, device=DEVICE), torch.randn(1, 1, 1, 9, 9, device=DEVICE)
    with pytest.raises(NotImplementedError, match="at most 49 taps in a frame"):
        depthwise_conv3d(x, w)
