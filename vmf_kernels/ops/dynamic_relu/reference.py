"""The definition of correct: plain PyTorch, any device, any floating dtype."""

import torch
from torch import Tensor

from vmf_kernels.layout import is_channels_last, to_layout, widen


def dynamic_relu(features: Tensor, a1: Tensor, a2: Tensor) -> Tensor:
    """`max(a1 x, a2 x)` per sample and channel."""
    x = widen(features)
    output = torch.maximum(_spread(a1, x) * x, _spread(a2, x) * x)
    return to_layout(output.to(features.dtype), is_channels_last(features))


def dynamic_relu_backward(
    grad_output: Tensor, features: Tensor, a1: Tensor, a2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the features, a1 and a2. Where both branches tie, each gets half."""
    x, g = widen(features), widen(grad_output)
    s1, s2 = _spread(a1, x), _spread(a2, x)
    share = torch.sign(s1 * x - s2 * x).add(1).mul(0.5)  # of the first branch: 0, 1/2 or 1
    g1, g2 = g * share, g * (1 - share)
    grad_features = (g1 * s1 + g2 * s2).to(features.dtype)
    return (
        to_layout(grad_features, is_channels_last(features)),
        _gather(g1 * x).to(a1.dtype),
        _gather(g2 * x).to(a2.dtype),
    )


def _spread(a: Tensor, x: Tensor) -> Tensor:
    """(B, C) as (B, C, 1, ...), one 1 for each spatial dimension of x."""
    return widen(a).reshape(*a.shape, *[1] * (x.dim() - 2))


def _gather(x: Tensor) -> Tensor:
    """Sums (B, C, *spatial) over its spatial dimensions, of which there may be none."""
    return x.unsqueeze(-1).flatten(2).sum(2)
