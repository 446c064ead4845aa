"""A small network of the layers that `accelerate` swaps, and the same one after it."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from vmf_kernels import accelerate


def plain(seed: int = 0) -> nn.Sequential:
    """(N, 3, T, H, W) clips to (N, 5) logits, in PyTorch's own layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv3d(3, 8, 1, bias=False), nn.BatchNorm3d(8), nn.ReLU()),
        *(nn.Conv3d(8, 8, 3, (1, 2, 2), 1, groups=8, bias=False), nn.BatchNorm3d(8), nn.SiLU()),
        *(nn.ConvTranspose3d(8, 8, 3, 2, 1, groups=8), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


def pair() -> tuple[nn.Sequential, nn.Sequential]:
    """PyTorch's, and an accelerated copy."""
    theirs = plain()
    return theirs, accelerate(copy.deepcopy(theirs))


def clips(number: int = 4, frames: int = 4, size: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(number, 3, frames, size, size, generator=torch.Generator().manual_seed(seed))


def labels(number: int = 4) -> Tensor:
    return torch.arange(number) % 5


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), labels(len(x)))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Of a loss, by the names of the parameters."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def close(a: Any, b: Any, tolerance: float = 1e-4) -> None:
    """Raises unless numbers agree."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
