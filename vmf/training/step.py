"""One optimizer step: chunks forward and backward, gradients clipped, weights moved."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vmf.training.config import TrainConfig
from vmf.training.distributed import Ranks
from vmf.training.mixing import mix_clips, mix_seeds, seeded
from vmf.training.precision import autocast


class Stepper:
    """Takes optimizer steps.

    Nothing here remembers a random state: dropout, drop-path and mixing are seeded anew for each
    chunk by (seed, step, number of the chunk in the batch). A step is therefore a function of the
    weights, the optimizer's moments and the step's number.

    Args:
        model: The network, wrapped for several processes if there are several.
        optimizer: Over its parameters.
        config: label_smoothing, mixup, cutmix, accumulate, clip_grad and seed are read.
        num_classes: K.
        precision: "fp32", "bf16" or "fp16".
        ranks: Who this process is.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        num_classes: int,
        precision: str,
        ranks: Ranks,
    ) -> None:
        self.model, self.optimizer, self.config = model, optimizer, config
        self.num_classes, self.precision, self.ranks = num_classes, precision, ranks
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=precision == "fp16")
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def __call__(
        self, step: int, lr: float, chunks: Iterator[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Takes step number `step`.

        Args:
            step: From 0.
            lr: Learning rate.
            chunks: `accumulate` pairs of clips (B, 3, T, H, W) and labels (B,), on the device.

        Returns:
            This process's mean loss and the norm of the whole batch's gradient before clipping,
            both fp32 scalars on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        parts = self.config.accumulate
        losses = []
        for part, (clip, label) in zip(range(parts), chunks, strict=False):
            with nullcontext() if part == parts - 1 else self._no_sync():
                loss = self._loss(step, part * self.ranks.world + self.ranks.rank, clip, label)
                self.scaler.scale(loss / parts).backward()
            losses.append(loss.detach())
        self.scaler.unscale_(self.optimizer)
        limit = self.config.clip_grad or float("inf")
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).mean(), norm.float()

    def _no_sync(self) -> AbstractContextManager:
        """Gradients are averaged over processes once, with the last part of a batch."""
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return nullcontext()

    def _loss(self, step: int, chunk: int, clip: Tensor, label: Tensor) -> Tensor:
        config = self.config
        torch.manual_seed(mix_seeds(config.seed, step, chunk, 0))
        clip, target = mix_clips(
            clip,
            label,
            self.num_classes,
            config.mixup,
            config.cutmix,
            seeded(config.seed, step, chunk, 1),
        )
        with autocast(self.precision, self.ranks.device):
            logits = self.model(clip.contiguous(memory_format=torch.channels_last_3d))
        return F.cross_entropy(logits.float(), target, label_smoothing=config.label_smoothing)
