"""Counts from which every figure of an evaluation follows; counts of several processes add up."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vmf.training.distributed import Ranks


@dataclass
class Scores:
    """What was right and what was taken for what.

    Integer counts and an fp64 sum: adding up the parts of several processes gives what one process
    would have counted.

    Attributes:
        confusion: (K, K) int64; row: true class, column: predicted class.
        in_top5: Clips whose class was among the five best scores.
        loss_sum: Sum of the negative log-likelihoods, fp64.
    """

    confusion: Tensor
    in_top5: Tensor
    loss_sum: Tensor

    @classmethod
    def empty(cls, num_classes: int) -> "Scores":
        """Zero of everything."""
        return cls(
            torch.zeros(num_classes, num_classes, dtype=torch.int64),
            torch.zeros((), dtype=torch.int64),
            torch.zeros((), dtype=torch.float64),
        )

    def add(self, probability: Tensor, label: Tensor) -> None:
        """Counts a batch.

        Args:
            probability: (B, K), each row summing to 1.
            label: (B,) int64.
        """
        probability, label = probability.double().cpu(), label.cpu()
        num_classes = len(self.confusion)
        best = probability.topk(min(5, num_classes), dim=1).indices
        pairs = label * num_classes + best[:, 0]
        counts = torch.bincount(pairs, minlength=num_classes**2)
        self.confusion += counts.view(num_classes, num_classes)
        self.in_top5 += (best == label[:, None]).sum()
        likelihood = probability.gather(1, label[:, None]).clamp_min(1e-12)
        self.loss_sum -= likelihood.log().sum()

    def total(self, ranks: Ranks) -> "Scores":
        """The sum over all processes, in every one of them."""
        return Scores(ranks.sum(self.confusion), ranks.sum(self.in_top5), ranks.sum(self.loss_sum))

    @property
    def count(self) -> int:
        """Clips counted."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of clips whose best score was right, 0 to 1."""
        return int(self.confusion.trace()) / max(1, self.count)

    @property
    def top5(self) -> float:
        """Share of clips with their class among the five best scores, 0 to 1."""
        return int(self.in_top5) / max(1, self.count)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood."""
        return float(self.loss_sum) / max(1, self.count)

    def per_class(self) -> list[float | None]:
        """Top-1 of each class; None for a class with no clip."""
        totals = self.confusion.sum(1).tolist()
        right = self.confusion.diagonal().tolist()
        return [r / t if t else None for r, t in zip(right, totals, strict=True)]
