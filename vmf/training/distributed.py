"""One process or many: who this process is, and sums over all of them."""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Ranks:
    """This process among those `torchrun` started (rank 0 of 1 without it)."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and talks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all processes, in `tensor`'s own dtype (use int64 or fp64)."""
        if self.world == 1:
            return tensor
        # nccl only moves GPU memory.
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def gather(self, value: object) -> list:
        """The `value` of every process, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def average_buffers(self, model: nn.Module) -> None:
        """Makes BatchNorm's running statistics the mean over processes.

        Each process has only seen its own share of the clips; done after every step, so that any
        checkpoint holds what all processes hold.
        """
        buffers = [b for b in model.buffers() if b.is_floating_point()]
        if self.world == 1 or not buffers:
            return
        flat = torch.cat([b.reshape(-1) for b in buffers])
        dist.all_reduce(flat)
        flat /= self.world
        for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))


def distributed(model: nn.Module) -> DistributedDataParallel:
    """Wraps a model so that gradients are averaged over processes.

    Buffers are left to `Ranks.average_buffers`.
    """
    # torch 2.13 renames the option.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(model, **options)


def is_first_process() -> bool:
    """Whether this is the process, of those `torchrun` started, that talks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def processes(device: str = "auto") -> Iterator[Ranks]:
    """Joins the processes that `torchrun` started, for the length of a `with` block.

    Args:
        device: "cpu", "cuda" or "auto" (CUDA where there is one).

    Yields:
        Who this process is. Under CUDA each process of a machine has its own GPU.

    Raises:
        ValueError: The device is not there.
    """
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        yield Ranks(0, 1, chosen)
        return
    joined = dist.is_initialized()
    if not joined:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    yield Ranks(dist.get_rank(), dist.get_world_size(), chosen)
    # Not after an error: the others may be waiting for this process, and leaving waits for them.
    if not joined:
        dist.destroy_process_group()


def pick_device(device: str = "auto", index: int = 0) -> torch.device:
    """The torch device for "auto", "cpu" or "cuda".

    Args:
        device: As `torch.device` reads it, or "auto": CUDA where there is one.
        index: Which GPU, where `device` does not say.

    Raises:
        ValueError: The device is not there, or is of no kind that is supported here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device: must be auto, cpu or cuda (got {device})")
    if chosen.type == "cpu":
        return chosen
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    chosen = torch.device("cuda", index if chosen.index is None else chosen.index)
    if chosen.index >= found:
        raise ValueError(f"device: {device} is not there (this torch sees {found} CUDA devices)")
    torch.cuda.set_device(chosen)
    return chosen
