"""Which clip is read when: the same for any number of processes, workers and interruptions."""

import signal
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vmf.data import EvalClips, TrainClips, collate
from vmf.training.distributed import Ranks
from vmf.training.mixing import seeded

# Beyond this many unreadable neighbours in a row, something other than a file is broken.
_MOST_REPLACEMENTS = 20


class ChunkSampler(Sampler):
    """Deals out (epoch, index) pairs, chunk by chunk, from one step to another.

    Epoch e visits the clips in an order that follows from (seed, e) and leaves out the rest that
    does not fill a batch. A batch is cut into `accumulate` x world equal chunks; chunk number
    a·world + r is the a-th of process r. So every way to run a batch computes the same chunks.

    Args:
        clips: Number of training clips.
        batch_size: Clips of a step.
        accumulate: Chunks of a step in each process.
        ranks: Who this process is.
        seed: Of the order.
        start: First step to deal out.
        stop: Step to stop before.
    """

    def __init__(
        self,
        clips: int,
        batch_size: int,
        accumulate: int,
        ranks: Ranks,
        seed: int,
        start: int,
        stop: int,
    ) -> None:
        self.clips, self.batch_size, self.accumulate = clips, batch_size, accumulate
        self.ranks, self.seed, self.start, self.stop = ranks, seed, start, stop

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        steps_per_epoch = self.clips // self.batch_size
        size = self.batch_size // (self.accumulate * self.ranks.world)
        epoch, order = -1, []
        for step in range(self.start, self.stop):
            if step // steps_per_epoch != epoch:
                epoch = step // steps_per_epoch
                order = torch.randperm(self.clips, generator=seeded(self.seed, epoch)).tolist()
            first = step % steps_per_epoch * self.batch_size
            for part in range(self.accumulate):
                begin = first + (part * self.ranks.world + self.ranks.rank) * size
                yield [(epoch, index) for index in order[begin : begin + size]]


class Replacing(Dataset):
    """Puts the next readable clip where one cannot be read, so that every batch is full.

    An item is a list: the errors met, as the data set words them, and last the clip.
    """

    def __init__(self, dataset: TrainClips) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> list[dict]:
        epoch, index = key
        items = []
        for offset in range(min(len(self), _MOST_REPLACEMENTS)):
            items.append(self.dataset[(epoch, (index + offset) % len(self))])
            if "error" not in items[-1]:
                break
        return items


def training_batches(
    dataset: TrainClips, sampler: ChunkSampler, workers: int, pin: bool
) -> DataLoader:
    """Batches of clips as `vmf.data.collate` makes them, in the order of `sampler`."""
    return DataLoader(
        Replacing(dataset),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_collate_replaced,
        worker_init_fn=_ignore_interrupts,
        pin_memory=pin,
    )


def evaluation_batches(
    dataset: EvalClips, batch_size: int, ranks: Ranks, workers: int, pin: bool
) -> DataLoader:
    """Every item of `dataset` once, over all processes, in order."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=range(ranks.rank, len(dataset), ranks.world),
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_ignore_interrupts,
        pin_memory=pin,
    )


def _collate_replaced(groups: list[list[dict]]) -> dict:
    return collate([item for group in groups for item in group])


def _ignore_interrupts(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; the training process decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
