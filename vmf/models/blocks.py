"""The Mobile blocks, and one whole block of the network with its bridges (arXiv 2108.05895, 3).

In the video form (ours) each depthwise 3x3 is kT x 3 x 3 and strides fall on H and W only.
"""

from __future__ import annotations

from torch import Tensor, nn

from vmf.models.bridges import Former, FormerToMobile, MobileToFormer
from vmf.models.config import SECOND_EXPANSION, Block, Config
from vmf.models.layers import DepthwiseStage, PointwiseConv3d, ReLU6, activation


class LiteMobile(nn.Module):
    """Depthwise, norm, ReLU6; pointwise, norm; plus the input where the shape stays. No tokens."""

    def __init__(self, channels: int, block: Block, config: Config) -> None:
        super().__init__()
        hidden = block.expansion * channels
        self.stage = DepthwiseStage(channels, hidden, config.kernel_size_t, block.stride, ReLU6())
        self.project = PointwiseConv3d(
            hidden, block.channels, config.groups, shuffle_in=channels if config.groups > 1 else 1
        )
        self.norm = nn.BatchNorm3d(block.channels)
        self.skip = block.stride == 1 and block.channels == channels

    def forward(self, features: Tensor, token: Tensor | None) -> Tensor:
        """X (B, C, T, H, W) to Y (B, C', T, H / stride, W / stride); the token is not used."""
        output = self.norm(self.project(self.stage(features, None)))
        return output.add_(features) if self.skip else output


class Mobile(nn.Module):
    """Pointwise to e C; norm, activation, depthwise, norm, activation; pointwise, norm; plus X."""

    def __init__(self, channels: int, block: Block, config: Config) -> None:
        super().__init__()
        hidden = block.expansion * channels
        token_dim = config.token_dim if config.num_tokens else 0
        groups = config.groups
        self.expand = PointwiseConv3d(channels, hidden, groups, shuffle_out=groups)
        self.stage = DepthwiseStage(
            hidden,
            hidden,
            config.kernel_size_t,
            stride=1,
            act_in=activation(hidden, token_dim),
            act_out=activation(hidden, token_dim),
        )
        self.project = PointwiseConv3d(hidden, block.channels, groups, shuffle_out=groups)
        self.norm = nn.BatchNorm3d(block.channels)
        self.skip = block.channels == channels

    def forward(self, features: Tensor, token: Tensor | None) -> Tensor:
        """X (B, C, T, H, W) and token 0 (B, d), None without tokens, to Y (B, C', T, H, W)."""
        output = self.norm(self.project(self.stage(self.expand(features), token)))
        return output.add_(features) if self.skip else output


class DownMobile(nn.Module):
    """Halves H and W: depthwise stride 2 to e1 C, pointwise to U; depthwise, pointwise; plus U."""

    def __init__(self, channels: int, block: Block, config: Config) -> None:
        super().__init__()
        width = block.channels
        first, second = block.expansion * channels, SECOND_EXPANSION * width
        token_dim = config.token_dim if config.num_tokens else 0
        groups = config.groups
        self.stage1 = DepthwiseStage(
            channels,
            first,
            config.kernel_size_t,
            block.stride,
            act_out=activation(first, token_dim),
        )
        self.project1 = PointwiseConv3d(
            first, width, groups, shuffle_in=channels if groups > 1 else 1
        )
        self.norm1 = nn.BatchNorm3d(width)
        self.stage2 = DepthwiseStage(
            width, second, config.kernel_size_t, stride=1, act_out=activation(second, token_dim)
        )
        self.project2 = PointwiseConv3d(
            second, width, groups, shuffle_in=width if groups > 1 else 1
        )
        self.norm2 = nn.BatchNorm3d(width)

    def forward(self, features: Tensor, token: Tensor | None) -> Tensor:
        """X (B, C, T, H, W) and token 0 (B, d), None without tokens, to Y (B, C', T, H/2, W/2)."""
        reduced = self.norm1(self.project1(self.stage1(features, token)))
        return self.norm2(self.project2(self.stage2(reduced, token))).add_(reduced)


_MOBILE = {"L": LiteMobile, "M": Mobile, "D": DownMobile}


class MobileFormerBlock(nn.Module):
    """One block: tokens read the input, think, drive the Mobile part, and write to its output.

    1. `Z <- MobileToFormer(X, Z)`, 2. `Z <- Former(Z)`, 3. `Y = Mobile(X, z0)`,
    4. `Y <- FormerToMobile(Y, Z)`. Lite blocks and networks without tokens have step 3 alone.

    Args:
        channels: C of the input.
        block: What to build.
        config: The network it belongs to.
        drop_path: Drop-path rate of the three token branches.
    """

    def __init__(self, channels: int, block: Block, config: Config, drop_path: float) -> None:
        super().__init__()
        self.has_tokens = bool(config.num_tokens) and block.kind != "L"
        if self.has_tokens:
            self.to_tokens = MobileToFormer(channels, config.token_dim, drop_path)
            self.former = Former(config.token_dim, drop_path)
        self.mobile = _MOBILE[block.kind](channels, block, config)
        if self.has_tokens:
            self.from_tokens = FormerToMobile(block.channels, config.token_dim, drop_path)

    def forward(self, features: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """X (B, C, T, H, W) and Z (B, M, d), None without tokens, to the new (Y, Z)."""
        if not self.has_tokens:
            return self.mobile(features, None), tokens
        tokens = self.former(self.to_tokens(features, tokens))
        output = self.mobile(features, tokens[:, 0])
        return self.from_tokens(output, tokens), tokens
