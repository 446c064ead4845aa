"""Mixup and CutMix for clips, and the soft labels that go with them."""

import torch
import torch.nn.functional as F
from torch import Tensor


def seeded(*numbers: int) -> torch.Generator:
    """A CPU generator that depends on all of `numbers`, e.g. (seed, step, chunk)."""
    return torch.Generator().manual_seed(mix_seeds(*numbers))


def mix_seeds(*numbers: int) -> int:
    """Folds integers into one 63-bit seed; neighbouring inputs give unrelated seeds."""
    value = 0
    for number in numbers:
        # splitmix64's finaliser
        value = (value + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value >> 1


def mix_clips(
    clip: Tensor,
    label: Tensor,
    num_classes: int,
    mixup: float,
    cutmix: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Mixes each clip with another one of the batch.

    Sources: mixup, arXiv 1710.09412; CutMix, arXiv 1905.04899 (here one box for all frames, so
    that motion inside and outside of it stays whole). With both on, each batch draws one of them.

    Args:
        clip: (B, C, T, H, W).
        label: (B,) int64.
        num_classes: K.
        mixup: Parameter of mixup's Beta distribution; 0 is off.
        cutmix: Parameter of CutMix's Beta distribution; 0 is off.
        generator: Source of every random choice, on the CPU.

    Returns:
        Clips shaped as before, and labels: (B,) int64 if nothing was mixed, else (B, K) fp32
        probabilities.
    """
    if mixup <= 0 and cutmix <= 0:
        return clip, label
    use_cutmix = cutmix > 0 and (mixup <= 0 or torch.rand((), generator=generator) < 0.5)
    share = _beta(cutmix if use_cutmix else mixup, generator)
    order = torch.randperm(len(clip), generator=generator).to(clip.device)
    if use_cutmix:
        height, width = clip.shape[-2:]
        side = (1.0 - share) ** 0.5
        top, bottom = _span(height, side, generator)
        left, right = _span(width, side, generator)
        mixed = clip.clone()
        mixed[..., top:bottom, left:right] = clip[order][..., top:bottom, left:right]
        share = 1.0 - (bottom - top) * (right - left) / (height * width)
    else:
        mixed = clip.lerp(clip[order], 1.0 - share)
    soft = F.one_hot(label, num_classes).float()
    return mixed, soft.lerp(soft[order], 1.0 - share)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha); torch.distributions takes no generator, gamma draws do."""
    concentration = torch.full((2,), alpha, dtype=torch.float64)
    first, second = torch._standard_gamma(concentration, generator=generator).tolist()
    # Both underflow to 0 for a very small alpha, whose draws are 0 or 1 alike.
    return first / (first + second) if first + second > 0 else 1.0


def _span(size: int, share: float, generator: torch.Generator) -> tuple[int, int]:
    """A random stretch of about `share` of `size`, clipped at the borders."""
    centre = int(torch.randint(size, (), generator=generator))
    half = int(size * share) // 2
    return max(0, centre - half), min(size, centre + half)
