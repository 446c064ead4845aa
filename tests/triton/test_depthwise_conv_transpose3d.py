"""depthwise_conv_transpose3d in Triton: the kernels of the convolution's gradients, as an op."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.compare import assert_accurate, gradients, in_dtype
from tests.ops.layouts import DENSE, is_dense
from tests.triton.conftest import DEVICE
from vmf_kernels import _triton, depthwise_conv_transpose3d, use_backend
from vmf_kernels.tiles import forced

TILES = {"elements": 32, "channels": 8, "frames": 2, "steps": 2, "programs": 1}
# Shape of the input, multiplier, kernel, stride, padding, output_padding, sizes of tiles.
PATHS: dict[str, tuple[Any, ...]] = {
    "cube": ((1, 3, 2, 3, 2), 1, (3, 3, 3), 1, 1, 0, {}),
    "strided": ((2, 5, 2, 3, 2), 1, (3, 3, 3), 2, 1, (1, 0, 1), {}),
    "many_tiles_and_splits": ((1, 3, 2, 3, 4), 1, (1, 4, 3), (1, 2, 2), (0, 1, 1), 0, TILES),
    "multiplier": ((1, 2, 2, 2, 3), 2, (2, 2, 2), 2, 0, 0, {}),
}


def call(backend: str, path: str, tensors: list[Tensor | None], g: Tensor) -> list[Tensor | None]:
    stride, padding, output_padding = PATHS[path][3:6]

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv_transpose3d(x, weight, bias, stride, padding, output_padding)

    with use_backend(backend):
        return gradients(function, tensors, g)


@pytest.mark.parametrize("dtype", _triton.DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_numbers(path: str, dtype: torch.dtype) -> None:
    shape, multiplier, kernel, stride, padding, output_padding, sizes = PATHS[path]
    outputs = shape[1] * multiplier
    sides = (shape, (shape[1], multiplier, *kernel), (outputs,))
    x, w, b = (torch.randn(s).to(dtype) for s in sides)
    with use_backend("reference"):
        wide = (t.float() for t in (x, w))
        y = depthwise_conv_transpose3d(*wide, None, stride, padding, output_padding)
    g = torch.randn(y.shape).to(dtype)
    truth = call("reference", path, in_dtype([x, w, b], torch.float64), g.double())
    peers = call("reference", path, in_dtype([x, w, b], torch.float32), g.float())
    largest = max(t.abs().max().item() for t in (x, w, b)) * max(1.0, g.abs().max().item())
    terms = [math.prod(kernel), math.prod(kernel) * multiplier, x[:, 0].numel(), g[:, 0].numel()]
    for layout, lay in DENSE.items():
        with forced({f"depthwise_conv3d.{kernel}": sizes for kernel in ("gather", "sums")}):
            tensors = [t.to(DEVICE) for t in (lay(x), w, b)]
            ours = call("triton", path, tensors, lay(g).to(DEVICE))
        for i, (a, t, p) in enumerate(zip(ours, truth, in_dtype(peers, dtype), strict=True)):
            assert a.dtype == dtype
            scale = 2 * math.sqrt(terms[i]) * largest
            assert_accurate(a.cpu(), t, p, scale, f"result {i} of {path}, {layout}")
        # Where an input is read several times, PyTorch adds up its gradient, and chooses the order.
        assert is_dense(ours[0], layout) and (multiplier > 1 or is_dense(ours[1], layout))
