"""The Video Mobile-Former: image Mobile-Former (arXiv 2108.05895) with time (arXiv 2208.12257).

The video paper's abstract fixes the idea: a light 3D CNN in parallel with a Transformer over very
few tokens for a whole video. How time enters (kT x 3 x 3 depthwise kernels, everything else as in
the image network) is ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vmf.models.blocks import MobileFormerBlock
from vmf.models.bridges import MobileToFormer
from vmf.models.config import Config
from vmf.models.layers import PointwiseConv3d, ReLU6
from vmf.models.macs import count_macs

HEAD_EXPANSION = 6


class Stem(nn.Module):
    """1x3x3 convolution of stride 2 over H and W, norm, ReLU6; makes features channels_last_3d."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            in_chans, channels, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1), bias=False
        )
        self.norm = nn.BatchNorm3d(channels)
        self.act = ReLU6()

    def forward(self, clip: Tensor) -> Tensor:
        """(B, in_chans, T, H, W) in any layout to (B, C, T, H / 2, W / 2) in channels_last_3d."""
        features = self.conv(clip.contiguous(memory_format=torch.channels_last_3d))
        # A convolution may answer in another layout (fp64 on CPU does); else this changes nothing.
        features = features.contiguous(memory_format=torch.channels_last_3d)
        return self.act(self.norm(features))


class Head(nn.Module):
    """One more Mobile to Former, pooling, and two linear layers.

    `[mean(ReLU6(BN(PW(X)))) through hswish ; z0]`, Linear to F, BN, hswish, dropout, Linear.
    """

    def __init__(self, channels: int, config: Config) -> None:
        super().__init__()
        width = HEAD_EXPANSION * channels
        token_dim = config.token_dim if config.num_tokens else 0
        if token_dim:
            self.to_tokens = MobileToFormer(channels, token_dim, config.drop_path_rate)
        self.expand = PointwiseConv3d(channels, width, config.groups, shuffle_in=config.groups)
        self.norm = nn.BatchNorm3d(width)
        self.act = ReLU6()
        self.hidden = nn.Linear(width + token_dim, config.head_features)
        self.hidden_norm = nn.BatchNorm1d(config.head_features)
        self.dropout = nn.Dropout(config.drop_rate)
        self.classifier = _classifier(config.head_features, config.num_classes)

    def forward(self, features: Tensor, tokens: Tensor | None, pre_logits: bool) -> Tensor:
        """X (B, C, T, H, W) and Z (B, M, d) to logits, or (B, F) before dropout and classifier."""
        if self.hidden_norm.training and features.shape[0] == 1:
            raise ValueError(
                "vmf: training needs at least 2 clips a batch, as the head normalises over the "
                "batch (got 1)"
            )
        expanded = self.act(self.norm(self.expand(features)))
        pooled = F.hardswish(expanded.mean((2, 3, 4)))
        if tokens is not None:
            pooled = torch.cat([pooled, self.to_tokens(features, tokens)[:, 0]], dim=1)
        hidden = F.hardswish(self.hidden_norm(self.hidden(pooled)))
        return hidden if pre_logits else self.classifier(self.dropout(hidden))


