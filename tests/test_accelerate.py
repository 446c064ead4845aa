"""accelerate, restore, and explain of a whole model: the same model before, between and after."""

import copy
import io
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qat_qconfig
from torch.nn.utils import parametrizations, prune

from vmf_kernels import DepthwiseConv3d, _extension, accelerate, explain, restore
from vmf_kernels.layers import AcceleratedConv3d


class Overriding(nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class Derived(nn.Conv3d):
    pass


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(3, 8, 1),
        nn.Conv3d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm3d(8),
        nn.Sequential(nn.ReLU(), nn.Conv3d(8, 16, (3, 5, 5), (1, 2, 2), (1, 2, 2), groups=8)),
        nn.Conv3d(16, 4, 1),
    )


def clip() -> Tensor:
    return torch.randn(2, 3, 5, 9, 8, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    output = model(x)
    output.square().sum().backward()
    found = [output.detach(), x.grad, *(p.grad for p in model.parameters())]
    model.zero_grad()
    return found


def test_same_numbers_and_same_objects() -> None:
    model = network()
    before = gradients(model, clip())
    names = [name for name, _ in model.named_modules()]
    modules, parameters = list(model.modules()), list(model.parameters())
    keys = list(model.state_dict())
    assert accelerate(model) is model
    assert [type(model[1]), type(model[3][1])] == [AcceleratedConv3d] * 2
    assert type(model[0]) is type(model[4]) is nn.Conv3d
    torch.testing.assert_close(gradients(model, clip()), before, rtol=1e-4, atol=1e-4)
    assert [name for name, _ in model.named_modules()] == names
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    accelerate(model)
    assert type(model[1]) is AcceleratedConv3d
    assert restore(model) is model
    assert type(model[1]) is type(model[3][1]) is nn.Conv3d
    torch.testing.assert_close(gradients(model, clip()), before, rtol=0, atol=0)


def test_a_model_that_is_one_layer() -> None:
    layer = nn.Conv3d(4, 4, 3, groups=4)
    assert type(accelerate(layer)) is AcceleratedConv3d
    assert type(restore(layer)) is nn.Conv3d


@pytest.mark.parametrize("mode", ["zeros", "replicate", "reflect", "circular"])
@pytest.mark.parametrize("padding", [1, (2, 1, 0), "same", "valid"])
def test_every_padding(mode: str, padding: Any) -> None:
    torch.manual_seed(2)
    layer = nn.Conv3d(4, 8, (3, 3, 2), padding=padding, groups=4, padding_mode=mode)
    x = torch.randn(2, 4, 5, 6, 7)
    expected, alone = layer(x), layer(x[0])
    accelerate(layer)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x[0]), alone)
    if mode == "zeros" or padding != "valid":
        made = DepthwiseConv3d(4, 8, (3, 3, 2), padding=padding, padding_mode=mode)
        made.load_state_dict(layer.state_dict())
        torch.testing.assert_close(made(x), expected)


def test_pairs_are_padded_with_zeros() -> None:
    with pytest.raises(ValueError, match=r"pairs are padded with zeros \(got padding_mode='reflec"):
        DepthwiseConv3d(4, 4, 3, padding=((2, 0), (1, 1), (1, 1)), padding_mode="reflect")


