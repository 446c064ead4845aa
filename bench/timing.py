"""Times of several contenders, taken in turns, and what can be said about them.

A shared machine is faster in one second than in the next. So every round runs every contender once,
and two contenders are compared by the ratio of their times *within* a round.
"""

import math
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        seconds: for one set of contenders, all rounds together; reached or passed by one round.
        rounds: at least so many, whatever they take.
        most_rounds: never more.
        slow_factor: a contender this many times slower than the fastest rival leaves after
            `slow_rounds`, so as not to use up the time.
        slow_rounds: rounds of such a contender.
        sample_seconds: a fast call is repeated in a round until the sample takes this long,
            at most `most_calls` times; the median counts, so that a call which another process
            interrupts does not.
    """

    seconds: float = 1.5
    rounds: int = 5
    most_rounds: int = 60
    slow_factor: float = 6.0
    slow_rounds: int = 3
    sample_seconds: float = 8e-3
    most_calls: int = 100


QUICK = Effort(seconds=0.6, rounds=5, most_rounds=30, slow_rounds=2)
FULL = Effort()
# Nobody else is on a GPU, and its clock has no jitter of the host's.
CUDA = Effort(seconds=0.1, rounds=7, most_rounds=20, sample_seconds=1e-3, most_calls=4)

# Single kernels, many of them, none of which leaves early.
KERNELS = Effort(
    seconds=0.0, rounds=5, most_rounds=5, slow_factor=1e9, sample_seconds=1e-3, most_calls=4
)


class Clock(Protocol):
    """Times `calls` calls on one kind of device; returns the median of their seconds."""

    def __call__(self, work: Callable[[], object], calls: int) -> float: ...


def cpu_clock(work: Callable[[], object], calls: int) -> float:
    """Wall time. Each call's outputs are new and are dropped before the next call."""
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return quantile(seconds, 0.5)


class CudaClock:
    """Time on the GPU, from events, with a cold L2 cache.

    Before each call a buffer larger than L2 is written, and the GPU waits until the host has surely
    queued the call: what is timed is the GPU's work. What the host needs for a call is the subject
    of the suite "overhead".
    """

    WAIT = 2_000_000  # cycles, some 1 ms: twice what the slowest training call takes the host

    def __init__(self) -> None:
        l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        self.flush = torch.empty(max(4 * l2, 1 << 30), dtype=torch.int8, device="cuda")

    def __call__(self, work: Callable[[], object], calls: int) -> float:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        torch.cuda.synchronize()
        for begin, end in events:
            self.flush.zero_()
            torch.cuda._sleep(self.WAIT)
            begin.record()
            work()
            end.record()
        torch.cuda.synchronize()
        return quantile([begin.elapsed_time(end) / 1e3 for begin, end in events], 0.5)


@dataclass
class Times(Generic[Key]):
    """Seconds per call of each contender, one number a round; the rounds of all begin together."""

    seconds: dict[Key, list[float]] = field(default_factory=dict)

    def median(self, key: Key) -> float:
        return quantile(self.seconds[key], 0.5)

    def spread(self, key: Key) -> tuple[float, float]:
        """20% and 80% quantiles."""
        return quantile(self.seconds[key], 0.2), quantile(self.seconds[key], 0.8)

    def fastest(self, keys: Sequence[Key]) -> Key:
        return min(keys, key=self.median)

    def ratio(self, key: Key, other: Key) -> tuple[float, float, float]:
        """How many times faster `key` is than `other`: median, 20% and 80% quantile over rounds."""
        pairs = zip(self.seconds[key], self.seconds[other], strict=False)
        ratios = [b / a for a, b in pairs]
        return quantile(ratios, 0.5), quantile(ratios, 0.2), quantile(ratios, 0.8)


def interleave(
    contenders: dict[Key, Callable[[], object]],
    clock: Clock,
    effort: Effort,
    rivals: Collection[Key] = (),
) -> Times[Key]:
    """Times every contender in rounds. They must have run once before: that is their warm-up.

    Args:
        contenders: what to call, by any key.
        clock: `cpu_clock` or a `CudaClock`.
        effort: how long.
        rivals: those of which the slow ones may leave; all if empty. The others stay to the end.
    """
    times: Times[Key] = Times({key: [] for key in contenders})
    may_leave = set(rivals or contenders)
    # The quickest so far, in a machine that only ever makes things slower.
    least = {key: clock(work, 1) for key, work in contenders.items()}
    start = time.perf_counter()
    for done in range(effort.most_rounds):
        if done >= effort.rounds and time.perf_counter() - start > effort.seconds:
            break
        limit = effort.slow_factor * min(least[key] for key in may_leave)
        keys = list(contenders)
        # Nobody always follows the same neighbour's leftovers in the caches.
        turn = done % len(keys)
        for key in keys[turn:] + keys[:turn]:
            has_left = len(times.seconds[key]) < done
            too_slow = done >= effort.slow_rounds and least[key] > limit
            if (has_left or too_slow) and key in may_leave:
                continue
            calls = math.ceil(effort.sample_seconds / max(least[key], 1e-9))
            calls = min(effort.most_calls, max(1, calls))
            # The call before absorbs the change of threads and data from the one before.
            if calls > 1:
                contenders[key]()
            times.seconds[key].append(clock(contenders[key], calls))
            least[key] = min(least[key], times.seconds[key][-1])
    return times


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between neighbours."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def geomean(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """The geometric mean, weighted if asked."""
    weights = weights or [1.0] * len(values)
    total = sum(w * math.log(v) for v, w in zip(values, weights, strict=True))
    return math.exp(total / sum(weights))
