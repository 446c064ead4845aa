"""fuse, whatever a model does around its layers."""

import copy
import io
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.fusing import CHANNELS, Block, check, depthwise, features, kinds, norm
from vmf_kernels import DepthwiseConv3d, explain, fuse


class Branching(nn.Module):
    """Its path depends on the features; it looks into its child, which is a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(depthwise(), norm(), nn.ReLU())
        self.width = self.body[0].out_channels

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        y = self.body(x)
        for layer in self.body:
            y = layer(y)
        return y * self.body[0].out_channels


def test_what_cannot_be_traced_keeps_its_class() -> None:
    fused = check(nn.Sequential(nn.Sequential(Branching(), depthwise(), norm()), nn.ReLU()))
    assert kinds(fused) == ["Branching", "FusedDepthwiseConv3d"]
    branching = fused.get_submodule("0.0")
    assert kinds(branching.fused_body) == ["FusedDepthwiseConv3d"]
    copied = copy.deepcopy(fused)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
        assert fused(features()).abs().max() > 0
        assert torch.equal(copied(features()), torch.zeros_like(features()))
    assert type(fuse(Branching())) is Branching


def test_shared_hooked_parametrized_and_statistics_of_the_batch() -> None:
    shared = depthwise()
    hooked = depthwise()
    hooked.register_forward_hook(lambda module, inputs, output: output + 1)
    weighed = parametrizations.weight_norm(depthwise())
    batch = nn.BatchNorm3d(CHANNELS, track_running_stats=False)
    layers = [*(shared, norm(), shared, norm()), *(hooked, norm()), *(weighed, norm())]
    model = nn.Sequential(*layers, depthwise(), batch, depthwise(), nn.ReLU())
    fused = check(model)
    assert kinds(fused)[:-1] == [
        *("AcceleratedConv3d", "BatchNorm3d", "AcceleratedConv3d", "BatchNorm3d"),
        *("AcceleratedConv3d", "BatchNorm3d", "ParametrizedConv3d", "BatchNorm3d"),
        *("AcceleratedConv3d", "BatchNorm3d"),
    ]


def test_hooks_around_what_is_fused_still_run() -> None:
    seen = []
    model = nn.Sequential(nn.Sequential(depthwise(), nn.ReLU()), nn.Sequential(depthwise(), norm()))
    model[0].register_forward_hook(lambda module, inputs, output: seen.append("inner"))
    model.register_forward_pre_hook(lambda module, inputs: seen.append("outer"))
    fused = check(model)
    seen.clear()
    fused(features())
    assert seen == ["outer", "inner"]


def test_a_forward_that_was_replaced() -> None:
    model = nn.Sequential(depthwise(), nn.ReLU())
    model.forward = lambda x: model[1](model[0](x)) * 2
    fused = check(model)
    assert type(fused) is nn.Sequential


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(depthwise(), norm())

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Any:
        y = self.body(x) * scale
        return {"y": y if mask is None else y * mask, "x": [x]}


def test_optional_arguments_keep_their_defaults() -> None:
    fused = fuse(Optional().eval(), sample=features())
    assert set(fused(features())) == {"x", "y"}
    with pytest.raises(AssertionError, match="mask"):
        fused(features(), torch.ones(1))


def test_nothing_to_fuse_keeps_the_class() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Conv3d(CHANNELS, 4, 1))
    assert type(fuse(model)) is nn.Sequential
    layer = fuse(depthwise())
    assert isinstance(layer, DepthwiseConv3d) and not layer.training


def test_it_tells_how_much(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vmf_kernels"):
        fuse(Block(lambda self, y, x: self.act(self.norm(y) + x)))
    assert "1 BatchNorms, 1 activations, 1 residuals; 0 layers write where they read" in caplog.text


class Deceiving(nn.Module):
    """Reads otherwise when it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(depthwise(), nn.ReLU())

    def forward(self, x: Any) -> Any:
        return self.body(x) if isinstance(x, Tensor) else self.body(x) + 1


def test_a_sample_finds_what_tracing_misread() -> None:
    with pytest.raises(RuntimeError, match="fuse: the outputs for the sample must not differ"):
        fuse(Deceiving(), sample=features())


def test_saved_exported_compiled_and_explained() -> None:
    model = Block(lambda self, y, x: self.act(self.norm(y) + x)).eval()
    fused = check(model)
    expected = fused(features())
    loaded = fuse(Block(lambda self, y, x: self.act(self.norm(y) + x)))
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(loaded(features()), fused(features()), rtol=0, atol=0)
    file = io.BytesIO()
    torch.save(fused.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(loaded(features()), expected, rtol=0, atol=0)
    exported = torch.export.export(fused, (features(),)).module()
    torch.testing.assert_close(exported(features()), expected)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features()), expected)
    (record,) = explain(fused, features())
    assert record.name == "conv" and record.swapped


def test_wrong_argument() -> None:
    with pytest.raises(TypeError, match="fuse: takes an"):
        fuse(3)  # type: ignore[arg-type]


def test_a_graph_that_is_planted_is_explained_and_what_it_replaces_is_not() -> None:
    inner = Block(lambda self, y, x: self.act(self.norm(y)))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = inner, depthwise()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.inner(x if x.sum() > 0 else -x))

    fused = check(Outer())
    assert sorted(r.name for r in explain(fused)) == ["fused_inner.conv", "last"]
    assert sorted(r.name for r in explain(fused, features())) == ["fused_inner.conv", "last"]