def _replaced() -> nn.Module:
    layer = nn.Conv3d(4, 4, 3, groups=4)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "overrides": (lambda: Overriding(4, 4, 3, groups=4), "Overriding overrides forward"),
    "derived": (lambda: Derived(4, 4, 3, groups=4), "Derived is derived from nn.Conv3d"),
    "replaced": (_replaced, "its forward was replaced"),
    "parametrized": (
        lambda: parametrizations.weight_norm(nn.Conv3d(4, 4, 3, groups=4)),
        "its parameters are parametrized",
    ),
    "one": (lambda: nn.Conv3d(4, 4, 1, groups=4), "a 1x1x1 kernel"),
    "complex": (
        lambda: nn.Conv3d(4, 4, 3, groups=4, dtype=torch.complex64),
        "no kernel for torch.complex64",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_alone_with_the_reason(name: str) -> None:
    make, reason = LEFT[name]
    model = nn.Sequential(make())
    kind = type(model[0])
    (record,) = explain(accelerate(model))
    assert type(model[0]) is kind
    assert (record.name, record.swapped, record.backend) == ("0", False, "pytorch")
    assert reason in record.reason


def test_a_lazy_layer_is_left_until_it_has_run() -> None:
    model = nn.Sequential(nn.LazyConv3d(4, 3, groups=4))
    assert type(accelerate(model)[0]) is nn.LazyConv3d
    model(torch.randn(1, 4, 3, 3, 3))
    assert type(accelerate(model)[0]) is AcceleratedConv3d


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_quantized_layers_are_left_with_the_reason() -> None:
    fake = torch.ao.nn.qat.Conv3d(4, 4, 3, groups=4, qconfig=get_default_qat_qconfig("x86"))
    model = nn.Sequential(fake, torch.ao.nn.quantized.Conv3d(4, 4, 3, groups=4))
    kinds = [type(layer) for layer in model]
    first, second = explain(accelerate(model))
    assert [type(layer) for layer in model] == kinds
    assert first.reason == "its class Conv3d overrides forward"
    assert second.reason.startswith("its class torch.ao.nn.quantized.")
    assert second.reason.endswith("Conv3d is no nn.Conv3d")


def test_grouped_and_full_convolutions_are_no_concern_of_ours() -> None:
    model = nn.Sequential(nn.Conv3d(4, 4, 3, groups=2), nn.Conv3d(1, 4, 3))
    assert explain(accelerate(model)) == []
    assert all(type(layer) is nn.Conv3d for layer in model)


def test_hooks_pruning_shared_and_frozen_layers() -> None:
    shared = nn.Conv3d(4, 4, 3, padding=1, groups=4)
    prune.l1_unstructured(shared, "weight", 0.5)
    shared.bias.requires_grad_(False)
    seen: list[torch.Size] = []
    shared.register_forward_hook(lambda layer, inputs, output: seen.append(output.shape))
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    x = torch.randn(1, 4, 5, 6, 7)
    expected = model(x)
    accelerate(model)
    assert model[0] is model[2] and type(model[0]) is AcceleratedConv3d
    assert not model.training and not shared.bias.requires_grad
    torch.testing.assert_close(model(x), expected)
    assert len(seen) == 4


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_copies_stay_accelerated(how: str) -> None:
    model = accelerate(network())
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert type(twin[1]) is AcceleratedConv3d
    torch.testing.assert_close(twin(clip()), model(clip()))


def test_what_was_parametrized_since_is_named_by_restore() -> None:
    model = accelerate(network())
    parametrizations.weight_norm(model[1])
    with pytest.warns(UserWarning, match=r"left alone: 1 \(ParametrizedAcceleratedConv3d\)"):
        restore(model)
    assert type(model[3][1]) is nn.Conv3d


def test_memory_format() -> None:
    model = network()
    parameters = list(model.parameters())
    accelerate(model, torch.channels_last_3d)
    assert model[0].weight.stride() == (3, 1, 3, 3, 3)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_auto_chooses_a_format_tells_it_and_leaves_no_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = network()
    model[3].eval()
    statistics = copy.deepcopy(model.state_dict())
    with caplog.at_level(logging.INFO, "vmf_kernels"):
        accelerate(model, "auto", clip())
    assert "for the whole model (inference of the sample: torch.contiguous_format" in caplog.text
    assert [model.training, model[2].training, model[3].training] == [True, True, False]
    torch.testing.assert_close(model.state_dict(), statistics, rtol=0, atol=0)


def test_wrong_arguments() -> None:
    for function in (accelerate, restore):
        with pytest.raises(TypeError, match=r"takes an nn.Module \(got Tensor\)"):
            function(torch.ones(1))
    with pytest.raises(ValueError, match=r"go together \(got memory_format='auto' and no sample\)"):
        accelerate(network(), "auto")
    with pytest.raises(ValueError, match=r"memory_format must be .* \(got 'channels_last'\)"):
        accelerate(network(), "channels_last")


def test_explain_a_model_with_a_sample() -> None:
    model = network()
    records = explain(model)
    assert [r.reason for r in records] == ["accelerate(model) would swap it"] * 2
    accelerate(model)
    statistics = copy.deepcopy(model.state_dict())
    records = explain(model, clip())
    assert [(r.name, r.shape, r.swapped) for r in records] == [
        ("1", "2x8x5x9x8", True),
        ("3.1", "2x8x5x9x8", True),
    ]
    assert "2x8x5x9x8" in str(records) and str(records).splitlines()[0].split()[:4] == [
        *("name", "shape", "swapped", "backend")
    ]
    torch.testing.assert_close(model.state_dict(), statistics, rtol=0, atol=0)
    assert model.training and not model[1]._forward_pre_hooks


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_break(dynamic: bool) -> None:
    model = accelerate(network()).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    torch.testing.assert_close(compiled(clip()), model(clip()))


@pytest.mark.parametrize("channels", [1, 3, 12])
def test_an_input_of_other_channels_is_refused_as_by_pytorch(channels: int) -> None:
    """The op would take it: for fewer channels, each with several filters."""
    for settings in ({"padding": 1}, {"stride": 2}, {"padding": 1, "padding_mode": "replicate"}):
        layer = nn.Conv3d(24, 24, 3, groups=24, **settings)  # type: ignore[arg-type]
        for shape in ((2, channels, 4, 4, 4), (channels, 24, 4, 4)):
            with pytest.raises(RuntimeError, match="channels"):
                layer(torch.zeros(shape))
            accelerate(layer)
            with pytest.raises(ValueError, match=r"AcceleratedConv3d: input must have 24 channels"):
                layer(torch.zeros(shape))
            restore(layer)


def test_a_format_is_for_parameters_of_five_dimensions() -> None:
    model = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1, groups=4), nn.Conv3d(4, 8, 2))
    model.register_parameter("scale", nn.Parameter(torch.randn(4, 2, 3, 5)))
    model.append(nn.Identity())
    strides = model.scale.stride()
    accelerate(model, torch.channels_last_3d)
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not model[1].weight.is_contiguous() and model.scale.stride() == strides
    accelerate(model, "auto", torch.randn(1, 4, 3, 5, 5))
    accelerate(model, torch.contiguous_format)
    assert model[1].weight.is_contiguous()


def test_a_sample_without_auto_is_refused() -> None:
    with pytest.raises(ValueError, match="a sample and memory_format='auto'"):
        accelerate(network(), sample=clip())


def test_what_makes_nothing_faster_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    accelerate(nn.Linear(2, 2))
    assert "nothing to do" in caplog.text
    caplog.clear()
    accelerate(network())
    assert not caplog.records
    monkeypatch.setattr(_extension, "LOADED", False)
    monkeypatch.setattr(_extension, "REASON", "it is not built")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    accelerate(network())
    assert "plain PyTorch: it is not built" in caplog.text
