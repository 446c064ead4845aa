"""What the kernels shall reach, as data, and whether they do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.markdown import markdown_table
from bench.op import CONTIGUOUS, FORWARD, RECORDED, TRAINING
from bench.results import Layer, summarise
from bench.timing import geomean

SIXTEEN_BITS = ("bfloat16", "float16")


@dataclass(frozen=True)
class Target:
    """A geometric mean of speed-ups over layers, against the best peer in its best layout.

    Attributes:
        op: the op.
        layers: which of its layers, in words.
        forward, training: at least this in forward and in forward+backward.
        dtypes: where it is held.
        group: the kind of layers; all if None.
        layout: ours and the peers are both in this layout instead of each in its best.
        without: a kind of layers that is left out.
    """

    op: str
    layers: str
    forward: float
    training: float
    dtypes: tuple[str, ...] = ("float32",)
    group: str | None = None
    layout: str | None = None
    without: str | None = None

    def chosen(self, layers: Sequence[Layer], mode: str) -> list[Layer]:
        """Those that it is about."""
        return [
            layer
            for layer in layers
            if (layer.op, layer.mode) == (self.op, mode)
            and layer.dtype in self.dtypes
            and (self.group is None or self.group in layer.groups)
            and self.without not in layer.groups
        ]

    def measured(self, layers: Sequence[Layer], mode: str) -> tuple[float, int] | None:
        """The geometric mean and the number of layers in it; None without any."""
        summary = summarise(self.chosen(layers, mode))
        if summary is None:
            return None
        mean = summary.same_layout.get(self.layout) if self.layout else summary.mean
        return None if mean is None else (mean, summary.number)

    def most(self, layers: Sequence[Layer], mode: str) -> float | None:
        """The geometric mean if every layer took the least time which the roofline leaves."""
        found = [layer.most(self.layout) for layer in self.chosen(layers, mode)]
        values = [value for value in found if value is not None]
        return geomean(values) if values else None


@dataclass(frozen=True)
class Targets:
    """Those of one kind of machine.

    Attributes:
        machine: in words.
        all: what is held there.
    """

    machine: str
    all: tuple[Target, ...]

    def table(self, layers: Sequence[Layer]) -> str | None:
        """Target, measured, most, met or not, of those that these layers say something about."""
        rows = []
        for target in self.all:
            cells = [f"{target.op}: {target.layers}"]
            number = 0
            for mode, least in ((FORWARD, target.forward), (TRAINING, target.training)):
                found = target.measured(layers, mode)
                number = max(number, found[1] if found else 0)
                most = target.most(layers, mode)
                measured, met = verdict(found[0] if found else None, least)
                cells += [f"{least:.1f}", measured, f"{most:.1f}" if most else "-", met]
            if number:
                rows.append([*cells[:1], str(number), *cells[1:]])
        if not rows:
            return None
        columns = ("target", "measured", "most", "")
        header = ["layers", "number"]
        header += [f"{mode} {column}".strip() for mode in (FORWARD, TRAINING) for column in columns]
        return markdown_table(header, rows)


LARGE = "a side of 5 or more"
CPU = Targets(
    "two cores with AVX2 (`--isa avx2`)",
    (
        Target("depthwise_conv3d", "all", 2.0, 12.0),
        Target("depthwise_conv3d", LARGE, 2.4, 14.0, group=LARGE),
        Target("depthwise_conv3d", "strided", 1.5, 8.0, group="strided"),
        Target("depthwise_conv3d", "all, both contiguous", 8.0, 20.0, layout=CONTIGUOUS),
        Target("depthwise_conv3d", "all, 16-bit", 2.4, 10.0, SIXTEEN_BITS),
        Target("few_query_attention", "all", 2.8, 4.2),
        Target("few_key_attention", "all", 12.0, 9.0),
        Target("dynamic_relu", "all", 2.5, 5.0),
    ),
)
GPU = Targets(
    "an H100",
    tuple(
        Target(op, f"{layers}, {words}", forward, training, dtypes, group, without=without)
        for words, dtypes in (("float32", ("float32",)), ("16-bit", SIXTEEN_BITS))
        for op, layers, forward, training, group, without in (
            ("depthwise_conv3d", "sides up to 3", 3.0, 6.0, None, LARGE),
            ("depthwise_conv3d", LARGE, 3.0, 6.0, LARGE, None),
            ("few_query_attention", "all", 2.0, 4.0, None, None),
            ("few_key_attention", "all", 3.0, 4.0, None, None),
            ("dynamic_relu", "all", 2.0, 2.0, None, None),
        )
    ),
)
# Microseconds per call at most: without gradients, and in training. There the call is held to it,
# not its backward pass: PyTorch's autograd engine alone takes as long for a product of two numbers.
OVERHEAD = {FORWARD: 6.0, RECORDED: 25.0}


def targets(facts: Mapping[str, str]) -> Targets:
    """Those of the machine that these facts tell of."""
    return GPU if "gpu" in facts else CPU


def overhead(facts: Mapping[str, str]) -> dict[str, float]:
    """Microseconds per call at most, by mode; on a GPU the peer's are the limit."""
    return {} if "gpu" in facts else OVERHEAD


def verdict(measured: float | None, least: float) -> tuple[str, str]:
    """What was measured, and in words whether that is enough."""
    if measured is None:
        return "-", "-"
    # As printed: a table that says 2.00 of 2.0 says met.
    return f"{measured:.2f}", "met" if round(measured, 2) >= least else "**not met**"