class VideoMobileFormer(nn.Module):
    """A video classifier; build it with `vmf.create_model`.

    Args:
        config: What to build.

    Attributes:
        config: The record it was built from (`num_classes` follows `reset_classifier`).
        default_clip: (T, H = W) that it is meant for; any clip size works.
        num_features: F, the width that `forward_head(..., pre_logits=True)` returns.
        num_classes: Width of the logits.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.head_features
        self.grad_checkpointing = False
        self.stem = Stem(config.in_chans, config.stem)
        self.tokens = None
        if config.num_tokens:
            self.tokens = nn.Parameter(torch.empty(config.num_tokens, config.token_dim))
        self.blocks = nn.ModuleList()
        channels, blocks = config.stem, config.parse_blocks()
        for i, block in enumerate(blocks):
            drop_path = config.drop_path_rate * i / max(1, len(blocks) - 1)
            self.blocks.append(MobileFormerBlock(channels, block, config, drop_path))
            channels = block.channels
        self.head = Head(channels, config)
        self._initialise()

    @property
    def default_clip(self) -> tuple[int, int]:
        return self.config.frames, self.config.size

    @property
    def num_classes(self) -> int:
        return self.config.num_classes

    def forward(self, clip: Tensor) -> Tensor:
        """Classifies clips.

        Args:
            clip: (B, in_chans, T, H, W), floating; any T, H, W from 1 up.

        Returns:
            Logits (B, num_classes), or (B, num_features) if the model has no classes.
        """
        return self.forward_head(self.forward_features(clip))

    def forward_features(self, clip: Tensor) -> tuple[Tensor, Tensor | None]:
        """A clip (B, in_chans, T, H, W) to the last block's features and tokens.

        Returns:
            X (B, C, T, H / 32, W / 32), rounded up, in channels_last_3d, and Z (B, M, d), which is
            None in a network without tokens.

        Raises:
            ValueError: The clip has another rank, number of channels, or no pixels.
            TypeError: It is not a floating-point tensor.
        """
        self._check(clip)
        features = self.stem(clip)
        tokens = None
        if self.tokens is not None:
            tokens = self.tokens.expand(clip.shape[0], -1, -1)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                features, tokens = _checkpointed(block, features, tokens)
            else:
                features, tokens = block(features, tokens)
        return features, tokens

    def forward_head(self, x: tuple[Tensor, Tensor | None], pre_logits: bool = False) -> Tensor:
        """What `forward_features` returns to logits, or to (B, num_features) with `pre_logits`."""
        return self.head(*x, pre_logits)

    @torch.no_grad()
    def token_attention(self, clip: Tensor) -> Tensor:
        """Where each token looks: the last Mobile to Former's softmax, mean over its heads.

        Args:
            clip: (B, in_chans, T, H, W). Call it in eval mode.

        Returns:
            (B, M, T, H / 32, W / 32), rounded up; each token's weights sum to 1.
        """
        features, tokens = self.forward_features(clip)
        if tokens is None:
            raise ValueError(f"{self.config.name}: without tokens there is no attention to show")
        return self.head.to_tokens.attention(features, tokens)

    def count_macs(self, clip_shape: tuple[int, ...]) -> int:
        """Multiply-adds for one clip (in_chans, T, H, W); see `vmf.count_macs`."""
        return count_macs(self, clip_shape)

    def reset_classifier(self, num_classes: int) -> None:
        """Gives the network a fresh classifier; with 0 classes it returns features (B, F)."""
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        fresh = _classifier(self.num_features, num_classes)
        fresh.apply(_initialise)
        self.head.classifier = fresh.to(self.head.hidden.weight)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.classifier

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In training, keeps only each block's input and runs the block again in backward."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters of more than one dimension that weight decay should leave alone."""
        return {"tokens"} if self.tokens is not None else set()

    def _check(self, clip: Tensor) -> None:
        chans = self.config.in_chans
        empty = any(size < 1 for size in clip.shape[2:])
        if clip.ndim != 5 or clip.shape[1] != chans or empty:
            raise ValueError(
                f"{self.config.name}: a clip is (batch, {chans}, frames, height, width) "
                f"(got {tuple(clip.shape)})"
            )
        if not clip.is_floating_point():
            raise TypeError(f"{self.config.name}: a clip is floating-point (got {clip.dtype})")

    def _initialise(self) -> None:
        self.apply(_initialise)
        if self.tokens is not None:
            nn.init.normal_(self.tokens)


def _classifier(features: int, classes: int) -> nn.Module:
    return nn.Linear(features, classes) if classes else nn.Identity()


def _initialise(module: nn.Module) -> None:
    """Convolutions N(0, sqrt(2 / (taps C_out))), linear N(0, 0.01), zero bias, norms 1 and 0."""
    if isinstance(module, nn.Conv3d):
        taps = module.kernel_size[0] * module.kernel_size[1] * module.kernel_size[2]
        nn.init.normal_(module.weight, std=(2 / (taps * module.out_channels)) ** 0.5)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)


def _checkpointed(
    block: nn.Module, features: Tensor, tokens: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _keep_statistics(block)

    if torch.compiler.is_compiling():  # which takes no contexts, and updates statistics once
        return checkpoint(block, features, tokens, use_reentrant=False)
    return checkpoint(block, features, tokens, use_reentrant=False, context_fn=contexts)


@contextmanager
def _keep_statistics(block: nn.Module) -> Iterator[None]:
    """Batch norms still normalise by the batch but leave their running statistics as they are."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm3d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
