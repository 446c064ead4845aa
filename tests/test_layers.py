"""DepthwiseConv3d: a true drop-in for nn.Conv3d with groups=in_channels."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from tests.conftest import Implementation
from tests.ops.layouts import DENSE, is_dense
from vmf_kernels import DepthwiseConv3d

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (3, 3, 3), "stride": (1, 2, 2), "padding": (1, 1, 1)},
    "dilated": {"kernel_size": (1, 3, 3), "dilation": (1, 2, 2), "padding": (0, 2, 2)},
    "same": {"kernel_size": (3, 2, 4), "padding": "same"},
    "valid": {"kernel_size": (3, 1, 1), "padding": "valid"},
    "no_bias": {"kernel_size": 3, "bias": False},
    "float64": {"kernel_size": 3, "dtype": torch.float64},
}


def pair(multiplier: int = 1, **settings: Any) -> tuple[DepthwiseConv3d, nn.Conv3d]:
    """Ours and PyTorch's, made under the same seed."""
    torch.manual_seed(3)
    ours = DepthwiseConv3d(4, 4 * multiplier, **settings)
    torch.manual_seed(3)
    return ours, nn.Conv3d(4, 4 * multiplier, groups=4, **settings)


@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize("name", SETTINGS)
def test_same_as_conv3d(name: str, multiplier: int) -> None:
    ours, theirs = pair(multiplier, **SETTINGS[name])
    assert isinstance(ours, nn.Conv3d)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), "same initialisation"
    assert repr(ours) == repr(theirs).replace("Conv3d", "DepthwiseConv3d")
    x = torch.randn(2, 4, 5, 7, 8, dtype=ours.weight.dtype)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x[0]), theirs(x[0]))


def test_state_dict_goes_both_ways() -> None:
    ours, _ = pair(kernel_size=3)
    _, theirs = pair(kernel_size=3)
    with torch.no_grad():
        theirs.weight += 1
        theirs.bias += 1
    assert not ours.load_state_dict(theirs.state_dict()).missing_keys
    assert torch.equal(ours.weight, theirs.weight)
    theirs.load_state_dict(ours.state_dict())


def test_causal_padding() -> None:
    ours = DepthwiseConv3d(4, 4, 3, padding=((2, 0), (1, 1), (1, 1)))
    x = torch.randn(2, 4, 5, 6, 7)
    expected = nn.functional.conv3d(
        nn.functional.pad(x, (1, 1, 1, 1, 2, 0)), ours.weight, ours.bias, groups=4
    )
    torch.testing.assert_close(ours(x), expected)
    later = x.clone()
    later[:, :, 3:] = 9
    assert torch.equal(ours(later)[:, :, :3], ours(x)[:, :, :3]), "no frame sees a later one"
    assert "padding=((2, 0), (1, 1), (1, 1))" in repr(ours)


@pytest.mark.parametrize("name", [*SETTINGS, "causal"])
def test_copies_and_pickles(name: str) -> None:
    causal = {"kernel_size": 3, "padding": ((2, 0), (1, 1), (1, 1))}
    ours = DepthwiseConv3d(4, 8, **SETTINGS.get(name, causal))
    x = torch.randn(1, 4, 5, 6, 7, dtype=ours.weight.dtype)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    copies = [
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(file, weights_only=False),
    ]
    for other in copies:
        assert repr(other) == repr(ours)
        assert torch.equal(other(x), ours(x))


def test_trains_like_conv3d(implementation: Implementation) -> None:
    ours, theirs = pair(kernel_size=3, padding=1, stride=(1, 2, 2), dtype=torch.float64)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, momentum=0.9) for m in (ours, theirs)]
    for _ in range(3):
        x = torch.randn(2, 4, 4, 6, 8, dtype=torch.float64)
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("layout", DENSE)
def test_moves_and_keeps_the_format(layout: str) -> None:
    ours = DepthwiseConv3d(4, 4, 3, padding=1).to(torch.bfloat16)
    ours = ours.to(memory_format=torch.channels_last_3d)  # weights in it change nothing
    output = ours(DENSE[layout](torch.randn(2, 4, 3, 5, 6, dtype=torch.bfloat16)))
    assert output.dtype == torch.bfloat16
    assert is_dense(output, layout)
    assert ours.to("meta")(torch.empty(2, 4, 3, 5, 6, dtype=torch.bfloat16, device="meta")).is_meta


def test_device_and_dtype_of_the_parameters() -> None:
    ours = DepthwiseConv3d(2, 2, 3, device="meta", dtype=torch.float16)
    assert (ours.weight.device.type, ours.bias.dtype) == ("meta", torch.float16)


def test_compiles_in_a_sequence() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(DepthwiseConv3d(4, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm3d(4)).eval()
    x = torch.randn(2, 4, 3, 5, 6)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((4, 6, 3), ValueError, r"out_channels must be a multiple of in_channels \(got .*=4, .*=6"),
        ((0, 0, 3), ValueError, r"out_channels must be a multiple of in_channels"),
        ((4, 0, 3), ValueError, r"out_channels must be a multiple of in_channels"),
        ((-1, 1, 3), ValueError, r"out_channels must be a multiple of in_channels"),
        ((4, 4, 0), ValueError, r"kernel_size must be at least 1 \(got 0\)"),
        ((4, 4, (3, -1, 3)), ValueError, r"kernel_size must be at least 1"),
        ((4, 4, 3, 0), ValueError, r"stride must be at least 1 \(got 0\)"),
        ((4, 4, 3, 1, -1), ValueError, r"padding must be at least 0 \(got -1\)"),
        ((4, 4, 3, 1, 0, 0), ValueError, r"dilation must be at least 1 \(got 0\)"),
        ((4, 4, 3, 2, "same"), ValueError, r"padding='same'"),
        ((4, 4, 3, 1, "full"), ValueError, r"padding"),
        ((4, 4, 3, 1.5), TypeError, r"stride must be made of ints \(got float\)"),
        ((4, 4, 3, 1, ((1, 1), (1, 1))), ValueError, r"padding in pairs must be three"),
    ],
    ids=str,
)
def test_wrong_settings(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DepthwiseConv3d(*arguments)


@pytest.mark.parametrize("argument", ["groups", "transposed"])
def test_what_conv3d_takes_and_a_depthwise_layer_does_not(argument: str) -> None:
    with pytest.raises(TypeError, match=argument):
        DepthwiseConv3d(4, 4, 3, **{argument: "x"})
