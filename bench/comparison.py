"""What was measured of one case: times, refusals, and the ratios that follow."""

from dataclasses import dataclass, field

from bench.cases import Case
from bench.machine import Roofline
from bench.op import Traffic
from bench.timing import Times

OURS = "ours"
# What "auto" could run, too, is timed beside it and is no peer.
OURS_IN_CUDA = "ours in CUDA C++"

# Contender and layout.
Key = tuple[str, str]


@dataclass
class Comparison:
    """One case in one mode and dtype.

    Attributes:
        op: the op's name, or "model".
        case: as it was measured.
        full_batch: the batch of the case in the list; larger than `case.batch` if it was shrunk.
        mode: "forward", "forward+backward", ...
        dtype: "float32", ...
        backend: what ran as ours.
        times: of everything that ran. "ours" is among them only if its numbers are right.
        reasons: of everything that did not run, or whose numbers are wrong.
        traffic: what the op cannot avoid, where there is a model of it.
        kernel_traffic: what our kernels request and execute, by layout, where that was counted.
        groups: kinds of the case, each with a geometric mean of its own.
        peak_bytes: memory at its highest beyond what was held before, where it was measured.
    """

    op: str
    case: Case
    full_batch: int
    mode: str
    dtype: str
    backend: str
    times: Times[Key] = field(default_factory=Times)
    reasons: dict[Key, str] = field(default_factory=dict)
    traffic: Traffic | None = None
    kernel_traffic: dict[str, Traffic] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    peak_bytes: dict[Key, int] = field(default_factory=dict)

    @property
    def wrong(self) -> str | None:
        """Why no speed-up is told: our numbers are not right."""
        found = (text for (name, _), text in self.reasons.items() if name == OURS)
        return next(found, None)

    @property
    def ours(self) -> list[Key]:
        return [key for key in self.times.seconds if key[0] == OURS]

    @property
    def peers(self) -> list[Key]:
        return [key for key in self.times.seconds if key[0] not in (OURS, OURS_IN_CUDA)]

    def best_peer(self, layout: str | None = None) -> Key | None:
        """The fastest of the others, in its best layout or in the one given."""
        keys = [key for key in self.peers if layout in (None, key[1])]
        return self.times.fastest(keys) if keys else None

    def speedup(self, ours: Key, same_layout: bool = False) -> tuple[float, float, float] | None:
        """Of `ours` over the best peer: median, 20% and 80% quantiles; None without either."""
        best = self.best_peer(ours[1] if same_layout else None)
        if self.wrong or best is None or ours not in self.times.seconds:
            return None
        return self.times.ratio(ours, best)

    def best_speedup(self) -> float | None:
        """Of our best layout over the best peer."""
        if self.wrong or not self.ours:
            return None
        found = self.speedup(self.times.fastest(self.ours))
        return found[0] if found else None

    def roofline_share(self, key: Key, roofline: Roofline) -> float | None:
        """The least possible time over the median time."""
        if self.traffic is None or key not in self.times.seconds:
            return None
        least = roofline.seconds(self.traffic.bytes, self.traffic.flops)
        return least / self.times.median(key)
