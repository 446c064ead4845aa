"""An X3D of plain PyTorch layers, before and after `accelerate` and `fuse`.

    python examples/x3d.py                     # X3D-S, batch 2: a few minutes on two cores
    python examples/x3d.py --batch 1 --size 64 --rounds 1    # seconds

X3D (Feichtenhofer, CVPR 2020) spends most of a training step on a CPU in its depthwise 3x3x3
convolutions. The script builds it as anybody would, compares logits and gradients, and prints the
times of a training step and of inference. A channels_last_3d row is the same model after
`model.to(memory_format=torch.channels_last_3d)`.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median

import torch
from torch import Tensor, nn

from vmf_kernels import accelerate, explain, fuse, keep_freed_memory, restore

STAGES = ((24, 3), (48, 5), (96, 11), (192, 7))  # channels and blocks of X3D-S
EXPANSION, SQUEEZE, HEAD = 2.25, 1 / 16, 2048


def round_to_8(width: float) -> int:
    """The multiple of 8 that is nearest, never a tenth below."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


class SqueezeExcitation(nn.Module):
    """Scales channels by what the whole clip says of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = round_to_8(channels * SQUEEZE)
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool3d(1),
            *(nn.Conv3d(channels, squeezed, 1), nn.ReLU()),
            *(nn.Conv3d(squeezed, channels, 1), nn.Sigmoid()),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) to the same."""
        return x * self.layers(x)


