"""The networks of the suite `model`, and the ways to run each of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType

import torch
from torch import Tensor, nn

import vmf
from bench.cases import Case, Triple
from bench.comparison import OURS, Key
from bench.op import CHANNELS_LAST, CONTIGUOUS
from bench.x3d import CLIP, X3D
from vmf.models.layers import PointwiseConv3d
from vmf.models.network import Stem
from vmf_kernels import DepthwiseConv3d

CLASSES = 400
QUICK_BATCH = 2


@dataclass(frozen=True)
class ModelCase(Case):
    """A network on clips of (T, H, W)."""

    size: Triple

    @property
    def elements(self) -> int:
        return 3 * math.prod(self.size)

    @property
    def label(self) -> str:
        return "x".join(map(str, (self.batch, 3, *self.size)))


CASES = {
    "cpu": (
        ModelCase("vmf_151m", 4, 1, (8, 112, 112)),
        ModelCase("vmf_1g", 4, 1, (8, 112, 112)),
        ModelCase("x3d_s", 4, 1, CLIP),
    ),
    "cuda": (
        ModelCase("vmf_151m", 64, 1, (8, 112, 112)),
        ModelCase("vmf_1g", 32, 1, (8, 224, 224)),
        ModelCase("x3d_s", 32, 1, CLIP),
    ),
}


@dataclass(frozen=True)
class Way:
    """One way to run the network.

    Attributes:
        backend: for `use_backend`.
        layout: of the clips and features.
        change: done to the network first.
        compiled: through Inductor; only with `--peers all`.
    """

    backend: str
    layout: str
    change: Callable[[nn.Module], None] = lambda network: None
    compiled: bool = False


def create(name: str) -> nn.Module:
    """A network by name, with random parameters."""
    return X3D(CLASSES) if name == "x3d_s" else vmf.create_model(name, num_classes=CLASSES)


def ways(name: str) -> dict[Key, Way]:
    """Who runs the network `name`, by name and layout."""
    if name == "x3d_s":
        ours, plain = replace_depthwise, _unchanged
    else:
        ours, plain = _unchanged, _plain_convolutions
    both = {CHANNELS_LAST: _unchanged, CONTIGUOUS: plain}

    def ours_in(layout: str) -> Callable[[nn.Module], None]:
        def change(network: nn.Module) -> None:
            both[layout](network)
            ours(network)

        return change

    found = {(OURS, layout): Way("auto", layout, ours_in(layout)) for layout in both}
    found |= {("eager", layout): Way("reference", layout, both[layout]) for layout in both}
    # Compiling takes minutes, and Inductor lays out what lies between convolutions as it likes.
    layout = CHANNELS_LAST
    found["inductor", layout] = Way("reference", layout, both[layout], compiled=True)
    return found


def replace_depthwise(network: nn.Module) -> None:
    """Every depthwise `nn.Conv3d` becomes ours, with the same parameters."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Conv3d or not 1 < child.groups == child.in_channels:
                continue
            ours = DepthwiseConv3d(
                child.in_channels,
                child.out_channels,
                child.kernel_size,  # type: ignore[arg-type]
                child.stride,  # type: ignore[arg-type]
                child.padding,
                child.dilation,  # type: ignore[arg-type]
                child.bias is not None,
                device="meta",
            )
            ours.weight, ours.bias = child.weight, child.bias
            setattr(parent, name, ours)


def _unchanged(network: nn.Module) -> None:
    pass


def _plain_convolutions(network: nn.Module) -> None:
    """The network as it is usually written: features stay contiguous, 1x1x1 is an nn.Conv3d."""
    for module in network.modules():
        if isinstance(module, PointwiseConv3d):
            if module.groups > 1:
                raise NotImplementedError("a network with channel shuffles has no plain form here")
            module.forward = MethodType(nn.Conv3d.forward, module)  # type: ignore[method-assign]
        elif isinstance(module, Stem):
            module.forward = MethodType(_plain_stem, module)  # type: ignore[method-assign]


def _plain_stem(stem: Stem, clip: Tensor) -> Tensor:
    return stem.act(stem.norm(stem.conv(clip)))


def clips(case: ModelCase, device: str) -> Tensor:
    """Random ones, contiguous."""
    return torch.randn(case.batch, 3, *case.size).to(device)
