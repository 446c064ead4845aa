"""depthwise_conv_transpose3d and its layer: conv_transpose3d with groups=C, whatever its form."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.conftest import Implementation
from tests.ops.compare import assert_accurate, gradients, in_dtype
from tests.ops.layouts import DENSE, is_dense
from tests.ops.samples import served_by
from vmf_kernels import (
    DepthwiseConvTranspose3d,
    accelerate,
    depthwise_conv_transpose3d,
    explain,
    restore,
    use_backend,
)
from vmf_kernels.layers import AcceleratedConvTranspose3d

# Input (N, C, T, H, W), multiplier, kernel, and the settings.
CASES: dict[str, tuple[tuple[int, ...], int, tuple[int, int, int], dict[str, Any]]] = {
    "plain": ((2, 3, 3, 4, 5), 1, (3, 3, 3), {}),
    "doubled": ((2, 16, 3, 4, 5), 1, (3, 3, 3), {"stride": 2, "padding": 1}),
    "mednext": ((1, 5, 4, 4, 4), 1, (5, 5, 5), {"stride": 2, "padding": 2}),
    "frames": (
        (2, 4, 3, 4, 5),
        1,
        (1, 3, 4),
        {"stride": (1, 2, 2), "padding": (0, 1, 1), "output_padding": (0, 1, 0)},
    ),
    "multiplier": ((2, 4, 3, 4, 5), 3, (3, 2, 2), {"stride": (2, 1, 2), "padding": (1, 0, 0)}),
    "dilated": ((1, 3, 3, 2, 3), 2, (2, 3, 2), {"dilation": (2, 1, 3), "padding": (1, 1, 0)}),
    "stride_above_kernel": ((1, 3, 3, 2, 3), 1, (2, 2, 2), {"stride": 3, "output_padding": 2}),
    "one_position": ((1, 3, 1, 1, 1), 1, (3, 3, 3), {"stride": 2, "output_padding": 1}),
}
each_case = pytest.mark.parametrize("name", CASES)
# No convolution has it as its input gradient: it goes to PyTorch.
DILATED_OUTPUT = {"dilation": 3, "output_padding": 2}


def tensors(name: str) -> list[Tensor]:
    shape, multiplier, kernel, _ = CASES[name]
    made = torch.Generator().manual_seed(2)
    sizes = (shape, (shape[1], multiplier, *kernel), (shape[1] * multiplier,))
    return [torch.randn(size, generator=made) for size in sizes]


def theirs(name: str, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return F.conv_transpose3d(x, w, b, groups=w.shape[0], **CASES[name][3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", DENSE)
@each_case
@served_by("depthwise_conv_transpose3d")
def test_numbers(
    name: str, layout: str, dtype: torch.dtype, implementation: Implementation
) -> None:
    given = [x.to(dtype) for x in tensors(name)]
    truth_inputs = in_dtype(given, torch.float64)
    grad = torch.randn(theirs(name, *truth_inputs).shape).to(dtype)
    truth = gradients(lambda *t: theirs(name, *t), truth_inputs, grad.double())
    wide = in_dtype(given, torch.promote_types(dtype, torch.float32))
    peers = gradients(lambda *t: theirs(name, *t), wide, grad.to(wide[0].dtype))
    lay = DENSE[layout]
    ours = gradients(
        lambda *t: depthwise_conv_transpose3d(*t, **CASES[name][3]),
        [lay(given[0]), *given[1:]],
        lay(grad),
    )
    names = ("output", "grad_input", "grad_weight", "grad_bias")
    for what, a, t, p in zip(names, ours, truth, in_dtype(peers, dtype), strict=True):
        assert a.dtype == dtype
        assert_accurate(a, t, p, t.abs().max().item() * 2, f"{what} of {name}, {layout}")
    if given[0][0, 0].numel() > 1:
        assert is_dense(ours[0], layout)


@each_case
def test_without_bias_and_without_batch(name: str) -> None:
    x, w, b = tensors(name)
    ours = depthwise_conv_transpose3d(x, w, **CASES[name][3])
    torch.testing.assert_close(ours, theirs(name, x, w, None), rtol=1e-4, atol=1e-4)
    one = depthwise_conv_transpose3d(x[0], w, b, **CASES[name][3])
    torch.testing.assert_close(one, theirs(name, x, w, b)[0], rtol=1e-4, atol=1e-4)


def test_gradients_of_both_orders() -> None:
    given = [
        t.double()[:1].requires_grad_() if t.dim() == 5 and i == 0 else t.double().requires_grad_()
        for i, t in enumerate(tensors("frames"))
    ]

    def function(*t: Tensor) -> Tensor:
        return depthwise_conv_transpose3d(*t, **CASES["frames"][3])

    assert torch.autograd.gradcheck(function, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, given, fast_mode=True)


def test_what_no_kernel_covers_goes_to_pytorch() -> None:
    x, w, b = torch.randn(2, 3, 3, 4, 5), torch.randn(3, 1, 2, 2, 2), torch.randn(3)
    (record,) = explain(depthwise_conv_transpose3d, x, w, b, **DILATED_OUTPUT)
    assert record.backend == "reference" and "smaller than the stride" in record.reason
    expected = F.conv_transpose3d(x, w, b, groups=3, **DILATED_OUTPUT)
    torch.testing.assert_close(depthwise_conv_transpose3d(x, w, b, **DILATED_OUTPUT), expected)
    with use_backend("cpu"), pytest.raises(NotImplementedError, match="smaller than the stride"):
        depthwise_conv_transpose3d(x, w, b, **DILATED_OUTPUT)


X, W = torch.zeros(2, 3, 2, 4, 4), torch.zeros(3, 2, 3, 3, 3)


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (ValueError, "input must be", {"input": X[0, 0]}),
        (ValueError, "weight must be", {"weight": W[:2]}),
        (ValueError, "weight must be", {"weight": W[0]}),
        (ValueError, "weight must be", {"weight": W[:, :0]}),
        (ValueError, "bias must have one value", {"bias": torch.zeros(3)}),
        (ValueError, "padding must be an int or three", {"padding": "same"}),
        (ValueError, "padding must be an int or three", {"padding": ((1, 1),) * 3}),
        (ValueError, "padding must be at least 0", {"padding": -1}),
        (ValueError, "output_padding must be at least 0", {"output_padding": -1}),
        (ValueError, "output_padding must be smaller", {"output_padding": (0, 0, 1)}),
        (ValueError, "stride must be at least 1", {"stride": 0}),
        (ValueError, "stride must be one int or three", {"stride": (1, 2)}),
        (ValueError, "at least one position", {"padding": 3}),
        (ValueError, "at least one position", {"input": X[:, :, :0]}),
        (ValueError, "at most 2", {"stride": 2**30}),
        (ValueError, "share one dtype", {"weight": W.double()}),
        (TypeError, "stride must be made of ints", {"stride": 1.5}),
        (TypeError, "weight must be a tensor", {"weight": 3}),
    ],
)
def test_refusals(error: type, words: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=rf"^depthwise_conv_transpose3d: .*{words}"):
        depthwise_conv_transpose3d(**{"input": X, "weight": W, **arguments})


SETTINGS: list[dict[str, Any]] = [
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (1, 4, 4), "stride": (1, 2, 2), "bias": False},
    {"kernel_size": 2, "dilation": 2, "output_padding": 1, "dtype": torch.float64},
]


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_layer_is_pytorchs(settings: dict[str, Any], multiplier: int) -> None:
    torch.manual_seed(3)
    ours = DepthwiseConvTranspose3d(4, 4 * multiplier, **settings)
    torch.manual_seed(3)
    layer = nn.ConvTranspose3d(4, 4 * multiplier, groups=4, **settings)
    assert repr(ours) == repr(layer).replace("Conv", "DepthwiseConv")
    torch.testing.assert_close(ours.state_dict(), layer.state_dict(), rtol=0, atol=0)
    x = torch.randn(2, 4, 3, 4, 5, dtype=layer.weight.dtype)
    torch.testing.assert_close(ours(x), layer(x))
    if settings["kernel_size"] == 3:
        size = [6, 8, 9]
        assert ours(x, size).shape[2:] == (6, 8, 9)
        torch.testing.assert_close(ours(x, size), layer(x, size))


def test_wrong_layers() -> None:
    with pytest.raises(ValueError, match="out_channels must be a multiple"):
        DepthwiseConvTranspose3d(4, 6, 3)
    with pytest.raises(ValueError, match="kernel_size must be at least 1"):
        DepthwiseConvTranspose3d(4, 4, 0)
    with pytest.raises(ValueError, match="stride must be at least 1"):
        DepthwiseConvTranspose3d(4, 4, 3, stride=0)


class Overriding(nn.ConvTranspose3d):
    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(input, output_size) + 1


def test_accelerate_explain_and_restore() -> None:
    up = nn.ConvTranspose3d(4, 4, 3, 2, 1, groups=4)
    model = nn.Sequential(up, nn.ConvTranspose3d(4, 8, 2, 2), Overriding(8, 8, 2, groups=8))
    x = torch.randn(2, 4, 3, 4, 5)
    before, parameters = model(x), list(model.parameters())
    accelerate(model)
    assert model[0] is up and type(up) is AcceleratedConvTranspose3d
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(model)(x), before, rtol=1e-5, atol=1e-5)
    first, second = explain(model, x)
    assert (first.name, first.swapped, first.backend) == ("0", True, explain(model)[0].backend)
    assert (second.swapped, second.reason) == (False, "its class Overriding overrides forward")
    restore(model)
    assert type(up) is nn.ConvTranspose3d
    assert torch.equal(model(x), before)
