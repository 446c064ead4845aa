"""depthwise_conv3d: extreme values, rounding, long sums, and the same bits every time."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from tests.conftest import KERNELS, Implementation
from tests.ops.compare import HALVES, assert_accurate, assert_same_bits, gradients
from tests.ops.conv_cases import NAMES, Case, random_case
from tests.ops.layouts import DENSE
from vmf_kernels import depthwise_conv3d, use_backend
from vmf_kernels.ops.depthwise_conv3d import library

kernels = pytest.mark.parametrize("implementation", KERNELS, ids=str, indirect=True)


def every_float(dtype: torch.dtype) -> Tensor:
    """All 65536 values of a 16-bit dtype."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", DENSE)
def test_every_16_bit_value_goes_through_unchanged(
    implementation: Implementation, dtype: torch.dtype, layout: str
) -> None:
    """Subnormals, infinities and NaN too."""
    x = every_float(dtype).view(1, 64, 1, 32, 32)
    output = depthwise_conv3d(DENSE[layout](x), torch.ones(64, 1, 1, 1, 1, dtype=dtype))
    assert torch.equal(output.isnan(), x.isnan())
    assert torch.equal(output.nan_to_num(7.0), x.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("layout", DENSE)
def test_results_round_to_nearest_even(
    implementation: Implementation, dtype: torch.dtype, layout: str
) -> None:
    """Sums of two neighbours, exact in float32 up to one rounding: ties, overflow, subnormals."""
    x = every_float(dtype)[torch.randperm(2**16)].view(1, 64, 1, 16, 64)
    kernel = torch.ones(64, 1, 1, 1, 2, dtype=dtype)
    output = depthwise_conv3d(DENSE[layout](x), kernel)
    expected = (x.float()[..., :-1] + x.float()[..., 1:]).to(dtype)
    assert torch.equal(output.isnan(), expected.isnan())
    assert torch.equal(output.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_value_stays_where_it_is_read(implementation: Implementation, value: float) -> None:
    """One NaN or infinity in input and gradient spoils what reads it, nothing else."""
    cases = [
        Case("plain", (4, 5, 13), channels=19),
        Case("strided", (4, 7, 13), stride=(1, 2, 2), channels=9, multiplier=2),
        Case("dilated", (5, 5, 15), dilation=(1, 2, 3), padding=(1, 2, 3)),
        *[random_case(seed, bias=True) for seed in range(900, 912)],
    ]
    for case, lay in ((case, lay) for case in cases for lay in DENSE.values()):
        (x, w, b), g = case.tensors(torch.float32)
        x, w, g = x.abs(), w.abs(), g.abs()  # no zeros, and infinities of one sign only
        x[-1, -1, -1, x.shape[3] // 2, -1] = value
        g[0, 0, 0, g.shape[3] // 2, 0] = value

        def run(x: Tensor, w: Tensor, b: Tensor, case: Case = case) -> Tensor:
            return depthwise_conv3d(x, w, b, *case.settings)

        ours = gradients(run, [lay(x), w, b], lay(g))
        bad_x, bad_g, w1, b0 = (~x.isfinite()).float(), (~g.isfinite()).float(), w * 0 + 1, b * 0
        bad = gradients(case.pytorch, [bad_x, w1, b0], bad_g)
        bad[2] = bad[2] * 0
        for ones in ((bad_x, torch.ones_like(g)), (torch.ones_like(x), bad_g)):
            bad[2] += gradients(case.pytorch, [ones[0], w1, b0], ones[1])[2]
        for name, result, reads in zip(NAMES, ours, bad, strict=True):
            spoilt, must = ~result.isfinite(), reads > 0.5
            may = must
            if name == "grad_weight":
                # A kernel may multiply with the zeros of padding, as PyTorch does: that spoils
                # every tap of the channel, but no other channel's.
                bad_channels = bad_x.repeat_interleave(case.multiplier, 1).sum((0, 2, 3, 4))
                bad_channels += bad_g.sum((0, 2, 3, 4))
                may = (bad_channels > 0).view(-1, 1, 1, 1, 1).expand_as(must)
            assert not (must & ~spoilt).any(), f"{name} of {case!r}: a bad value was not read"
            assert not (spoilt & ~may).any(), f"{name} of {case!r}: a bad value spread"


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_weight_gradient_over_a_million_positions(
    implementation: Implementation, dtype: torch.dtype, layout: str, mean: float
) -> None:
    """Sums of 2**20 terms; of mean 1, they grow so large that small terms get lost."""
    case = Case("million", (16, 256, 256), (1, 1, 1), channels=2, batch=1, padding="valid")
    x, g = (DENSE[layout](torch.randn(1, 2, *case.size).add(mean).to(dtype)) for _ in range(2))
    w, b = torch.ones(2, 1, 1, 1, 1), torch.ones(2)
    grads = library.depthwise_conv3d_grad_weight(g, x, [1, 1, 1], (1, 1, 1), (0,) * 6, (1, 1, 1))
    peers = gradients(case.pytorch, [x.float(), w, b], g.float())[2:]
    products = (g.double() * x.double()).view(2, -1), g.double().view(2, -1)
    for name, ours, pytorch, terms in zip(NAMES[2:], grads, peers, products, strict=True):
        scale = terms.square().sum(1).sqrt()
        truth = terms.sum(1).view(ours.shape)
        assert_accurate(ours, truth, pytorch.to(dtype), scale, name)


def all_results(case: Case, dtype: torch.dtype, layout: str) -> list[Tensor]:
    (x, w, b), grad_output = case.tensors(dtype)

    def run(*args: Tensor) -> Tensor:
        return depthwise_conv3d(*args, *case.settings)

    return gradients(run, [DENSE[layout](x), w, b], DENSE[layout](grad_output))


LARGE = [
    Case("large_3x3x3", (6, 20, 21), channels=37),
    Case("large_strided", (6, 20, 21), channels=37, stride=(1, 2, 2)),
    Case("large_multiplier", (6, 12, 13), channels=13, multiplier=3),
    Case("large_multiplier_strided", (6, 14, 14), channels=24, multiplier=6, stride=(1, 2, 2)),
    Case("large_5x1x1", (24, 12, 13), (5, 1, 1), padding=(2, 0, 0), channels=20),
]


@kernels
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_same_bits_twice_and_on_any_threads(
    implementation: Implementation, case: Case, layout: str
) -> None:
    assert_same_bits(lambda dtype: all_results(case, dtype, layout), NAMES)


@kernels
def test_calls_from_many_python_threads(implementation: Implementation) -> None:
    """Each keeps its own workspace: shapes that differ run at once without mixing."""
    cases = [*LARGE, *(random_case(seed, bias=True) for seed in range(700, 720))]

    def run(case: Case) -> list[Tensor]:
        with use_backend("cpu"):
            return all_results(case, torch.float32, "channels_last")

    expected = [run(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for results in (pool.map(run, cases) for _ in range(2)):
            for case, ours, alone in zip(cases, results, expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(ours, alone, strict=True)), case
