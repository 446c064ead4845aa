"""Results of large calls are stored around the caches: the same results, whatever their size."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from vmf_kernels import depthwise_conv3d, depthwise_conv_transpose3d, use_backend

NEVER = 2**62
# channels, multiplier, kernel, stride: vectors that begin a line, half a line or a quarter, rows
# of which the last vector overlaps another, and channels whose columns are no whole pieces.
CASES = [
    (64, 1, (3, 3, 3), 1),
    (24, 1, (3, 3, 3), 2),
    (40, 1, (1, 5, 5), 1),
    (36, 1, (3, 3, 3), 1),
    (20, 1, (1, 3, 3), 2),
    (216, 1, (5, 1, 1), 1),
    (16, 6, (3, 3, 3), 2),
    (8, 1, (1, 1, 1), 1),
    (256, 1, (3, 3, 3), 1),
]


@pytest.fixture(params=[torch.float32, torch.float64, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def settings(extension: ModuleType) -> Iterator[ModuleType]:
    """The extension, whose instruction set and bound are put back afterwards."""
    before, isa = extension.set_streaming_pays_from(NEVER), extension.current_isa()
    yield extension
    extension.set_streaming_pays_from(before)
    extension.set_isa(isa)


def results(case: tuple, dtype: torch.dtype) -> list[Tensor]:
    """Forward, with a bias and without, input gradient and transposed convolution."""
    channels, multiplier, kernel, stride = case
    torch.manual_seed(0)
    x = torch.randn(2, channels, 5, 9, 14, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    w = torch.randn(channels * multiplier, 1, *kernel, dtype=dtype)
    b = torch.randn(channels * multiplier, dtype=dtype)
    padding = tuple(k // 2 for k in kernel)
    y = depthwise_conv3d(x, w, b, (1, stride, stride), padding)
    (grad,) = torch.autograd.grad(y, x, torch.randn_like(y))
    out = [y.detach(), grad]
    with torch.no_grad():
        out.append(depthwise_conv3d(x, w, None, (1, stride, stride), padding))
        if multiplier == 1:
            out.append(depthwise_conv_transpose3d(x, w, None, (1, stride, stride), padding))
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
def test_streamed_results_are_the_same(
    case: tuple, dtype: torch.dtype, settings: ModuleType
) -> None:
    for name in settings.supported_isas():
        settings.set_isa(name)
        settings.set_streaming_pays_from(NEVER)
        with use_backend("cpu"):
            usual = results(case, dtype)
            assert settings.set_streaming_pays_from(0) == NEVER
            streamed = results(case, dtype)
        for result, expected in zip(streamed, usual, strict=True):
            assert torch.equal(result, expected), f"{name} {case}"
