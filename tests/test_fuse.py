"""fuse: the same outputs from fewer layers."""

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.fusing import CHANNELS, Block, check, depthwise, features, input_gradient, kinds, norm
from vmf_kernels import DepthwiseConv3d, fuse
from vmf_kernels.layers import FusedConv3d, FusedDepthwiseConv3d, multiply_in_place

ACTIVATIONS = {
    "relu": (nn.ReLU(), F.relu, torch.relu, lambda x: x.relu()),
    "relu6": (nn.ReLU6(inplace=True), F.relu6),
    "hardswish": (nn.Hardswish(), F.hardswish),
    "silu": (nn.SiLU(), F.silu, lambda x: F.silu(x, inplace=True)),
    "gelu": (nn.GELU(), F.gelu),
}


@pytest.mark.parametrize(
    ("name", "function"), [(name, f) for name, fs in ACTIVATIONS.items() for f in fs]
)
@pytest.mark.parametrize("bias", [False, True])
def test_norm_and_activation(name: str, function: Any, bias: bool) -> None:
    model = Block(lambda self, y, x: self.act(self.norm(y)), depthwise(bias=bias))
    if isinstance(function, nn.Module):
        model.act = function
    else:
        model.after = lambda self, y, x: function(self.norm(y))
    fused = check(model)
    assert kinds(fused) == ["FusedDepthwiseConv3d"]
    assert fused.get_submodule("conv").activation == name
    assert "norm" not in dict(fused.named_modules())


@pytest.mark.parametrize(
    "after",
    [
        lambda self, y, x: self.norm(y) + x,
        lambda self, y, x: x + self.norm(y),
        lambda self, y, x: torch.add(x, self.norm(y)),
        lambda self, y, x: self.norm(y).add_(x),
        lambda self, y, x: operator.iadd(self.norm(y), x),
        lambda self, y, x: self.act(self.norm(y) + x),
        lambda self, y, x: F.silu(x + y),
    ],
)
def test_residual(after: Callable[..., Tensor]) -> None:
    assert kinds(check(Block(after))) == ["FusedDepthwiseConv3d"]


def test_a_residual_that_comes_later_is_waited_for() -> None:
    block = Block(lambda self, y, x: self.act(self.norm(y) + self.other(x)))
    assert kinds(check(block)) == ["Conv3d", "FusedDepthwiseConv3d"]


@pytest.mark.parametrize(
    "after",
    [
        lambda self, y, x: self.norm(y) + self.act(x),  # in place, on what the convolution reads
        lambda self, y, x: self.norm(y) + x.mul_(2),
        lambda self, y, x: self.norm(y) + F.relu(x, inplace=True),
        lambda self, y, x: torch.add(y, x, alpha=2),
        lambda self, y, x: self.norm(y) + self.norm(y),
        lambda self, y, x: y + y,
        lambda self, y, x: y + 1,
        lambda self, y, x: self.act(y * 1) + y,
        lambda self, y, x: F.gelu(y, approximate="tanh"),
        lambda self, y, x: self.norm(self.act(y)) * self.norm(x),
    ],
)
def test_what_is_not_the_same_is_left_alone(after: Callable[..., Tensor]) -> None:
    fused = check(Block(after))
    assert not any(
        isinstance(m, FusedDepthwiseConv3d) and m.activation is None for m in fused.modules()
    )


def test_a_residual_that_is_broadcast() -> None:
    assert kinds(check(Block(lambda self, y, x: F.relu(y + x.mean((2, 3, 4), keepdim=True)))))


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "circular"])
def test_pointwise_dense_and_ours(padding_mode: str) -> None:
    layers = [
        *(nn.Conv3d(CHANNELS, CHANNELS, 1, bias=False), norm(), nn.ReLU()),
        *(nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1, padding_mode=padding_mode), norm()),
        *(depthwise(padding_mode=padding_mode), norm(), nn.Dropout3d(), nn.Identity(), nn.SiLU()),
        *(DepthwiseConv3d(CHANNELS, CHANNELS, 3, padding=((2, 0), (1, 1), (1, 1))), norm()),
    ]
    fused = check(nn.Sequential(*layers))
    assert kinds(fused) == ["FusedConv3d", "Conv3d", "FusedDepthwiseConv3d", "DepthwiseConv3d"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_of_a_dense_convolution(name: str, layout: torch.memory_format) -> None:
    dense = nn.Conv3d(CHANNELS, 5, 3, (1, 2, 1), (1, 0, 1), groups=1, bias=False)
    fused = check(nn.Sequential(dense, ACTIVATIONS[name][0]), features().to(memory_format=layout))
    assert kinds(fused) == ["FusedConv3d"] and fused.get_submodule("0").activation == name


PLAIN_ONES: list[tuple[Callable[..., Tensor], list[str]]] = [
    (lambda self, y, x: self.act(self.norm(y) + x), ["FusedConv3d"]),
    (lambda self, y, x: x + y, ["FusedConv3d"]),
    (lambda self, y, x: F.silu(x + self.norm(y)), ["FusedConv3d", "silu in place"]),
    (lambda self, y, x: F.gelu(x + y), ["FusedConv3d", "gelu"]),
]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("after", "expected"), PLAIN_ONES)
def test_residual_of_a_dense_convolution(
    after: Callable[..., Tensor], expected: list[str], grouped: bool
) -> None:
    settings = {"groups": 2} if grouped else {"padding": 0, "kernel_size": 1}
    layer = nn.Conv3d(CHANNELS, CHANNELS, **{"kernel_size": 3, "padding": 1, **settings})
    fused = check(Block(after, layer))
    assert kinds(fused) == expected and not fused.get_submodule("conv").overwrites


