"""explain: which backend would run, per layer or call, and why no faster one."""

from types import ModuleType

import pytest
import torch
from torch import nn

import vmf_kernels
from tests.ops.samples import FUNCTIONS, SERVED
from vmf_kernels import DepthwiseConv3d, accelerate, depthwise_conv3d, explain, use_backend
from vmf_kernels.ops.depthwise_conv3d.gains import expected, kind

X, W = torch.ones(1, 2, 3, 4, 5), torch.ones(2, 1, 3, 3, 3)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 4, 3)
        self.ours = DepthwiseConv3d(4, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv3d(8, 8, 3, groups=8), nn.ReLU())
        self.causal = DepthwiseConv3d(8, 8, 3, padding=((2, 0), (1, 1), (1, 1)))


def test_model(extension: ModuleType) -> None:
    records = explain(Network())
    assert [r.name for r in records] == ["ours", "block.0", "causal"]
    assert [r.swapped for r in records] == [True, False, True]
    assert [r.backend for r in records] == ["cpu", "pytorch", "cpu"]
    assert [bool(r.reason) for r in records] == [False, True, False]


def test_prints_as_a_table() -> None:
    records = explain(Network())
    head, *rows = str(records).splitlines()
    assert head.split() == ["name", "swapped", "backend", "reason"]
    assert len(rows) == 3
    assert "accelerate(model) would swap it" in rows[1]
    assert head.index("backend") == rows[0].index(records[0].backend)
    assert repr(records) == str(records)


def test_model_without_depthwise_layers() -> None:
    assert explain(nn.Linear(2, 3)) == []
    assert str(explain(nn.Linear(2, 3))) == "no depthwise 3D convolution"


def test_call_says_what_runs(extension: ModuleType) -> None:
    (record,) = explain(depthwise_conv3d, X, W, padding=1)
    assert (record.name, record.swapped, record.backend, record.reason) == (
        *("depthwise_conv3d", True, "cpu", ""),
    )


def test_call_gives_the_reason() -> None:
    with use_backend("reference"):
        (record,) = explain(depthwise_conv3d, X, W, None, 1, 1)
    assert record.backend == "reference"
    assert "cpu: " in record.reason


def test_call_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmf_kernels._extension, "LOADED", False)
    monkeypatch.setattr(vmf_kernels._extension, "REASON", "the extension is not built")
    (record,) = explain(depthwise_conv3d, X, W, padding=1)
    assert record.backend == "reference"
    assert "cpu: the extension is not built" in record.reason


def test_says_what_select_does() -> None:
    calls = {
        "depthwise_conv3d": (X, W, None, 1, 1),
        "depthwise_conv_transpose3d": (X, W, None, 2, 1),
        "few_query_attention": (torch.ones(1, 2, 2), X),
        "few_key_attention": (X, torch.ones(1, 2, 2), torch.ones(1, 2, 2)),
        "dynamic_relu": (X, torch.ones(1, 2), torch.ones(1, 2)),
    }
    assert calls.keys() == FUNCTIONS.keys()
    for name, call in calls.items():
        (record,) = explain(getattr(vmf_kernels, name), *call)
        served = {p.values[1].backend for p in SERVED if p.values[0] == name}
        assert record.backend in served
        assert bool(record.reason) == (record.backend == "reference")


def test_the_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="depthwise_conv3d: weight must be"):
        explain(depthwise_conv3d, X, W[:, 0])
    with pytest.raises(TypeError, match="missing a required argument"):
        explain(depthwise_conv3d, X)
    with pytest.raises(TypeError, match=r"^explain: takes a module or one of depthwise_conv3d, "):
        explain(torch.relu, X)


def test_a_forced_backend_that_cannot_raises() -> None:
    with use_backend("triton"), pytest.raises(NotImplementedError, match="backend 'triton' cannot"):
        explain(depthwise_conv3d, X, W, padding=1)


def test_expected_gain_of_layers_whose_kind_was_measured(isa: ModuleType) -> None:
    model = accelerate(
        nn.Sequential(
            *(nn.Conv3d(4, 4, kernel, groups=4) for kernel in ((3, 3, 3), (3, 1, 1), (1, 5, 5))),
            nn.ConvTranspose3d(4, 4, 3, groups=4),
        )
    )
    x = torch.randn(1, 4, 6, 12, 12)
    for name in isa.supported_isas():
        isa.set_isa(name)
        gains = [r.gain for r in explain(model, x)]
        measured = [expected(name, False, layer.kernel_size, layer.stride) for layer in model]
        for gain, numbers in zip(gains[:3], measured[:3], strict=True):
            told = "" if numbers is None else f"{numbers[0]:.2g}x, {numbers[1]:.2g}x in training"
            assert gain == told and bool(gain) == (name != "baseline")
        assert gains[3] == ""
    assert not any(r.gain for r in explain(model.double(), x.double()))
    assert "expected gain" not in str(explain(model))


def test_kinds_of_layers() -> None:
    kinds = {
        ((3, 1, 1), (1, 1, 1)): "along T",
        ((1, 5, 5), (1, 2, 2)): "a side of 5 or more",
        ((3, 3, 3), (1, 2, 2)): "strided",
        ((1, 3, 3), (1, 1, 1)): "1 or 3 a side",
        ((3, 3, 3), (1, 1, 1)): "3x3x3",
    }
    assert {key: kind(*key) for key in kinds} == kinds
