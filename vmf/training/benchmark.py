"""How fast a network trains and predicts here, with our kernels and with PyTorch's own."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

import vmf
from vmf.training.distributed import pick_device
from vmf.training.optim import make_optimizer
from vmf.training.precision import autocast, pick_precision
from vmf_kernels import use_backend

# Name in the table and backend.
BACKENDS = {"ours": "auto", "PyTorch": "reference"}


@dataclass
class Timing:
    """One row of `bench`.

    Attributes:
        phase: "inference" or "train step" (forward, backward, AdamW).
        backend: "ours" or "PyTorch".
        milliseconds: Median time of a batch.
        clips_per_second: Of the median.
    """

    phase: str
    backend: str
    milliseconds: float
    clips_per_second: float


@dataclass
class BenchResult:
    """What `bench` measured.

    Attributes:
        model: Name of the network.
        clip: (frames, size).
        batch_size: Clips of a batch.
        device: What it ran on.
        precision: "fp32", "bf16" or "fp16".
        threads: CPU threads of PyTorch.
        params: Parameters.
        macs: Multiply-adds of a clip, forward.
        timings: The rows.
    """

    model: str
    clip: tuple[int, int]
    batch_size: int
    device: str
    precision: str
    threads: int
    params: int
    macs: int
    timings: list[Timing]


def bench(
    model: str = "vmf_1g",
    *,
    frames: int | None = None,
    size: int | None = None,
    batch_size: int = 4,
    num_classes: int = 400,
    rounds: int = 5,
    device: str = "auto",
    precision: str = "auto",
) -> BenchResult:
    """Times a network on random clips.

    Backends take turns in every round, so that a machine that slows down slows both; the median
    over rounds is told. Reading videos is not part of it.

    Args:
        model: Name of the network (`vmf models` lists them).
        frames: Frames of a clip; the model's own number by default.
        size: Height and width of a clip in pixels; the model's own size by default.
        batch_size: Clips of a batch, at least 2.
        num_classes: Classes.
        rounds: Timed batches for each row, after one that is not timed.
        device: auto, cpu or cuda.
        precision: auto (bf16 on a GPU that has it, else fp32), fp32, bf16 or fp16.

    Raises:
        ValueError: An unknown model or a value out of range.
    """
    for name, value, low in (("batch_size", batch_size, 2), ("rounds", rounds, 1)):
        if value < low:
            raise ValueError(f"{name}: must be at least {low} (got {value})")
    place = pick_device(device)
    precision = pick_precision(precision, place)
    network = vmf.create_model(model, num_classes=num_classes)
    clip = (frames or network.default_clip[0], size or network.default_clip[1])
    shape = (network.config.in_chans, clip[0], clip[1], clip[1])
    macs = network.count_macs(shape)
    network.to(place)
    clips = torch.randn(batch_size, *shape, device=place)
    clips = clips.contiguous(memory_format=torch.channels_last_3d)
    labels = torch.arange(batch_size, device=place) % num_classes
    phases = {
        "inference": _inference(network, clips, precision),
        "train step": _train_step(network, clips, labels, precision),
    }
    timings = []
    for phase, work in phases.items():
        seconds: dict[str, list[float]] = {name: [] for name in BACKENDS}
        for round_number in range(rounds + 1):
            for name, backend in BACKENDS.items():
                with use_backend(backend):
                    taken = _time(work, place)
                if round_number > 0:
                    seconds[name].append(taken)
        for name, values in seconds.items():
            middle = median(values)
            timings.append(Timing(phase, name, 1e3 * middle, batch_size / middle))
    params = sum(parameter.numel() for parameter in network.parameters())
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
    threads = torch.get_num_threads()
    return BenchResult(model, clip, batch_size, where, precision, threads, params, macs, timings)


def _inference(network: nn.Module, clips: torch.Tensor, precision: str) -> Callable[[], None]:
    def work() -> None:
        network.eval()
        with torch.no_grad(), autocast(precision, clips.device):
            network(clips)

    return work


def _train_step(
    network: nn.Module, clips: torch.Tensor, labels: torch.Tensor, precision: str
) -> Callable[[], None]:
    optimizer = make_optimizer(network, lr=1e-6, weight_decay=0.05, betas=(0.9, 0.999))

    def work() -> None:
        network.train()
        with autocast(precision, clips.device):
            logits = network(clips)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return work


def _time(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call, the GPU's share included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