@pytest.mark.parametrize(
    ("after", "overwrites"),
    [
        (lambda self, x, z: self.act(self.other(F.silu(x)) + z), True),
        (lambda self, x, z: self.other(z * x) + self.norm(z), True),
        (lambda self, x, z: self.other(x) + z.sum() * z, True),
        (lambda self, x, z: self.other(z) + z, False),  # its own input
        (lambda self, x, z: (self.other(x) + z) * z, False),  # read later
        (lambda self, x, z: self.other(x * z[:, :1]) + z, False),  # others may hold a view
        (lambda self, x, z: self.other(z) + x, False),  # the model's input
        (lambda self, x, z: self.other(x) + z.flatten(1).view_as(z), False),
    ],
)
def test_a_residual_is_overwritten_where_nobody_wants_it(
    after: Callable[..., Tensor], overwrites: bool
) -> None:
    block = Block(lambda self, z, x: after(self, x, z), nn.Conv3d(CHANNELS, CHANNELS, 1))
    fused = check(block)
    layers = [m for m in fused.modules() if isinstance(m, FusedConv3d)]
    assert [layer.overwrites for layer in layers] == [overwrites]


def test_a_dense_convolution_step_by_step_where_onednn_is_not_asked() -> None:
    dense = nn.Conv3d(CHANNELS, CHANNELS, 3, padding="same")
    block = Block(lambda self, y, x: self.act(self.other(F.relu(y)) + F.silu(x) * 2), dense)
    fused, x = check(block), features()
    assert kinds(fused) == ["FusedConv3d", "silu", "mul", "FusedConv3d"]
    assert fused.get_submodule("other").overwrites
    expected = block(x)

    def same(found: Tensor, to: Tensor = expected) -> None:
        torch.testing.assert_close(found, to, rtol=1e-5, atol=1e-5)

    same(fused(x[0]), expected[0])
    assert fused(x[:0]).shape == (0, *x.shape[1:])
    with torch.backends.mkldnn.flags(enabled=False):
        same(fused(x))
    same(torch.func.vmap(fused)(x.unsqueeze(1)).squeeze(1))
    torch.testing.assert_close(input_gradient(fused, x), input_gradient(block, x))
    with FlopCounterMode(display=False) as counted:
        same(fused(features()))
    with FlopCounterMode(display=False) as theirs:
        block(features())
    assert counted.get_total_flops() == theirs.get_total_flops() > 0
    half = fuse(copy.deepcopy(block).bfloat16())
    assert half(features().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("after", "in_place"),
    [
        (lambda y, pooled: y * pooled.sigmoid(), True),
        (lambda y, pooled: torch.mul(y, pooled.sigmoid()), True),
        (lambda y, pooled: y.mul(F.silu(pooled)), True),
        (lambda y, pooled: pooled.sigmoid() * y, False),  # the smaller one comes first
        (lambda y, pooled: y.sigmoid() * pooled, False),
        (lambda y, pooled: y * pooled + y, False),  # read later
        (lambda y, pooled: y.flatten(2) * pooled.flatten(2), False),
    ],
)
def test_a_product_is_written_where_its_first_factor_is(
    after: Callable[..., Tensor], in_place: bool
) -> None:
    pool = nn.AdaptiveAvgPool3d(1)
    block = Block(lambda self, y, x: F.relu(after(z := self.norm(y), self.pool(z))))
    block.pool = pool
    fused, x = check(block), features()
    assert ("multiply_in_place" in kinds(fused)) == in_place
    torch.testing.assert_close(input_gradient(fused, x), input_gradient(block, x))


def test_a_product_that_its_first_factor_cannot_hold() -> None:
    a, b = torch.rand(2, 3, 1, 1, 1), torch.rand(2, 3, 4, 5, 6)
    kept = a.clone()
    assert torch.equal(multiply_in_place(a, b), kept * b) and torch.equal(a, kept)
    wide = multiply_in_place(a.bfloat16(), b[..., :1].float())
    assert wide.dtype == torch.float32 and multiply_in_place(2, 3) == 6
    assert multiply_in_place(b, a) is b


@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.SiLU(), nn.GELU()])
def test_activations_in_place_where_nobody_else_reads(act: nn.Module) -> None:
    def after(self: Any, y: Tensor, x: Tensor) -> Tensor:
        z = self.other(self.act(x))
        products = self.act(self.act(z) * 2) + self.act(z) * self.act(y)
        return products + self.act(self.norm(x)) + self.act(self.other(y))

    block = Block(after)
    block.act = act
    fused = check(block)
    if isinstance(act, nn.GELU):  # PyTorch's has no such form
        assert type(fused) is Block
    else:
        assert sum(kind.endswith(" in place") for kind in kinds(fused)) == 3


def test_features_of_one_sample_and_half_precision() -> None:
    model = Block(lambda self, y, x: self.act(self.norm(y) + x)).eval().bfloat16()
    fused = fuse(model, sample=features().bfloat16())
    assert fused(features().bfloat16()).dtype == torch.bfloat16


def test_under_autocast_the_dtypes_are_the_models() -> None:
    model = Block(lambda self, y, x: self.act(y + x)).eval()
    fused = check(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, found = model(features()), fused(features())
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
