"""Says which backend runs a call or a layer and, where a faster one cannot, why not."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vmf_kernels.backends import KERNELS_OF_DEVICE, OPS
from vmf_kernels.layers import DepthwiseConv3d
from vmf_kernels.ops.depthwise_conv3d import depthwise_conv3d


@dataclass(frozen=True)
class Record:
    """What runs one layer or call.

    Attributes:
        name: of the layer in its model, or of the op.
        swapped: the layer is one of this library's.
        backend: that would run it, or "pytorch" where the layer is PyTorch's own.
        reason: why no faster backend runs it; empty where the fastest one does.
        tile: how a GPU kernel's tiles are cut, and why; empty for others.
    """

    name: str
    swapped: bool
    backend: str
    reason: str
    tile: str = ""


class Records(list[Record]):
    """A list of `Record`s that prints as a table."""

    def __str__(self) -> str:
        rows = [("name", "swapped", "backend", "reason")]
        rows += [
            (
                r.name,
                "yes" if r.swapped else "no",
                r.backend,
                "; ".join(filter(None, (r.reason, r.tile))),
            )
            for r in self
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = []
        for row in rows:
            cells = [value.ljust(width) for value, width in zip(row, widths, strict=False)]
            lines.append("  ".join([*cells, row[3]]))
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


def explain(model_or_call: nn.Module | Callable[..., Any], *args: Any, **kwargs: Any) -> Records:
    """Tells which backend would run, and why no faster one can.

    Args:
        model_or_call: an `nn.Module`, or one of this library's ops.
        *args, **kwargs: for an op, the arguments of the call; it is not run.

    Returns:
        One record for the call, or one per depthwise 3D convolution of the model.

    Raises:
        TypeError: it is neither a module nor an op of this library.

    Example:
        >>> print(explain(depthwise_conv3d, x, w, padding=1))
    """
    if isinstance(model_or_call, nn.Module):
        if args or kwargs:
            raise TypeError("explain: a model takes no further arguments")
        layers = model_or_call.named_modules()
        return Records(_explain_layer(name, m) for name, m in layers if _is_depthwise(m))
    name = getattr(model_or_call, "__name__", None)
    if name not in OPS:
        raise TypeError(
            f"explain: takes a module or one of {', '.join(sorted(OPS))} (got {model_or_call!r})"
        )
    return Records([_explain_call(name, model_or_call, *args, **kwargs)])


def _explain_call(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Record:
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    bound_args = bound.args
    op = OPS[function.__name__]
    if op.extension is not None and any(value is not None for value in bound.kwargs.values()):
        op = op.extension
        bound_args = (*bound.args, *bound.kwargs.values())
    prepared = op.prepare(*bound_args)
    chosen = op.select(*prepared)
    reasons = []
    for kernels in KERNELS_OF_DEVICE.get(prepared[0].device.type, ()):
        if kernels == chosen.name:
            break
        reasons.append(f"{kernels}: {op.refusal(kernels, *prepared)}")
    return Record(name, True, chosen.name, "; ".join(reasons), chosen.how(*prepared))


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv3d) and module.groups == module.in_channels > 1


def _explain_layer(name: str, layer: nn.Conv3d) -> Record:
    if not isinstance(layer, DepthwiseConv3d):
        return Record(name, False, "pytorch", "it is an nn.Conv3d, not a DepthwiseConv3d")
    extent = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    sample = layer.weight.new_empty((1, layer.in_channels, *extent))
    settings = (layer.stride, layer.padding, layer.dilation)
    return _explain_call(name, depthwise_conv3d, sample, layer.weight, layer.bias, *settings)
