"""The learning rate as a function of the step, and of nothing else."""

import math


def learning_rate(step: int, total: int, warmup: float, peak: float, final: float) -> float:
    """Linear warm-up, then half a cosine.

    Being a function of the step alone it needs no state, so a resumed run cannot drift.

    Args:
        step: Steps already taken, from 0 to `total` - 1.
        total: Steps of the whole run.
        warmup: Steps until the peak; may be fractional, and 0 starts at the peak.
        peak: Highest rate.
        final: Rate the cosine ends on.

    Returns:
        The rate of step `step`. The first is never 0, or that step would be wasted.
    """
    if step < warmup:
        return peak * min(1.0, (step + 1) / warmup)
    progress = (step - warmup) / max(1.0, total - 1 - warmup)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