class Block(nn.Module):
    """Expand, convolve channel by channel, project, add."""

    def __init__(self, channels: int, width: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        inner = int(width * EXPANSION)
        strides, plain = (1, stride, stride), channels == width and stride == 1
        depthwise = nn.Conv3d(inner, inner, 3, strides, 1, groups=inner, bias=False)
        self.body = nn.Sequential(
            *(nn.Conv3d(channels, inner, 1, bias=False), nn.BatchNorm3d(inner), nn.ReLU()),
            *(depthwise, nn.BatchNorm3d(inner)),
            *(SqueezeExcitation(inner) if squeeze else nn.Identity(), nn.SiLU()),
            *(nn.Conv3d(inner, width, 1, bias=False), nn.BatchNorm3d(width)),
        )
        self.shortcut = (
            nn.Identity()
            if plain
            else nn.Sequential(
                nn.Conv3d(channels, width, 1, strides, bias=False), nn.BatchNorm3d(width)
            )
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, T, H, W) to (N, width, T, H / stride, W / stride)."""
        return self.relu(self.body(x) + self.shortcut(x))


def x3d_s(num_classes: int = 400) -> nn.Sequential:
    """(N, 3, 13, 160, 160) clips to (N, num_classes) logits; other sizes that 32 divides, too."""
    channels = STAGES[0][0]
    temporal = nn.Conv3d(
        channels, channels, (5, 1, 1), padding=(2, 0, 0), groups=channels, bias=False
    )
    layers: list[nn.Module] = [
        nn.Conv3d(3, channels, (1, 3, 3), (1, 2, 2), (0, 1, 1), bias=False),
        *(temporal, nn.BatchNorm3d(channels), nn.ReLU()),
    ]
    for width, blocks in STAGES:
        for i in range(blocks):
            layers.append(Block(channels, width, stride=1 if i else 2, squeeze=i % 2 == 0))
            channels = width
    inner = int(channels * EXPANSION)
    return nn.Sequential(
        *layers,
        *(nn.Conv3d(channels, inner, 1, bias=False), nn.BatchNorm3d(inner), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Conv3d(inner, HEAD, 1, bias=False), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(HEAD, num_classes)),
    )


def in_channels_last(model: nn.Module) -> nn.Module:
    """A copy whose weights, and so its features, lie channels last."""
    return copy.deepcopy(model).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def train_step(model: nn.Module, clip: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits and all gradients, as in training but for the dropout."""
    model.train()
    next(m for m in model.modules() if isinstance(m, nn.Dropout)).eval()
    model.zero_grad()
    logits = model(clip)
    nn.functional.cross_entropy(logits, torch.arange(len(clip))).backward()
    return logits.detach(), [p.grad for p in model.parameters() if p.grad is not None]


@torch.no_grad()
def infer(model: nn.Module, clip: Tensor) -> Tensor:
    """Logits."""
    return model.eval()(clip)


def difference(a: Tensor, b: Tensor) -> float:
    """Relative, of the Euclidean norms."""
    return ((a - b).norm() / a.norm()).item()


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All values in one row."""
    return torch.cat([t.flatten() for t in tensors])


def seconds(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median of each call's times; rounds take turns, the first of each warms up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: median(taken) for name, taken in times.items()}


def measure(task: str, keep: bool, clip: Tensor, rounds: int) -> dict[str, float]:
    """Seconds of a training step, or of inference, in a process that does nothing else.

    The C library's habits are the whole process's, and change with what it has done before.
    """
    if keep and not keep_freed_memory():
        return {}
    torch.manual_seed(0)
    contiguous = x3d_s()
    channels_last = in_channels_last(contiguous)
    models = {
        "eager, contiguous": contiguous,
        "eager, channels_last": channels_last,
        "accelerate": accelerate(in_channels_last(contiguous)),
    }
    if task == "inference":
        models["fuse"] = fuse(channels_last)
    run = infer if task == "inference" else train_step
    calls = {name: lambda model=model: run(model, clip) for name, model in models.items()}
    return {f"{name}{', kept' * keep}": t for name, t in seconds(calls, rounds).items()}


def compare(clip: Tensor, dtype: torch.dtype) -> dict[str, float]:
    """Relative differences of what the models compute, before and after, from the same weights.

    In one layout: in the other PyTorch's BatchNorms round otherwise, and the gradients of an
    untrained network, whose ReLUs then switch elsewhere, differ by percents in float32. One clip of
    4 x 32 x 32 leaves the last BatchNorms four values, whose variance may be next to nothing: it
    then magnifies roundings a thousand times more than in two such clips.
    """
    torch.manual_seed(0)
    before, clip = in_channels_last(x3d_s()).to(dtype), clip.to(dtype)
    after = accelerate(copy.deepcopy(before))
    expected, gradients = train_step(before, clip)
    logits, own_gradients = train_step(after, clip)
    return {
        "logits": difference(expected, logits),
        "gradients": difference(flat(gradients), flat(own_gradients)),
        "fused logits": difference(infer(before, clip), infer(fuse(after), clip)),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Compares, times, prints; fails where numbers differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=2, help="clips (2)")
    parser.add_argument("--frames", type=int, default=13, help="of a clip (13)")
    parser.add_argument("--size", type=int, default=160, help="height and width (160)")
    parser.add_argument("--rounds", type=int, default=7, help="timed ones of each model (7)")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    clip = torch.randn(arguments.batch, 3, arguments.frames, arguments.size, arguments.size)

    model = accelerate(x3d_s())
    print(explain(model, clip))
    restore(model)
    for dtype, most in ((torch.float32, math.inf), (torch.float64, 1e-10)):
        errors = compare(clip, dtype)
        told = ", ".join(f"{name} {error:.0e}" for name, error in errors.items())
        print(f"relative differences in {str(dtype).removeprefix('torch.')}: {told}")
        if not max(errors.values()) < most:
            print(f"that is more than {most:.0e}", file=sys.stderr)
            return 1

    for task in ("training step", "inference"):
        times: dict[str, float] = {}
        for keep in (False, True):
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                job = process.submit(measure, task, keep, clip, arguments.rounds)
                times |= job.result()
        eager = times["eager, contiguous"], times["eager, channels_last"]
        print(f"\n{task:30}      time  over contiguous  over channels_last")
        for name, taken in times.items():
            ratios = f"{eager[0] / taken:16.2f}x{eager[1] / taken:18.2f}x"
            print(f"  {name:28}{1e3 * taken:7.0f} ms{ratios}")
    print("\nkept: after keep_freed_memory(): freed memory is not given back to the system.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
