"""The small parts that all blocks share.

Features are (B, C, T, H, W) in channels_last_3d from the stem on, so that one position's channels
lie side by side: a 1x1x1 convolution is then a plain matrix product and needs no copy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vmf_kernels


def channel_shuffle(values: Tensor, groups: int, dim: int) -> Tensor:
    """Views dimension `dim` as (groups, n / groups) and swaps the two.

    Entry i * groups + j of the result is entry j * (n / groups) + i of `values`. Shuffling with
    n / groups groups undoes it.
    """
    split = values.unflatten(dim, (groups, values.shape[dim] // groups))
    return split.transpose(dim, dim + 1).flatten(dim, dim + 1)


class PointwiseConv3d(nn.Conv3d):
    """A 1x1x1 convolution without bias, run as one matrix product over all positions.

    Its parameter has `nn.Conv3d`'s name and shape, (C', C / groups, 1, 1, 1).

    With groups, the 26m network shuffles channels next to the convolution. Shuffling the features
    would copy them; here the small matrix is shuffled instead, and its zeros are multiplied too:
    at these widths memory binds, not arithmetic.

    Args:
        in_channels: C.
        out_channels: C'.
        groups: Divides both.
        shuffle_in: Groups of a channel shuffle of the input, 1 for none.
        shuffle_out: Groups of a channel shuffle of the output, 1 for none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int = 1,
        shuffle_in: int = 1,
        shuffle_out: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, 1, groups=groups, bias=False)
        self.shuffle_in = shuffle_in
        self.shuffle_out = shuffle_out

    def matrix(self) -> Tensor:
        """The whole step, shuffles included, as a (C', C) matrix."""
        weight = self.weight.flatten(1)
        if self.groups == 1:
            return weight
        weight = torch.block_diag(*weight.chunk(self.groups))
        # Shuffling the input is taking the columns in the order that undoes the shuffle.
        weight = channel_shuffle(weight, self.in_channels // self.shuffle_in, dim=1)
        return channel_shuffle(weight, self.shuffle_out, dim=0)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T, H, W), both channels_last_3d."""
        positions = features.movedim(1, -1)
        rows = F.linear(positions.flatten(0, 3), self.matrix())
        return rows.view(*positions.shape[:-1], self.out_channels).movedim(-1, 1)


class ReLU(nn.Module):
    """`max(0, x)`, in place; takes a token so that it can stand where `DynamicReLU` does."""

    def forward(self, features: Tensor, token: Tensor | None = None) -> Tensor:
        return F.relu_(features)


class ReLU6(nn.Module):
    """`min(max(0, x), 6)`; takes a token so that it can stand where `DynamicReLU` does."""

    def forward(self, features: Tensor, token: Tensor | None = None) -> Tensor:
        # In place where it saves memory: under autograd PyTorch would first copy its input.
        return F.relu6(features, inplace=not features.requires_grad)


class DynamicReLU(nn.Module):
    """`max(a1 x, a2 x)` with slopes per clip and channel that token 0 sets (arXiv 2108.05895, 3.2).

    `theta = hsig(L2(ReLU(L1(z0))))`, halves theta1 and theta2; `a1 = 2 theta1`,
    `a2 = 2 theta2 - 1`. With small L2 this is nearly a ReLU.

    Args:
        channels: C.
        token_dim: d, a multiple of 4.
    """

    def __init__(self, channels: int, token_dim: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(token_dim, token_dim // 4)
        self.slopes = nn.Linear(token_dim // 4, 2 * channels)

    def forward(self, features: Tensor, token: Tensor) -> Tensor:
        """`features` (B, C, T, H, W) and `token` (B, d) to (B, C, T, H, W)."""
        theta = F.hardsigmoid(self.slopes(F.relu(self.squeeze(token))))
        theta1, theta2 = (2 * theta).chunk(2, dim=-1)
        return vmf_kernels.dynamic_relu(features, theta1, theta2 - 1)


def activation(channels: int, token_dim: int) -> nn.Module:
    """The activation inside a Mobile block; plain where there are no tokens (`token_dim` 0)."""
    return DynamicReLU(channels, token_dim) if token_dim else ReLU()


class DepthwiseStage(nn.Module):
    """[norm, activation,] depthwise convolution, norm, activation: the middle of every block.

    Everything in a block that is bound by memory stands in here and nothing else does, so that one
    faster module can take its place.

    Args:
        in_channels: C.
        out_channels: C', a multiple of C; output channel j reads input channel j // (C' / C).
        kernel_size_t: kT, odd; the kernel is kT x 3 x 3, padded to keep T.
        stride: Of H and W; T keeps its length.
        act_out: Called as `act_out(features, token)`.
        act_in: The activation before the convolution, with a norm before it; None leaves both out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size_t: int,
        stride: int,
        act_out: nn.Module,
        act_in: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm_in = nn.BatchNorm3d(in_channels) if act_in is not None else None
        self.act_in = act_in
        self.depthwise = vmf_kernels.DepthwiseConv3d(
            in_channels,
            out_channels,
            (kernel_size_t, 3, 3),
            stride=(1, stride, stride),
            padding=(kernel_size_t // 2, 1, 1),
            bias=False,
        )
        self.norm_out = nn.BatchNorm3d(out_channels)
        self.act_out = act_out

    def forward(self, features: Tensor, token: Tensor | None) -> Tensor:
        """`features` (B, C, T, H, W) and token 0 (B, d) to (B, C', T, H', W')."""
        if self.norm_in is not None and self.act_in is not None:
            features = self.act_in(self.norm_in(features), token)
        features = self.norm_out(self.depthwise(features))
        return self.act_out(features, token)


class DropPath(nn.Module):
    """In training, drops a residual branch for whole clips and scales the others up.

    It is applied to anything (B, ...) that the branch is linear in.

    Args:
        rate: Probability of dropping, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        mask = branch.new_empty(branch.shape[0], *[1] * (branch.ndim - 1)).bernoulli_(keep)
        return branch * mask.div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"
