"""X3D-S (arXiv 2004.04730) in plain PyTorch layers: a network that people run, not one of ours.

Layer by layer as published: a stem that is convolved in space, then in time; four stages of
bottlenecks whose depthwise 3x3x3 convolution is 2.25 times as wide as the block, with
squeeze-and-excitation in every second block and swish behind it. 13 frames of 160x160.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLIP = (13, 160, 160)
STEM = 24
STAGES = ((24, 3), (48, 5), (96, 11), (192, 7))  # channels, blocks
EXPANSION = 2.25
SQUEEZE = 1 / 16
HEAD = 2048
FIRST_SCALE = 0.2


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch norm."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int, int], **options: int):
        stride = options.pop("stride", 1)
        convolution = nn.Conv3d(
            channels,
            out,
            kernel,
            stride=(1, stride, stride),
            padding=(kernel[0] // 2, kernel[1] // 2, kernel[2] // 2),
            bias=False,
            **options,  # type: ignore[arg-type]
        )
        super().__init__(convolution, nn.BatchNorm3d(out))


class SqueezeExcite(nn.Module):
    """Scales each channel by what two 1x1x1 convolutions make of the channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = squeezed(channels)
        self.reduce = nn.Conv3d(channels, width, 1)
        self.expand = nn.Conv3d(width, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same."""
        means = features.mean((2, 3, 4), keepdim=True)
        return features * torch.sigmoid(self.expand(F.relu(self.reduce(means))))


class Bottleneck(nn.Module):
    """1x1x1 to the inner width, depthwise 3x3x3, 1x1x1 back, plus the input.

    Args:
        channels: of the input.
        out: of the output.
        stride: over H and W.
        squeeze: whether it has squeeze-and-excitation.
    """

    def __init__(self, channels: int, out: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        inner = int(EXPANSION * out)
        self.widen = ConvNorm(channels, inner, (1, 1, 1))
        self.depthwise = ConvNorm(inner, inner, (3, 3, 3), stride=stride, groups=inner)
        self.squeeze = SqueezeExcite(inner) if squeeze else nn.Identity()
        self.narrow = ConvNorm(inner, out, (1, 1, 1))
        # Near zero as in training recipes, so that gradients do not explode over 26 blocks, which
        # would make large differences of roundings; not zero, so that every layer has gradients.
        self.narrow[1].weight.data.fill_(FIRST_SCALE)  # type: ignore[operator]
        self.shortcut: nn.Module = nn.Identity()
        if channels != out:
            self.shortcut = ConvNorm(channels, out, (1, 1, 1), stride=stride)
        elif stride > 1:
            step = (1, stride, stride)
            self.shortcut = nn.Conv3d(channels, out, 1, stride=step, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T, H / stride, W / stride)."""
        inner = self.squeeze(self.depthwise(F.relu(self.widen(features))))
        return F.relu(self.shortcut(features) + self.narrow(F.silu(inner)))


class X3D(nn.Module):
    """X3D-S. Without its dropout: all ways to run it shall give the same numbers.

    Args:
        num_classes: width of the logits.
    """

    def __init__(self, num_classes: int = 400) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv3d(3, STEM, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False),
            ConvNorm(STEM, STEM, (5, 1, 1), groups=STEM),
        )
        blocks: list[nn.Module] = []
        channels = STEM
        for out, number in STAGES:
            for i in range(number):
                blocks.append(Bottleneck(channels, out, 1 if i else 2, squeeze=i % 2 == 0))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        inner = int(EXPANSION * channels)
        self.widen = ConvNorm(channels, inner, (1, 1, 1))
        self.hidden = nn.Linear(inner, HEAD, bias=False)
        self.classifier = nn.Linear(HEAD, num_classes)

    def forward(self, clip: Tensor) -> Tensor:
        """(B, 3, T, H, W) to (B, num_classes) logits."""
        features = self.blocks(F.relu(self.stem(clip)))
        pooled = F.relu(self.widen(features)).mean((2, 3, 4))
        return self.classifier(F.relu(self.hidden(pooled)))


def squeezed(channels: int) -> int:
    """Width of the squeeze: a sixteenth, rounded to a multiple of 8, never far below."""
    exact = channels * SQUEEZE
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded
