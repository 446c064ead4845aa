"""What the kernels shall reach, as data, and whether they do."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.markdown import markdown_table
from bench.op import CONTIGUOUS, FORWARD, RECORDED, TRAINING
from bench.results import Layer, summarise

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
    """

    op: str
    layers: str
    forward: float
    training: float
    dtypes: tuple[str, ...] = ("float32",)
    group: str | None = None
    layout: str | None = None

    def measured(self, layers: Sequence[Layer], mode: str) -> tuple[float, int] | None:
        """The geometric mean and the number of layers in it; None without any."""
        chosen = [
            layer
            for layer in layers
            if (layer.op, layer.mode) == (self.op, mode)
            and layer.dtype in self.dtypes
            and (self.group is None or self.group in layer.groups)
        ]
        summary = summarise(chosen)
        if summary is None:
            return None
        mean = summary.same_layout.get(self.layout) if self.layout else summary.mean
        return None if mean is None else (mean, summary.number)


# On two cores with AVX2.
TARGETS = (
    Target("depthwise_conv3d", "all", 2.0, 12.0),
    Target("depthwise_conv3d", "a side of 5 or more", 2.4, 14.0, group="a side of 5 or more"),
    Target("depthwise_conv3d", "strided", 1.5, 8.0, group="strided"),
    Target("depthwise_conv3d", "all, both contiguous", 8.0, 20.0, layout=CONTIGUOUS),
    Target("depthwise_conv3d", "all, 16-bit", 2.4, 10.0, SIXTEEN_BITS),
    Target("few_query_attention", "all", 2.8, 4.2),
    Target("few_key_attention", "all", 12.0, 9.0),
    Target("dynamic_relu", "all", 2.5, 5.0),
)
# Microseconds per call at most: without gradients, and in training. There the call is held to it,
# not its backward pass: PyTorch's autograd engine alone takes as long for a product of two numbers.
OVERHEAD = {FORWARD: 6.0, RECORDED: 25.0}


def targets_table(layers: Sequence[Layer]) -> str | None:
    """Target, measured, met or not, of those that these layers say something about."""
    rows = []
    for target in TARGETS:
        cells = [f"{target.op}: {target.layers}"]
        number = 0
        for mode, least in ((FORWARD, target.forward), (TRAINING, target.training)):
            found = target.measured(layers, mode)
            number = max(number, found[1] if found else 0)
            cells += [f"{least:.1f}", *verdict(found[0] if found else None, least)]
        if number:
            rows.append([*cells[:1], str(number), *cells[1:]])
    if not rows:
        return None
    columns = ("target", "measured", "")
    header = ["layers", "number"]
    header += [f"{mode} {column}".strip() for mode in (FORWARD, TRAINING) for column in columns]
    return markdown_table(header, rows)


def verdict(measured: float | None, least: float) -> tuple[str, str]:
    """What was measured, and in words whether that is enough."""
    if measured is None:
        return "-", "-"
    # As printed: a table that says 2.00 of 2.0 says met.
    return f"{measured:.2f}", "met" if round(measured, 2) >= least else "**not met**"
