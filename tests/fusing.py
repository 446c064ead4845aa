"""Models to fuse, and the check that a fused one computes the same."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from vmf_kernels import fuse
from vmf_kernels.layers import FusedConv3d, FusedDepthwiseConv3d

CHANNELS = 8


def depthwise(**settings: Any) -> nn.Conv3d:
    return nn.Conv3d(CHANNELS, CHANNELS, 3, **{"padding": 1, "groups": CHANNELS, **settings})


def norm() -> nn.BatchNorm3d:
    """One whose statistics and scales are not those of a new one."""
    layer = nn.BatchNorm3d(CHANNELS)
    for values, low in ((layer.running_var, 0.5), (layer.running_mean, -1.0)):
        assert values is not None
        values.uniform_(low, low + 1)
    nn.init.uniform_(layer.weight, -1, 1)
    nn.init.uniform_(layer.bias)
    return layer


class Block(nn.Module):
    """A convolution, and what `after(self, convolved, features)` does with it."""

    def __init__(self, after: Callable[..., Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = depthwise(bias=False) if layer is None else layer
        self.norm, self.act, self.other = (
            norm(),
            nn.ReLU(inplace=True),
            nn.Conv3d(CHANNELS, CHANNELS, 1),
        )
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self, self.conv(x), x)


def features(channels: int = CHANNELS) -> Tensor:
    return torch.randn(2, channels, 4, 6, 5, generator=torch.Generator().manual_seed(1))


def check(model: nn.Module, x: Tensor | None = None) -> nn.Module:
    """The fused model, whose outputs are the model's own."""
    x = features() if x is None else x
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(x.clone())
        fused = fuse(model, sample=x.clone())
        found = fused(x.clone())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not fused.training and not any(p.requires_grad for p in fused.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not any(isinstance(m, FusedConv3d | FusedDepthwiseConv3d) for m in model.modules())
    return fused


def input_gradient(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(model(leaf).square().sum(), leaf)[0]


def kinds(model: nn.Module) -> list[str]:
    """The classes of the layers that the graph of a fused model runs, in order."""
    assert isinstance(model, fx.GraphModule)
    modules = dict(model.named_modules())
    called = [node for node in model.graph.nodes if node.op.startswith("call")]
    return [
        type(modules[str(n.target)]).__name__
        if n.op == "call_module"
        else getattr(n.target, "__name__", n.target) + " in place" * n.kwargs.get("inplace", False)
        for n in called
    ]
