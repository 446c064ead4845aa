"""Says which backend runs a call or a layer and, where a faster one cannot, why not."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from vmf_kernels import _extension
from vmf_kernels.accelerate import inference, is_depthwise, refusal
from vmf_kernels.backends import KERNELS_OF_DEVICE, OPS
from vmf_kernels.layers import DepthwiseConv3d, DepthwiseConvTranspose3d
from vmf_kernels.layout import is_channels_last
from vmf_kernels.ops.depthwise_conv3d import depthwise_conv3d
from vmf_kernels.ops.depthwise_conv3d.gains import expected
from vmf_kernels.ops.depthwise_conv_transpose3d import depthwise_conv_transpose3d


@dataclass(frozen=True)
class Record:
    """What runs one layer or call.

    Attributes:
        name: of the layer in its model, or of the op.
        swapped: the layer is one of this library's.
        backend: that would run it, or "pytorch" where the layer is PyTorch's own.
        reason: why no faster backend runs it; empty where the fastest one does.
        tile: how a GPU kernel's tiles are cut, and why, in a line for each kernel that a training
            step may run apart; empty for others.
        shape: of the layer's input, N x C x T x H x W, where a sample was given.
        gain: over PyTorch in the same layout, forward and in training, that layers of this kind
            had in the committed benchmark; with a sample, for float32 on the CPU.
    """

    name: str
    swapped: bool
    backend: str
    reason: str
    tile: str = ""
    shape: str = ""
    gain: str = ""


class Records(list[Record]):
    """A list of `Record`s that prints as a table."""

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [
            ("name", "shape", "swapped", "backend", "expected gain", "reason")
        ]
        rows += [
            (
                r.name,
                r.shape,
                "yes" if r.swapped else "no",
                r.backend,
                r.gain,
                r.reason,
            )
            for r in self
        ]
        if not self:
            return "no depthwise 3D convolution"
        told = [
            name not in ("shape", "expected gain") or any(row[i] for row in rows[1:])
            for i, name in enumerate(rows[0])
        ]
        told[2] = any(r.name not in OPS for r in self)  # a call is no layer to swap
        rows = [tuple(cell for cell, keep in zip(row, told, strict=True) if keep) for row in rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row, tile in zip(rows, ("", *(r.tile for r in self)), strict=True):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines += ["  ".join(cells).rstrip(), *(f"    {line}" for line in tile.splitlines())]
        return "\n".join(lines)

    __repr__ = __str__


def explain(model_or_call: nn.Module | Callable[..., Any], *args: Any, **kwargs: Any) -> Records:
    """Tells which backend would run, and why no faster one can.

    Args:
        model_or_call: an `nn.Module`, or one of this library's ops.
        *args, **kwargs: for an op, the arguments of the call; it is not run. For a model, a sample
            of its own arguments: it infers that once, without a trace, and the answers are for the
            shapes that its layers see. Without a sample they are for the smallest there can be.

    Returns:
        One record for the call, or one per depthwise 3D convolution of the model (with a sample
        one per shape, for those that ran).

    Raises:
        TypeError: it is neither a module nor an op of this library.

    Example:
        >>> print(explain(depthwise_conv3d, x, w, padding=1))
        >>> print(explain(model, clip))
    """
    if isinstance(model_or_call, nn.Module):
        layers = [(name, m) for name, m in _in_use(model_or_call) if is_depthwise(m)]
        if not args and not kwargs:
            return Records(_explain_layer(name, layer) for name, layer in layers)
        return Records(_explain_run(model_or_call, layers, args, kwargs))
    name = getattr(model_or_call, "__name__", None)
    if name not in OPS:
        raise TypeError(
            f"explain: takes a module or one of {', '.join(sorted(OPS))} "
            f"(got {name or type(model_or_call).__name__})"
        )
    return Records([_explain_call(name, model_or_call, *args, **kwargs)])


def _in_use(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Its modules by name, but those in whose stead `fuse` has planted a graph."""
    named = list(model.named_modules())
    planted = tuple(
        f"{name}."
        for name, module in named
        if isinstance(getattr(vars(module).get("forward"), "__self__", None), fx.GraphModule)
    )
    return [(name, module) for name, module in named if not name.startswith(planted)]


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


def _explain_layer(name: str, layer: Any, input: Tensor | None = None) -> Record:
    shape = "" if input is None else "x".join(map(str, input.shape))
    transposed = isinstance(layer, DepthwiseConvTranspose3d)
    if not transposed and not isinstance(layer, DepthwiseConv3d):
        reason = refusal(layer) or "accelerate(model) would swap it"
        return Record(name, False, "pytorch", reason, shape=shape)
    padding = layer.padding
    if input is None:
        extent = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        input = layer.weight.new_empty((1, layer.in_channels, *extent))
    elif layer.padding_mode != "zeros":
        input = F.pad(input, layer._reversed_padding_repeated_twice)
        padding = 0
    weights = (input, layer.weight, layer.bias, layer.stride, padding)
    if transposed:
        settings = (*weights, layer.output_padding, layer.dilation)
        record = _explain_call(name, depthwise_conv_transpose3d, *settings)
    else:
        record = _explain_call(name, depthwise_conv3d, *weights, layer.dilation)
    gain = _expected_gain(layer, input) if shape and record.backend == "cpu" else ""
    return replace(record, shape=shape, gain=gain)


def _expected_gain(layer: Any, input: Tensor) -> str:
    if not isinstance(layer, DepthwiseConv3d) or input.dtype != torch.float32:
        return ""
    features = input if input.dim() == 5 else input.unsqueeze(0)
    assert _extension._C is not None  # as it would run the layer
    isa = _extension._C.current_isa()
    measured = expected(isa, is_channels_last(features), layer.kernel_size, layer.stride)
    return "" if measured is None else f"{measured[0]:.2g}x, {measured[1]:.2g}x in training"


def _explain_run(
    model: nn.Module, layers: list[tuple[str, nn.Module]], args: Any, kwargs: Any
) -> list[Record]:
    """Of the layers that run, in their order."""
    found: dict[Record, None] = {}

    def hook(name: str) -> Callable[..., None]:
        return lambda layer, inputs: found.setdefault(_explain_layer(name, layer, inputs[0]))

    hooks = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers]
    try:
        with inference(model):
            model(*args, **kwargs)
    finally:
        for handle in hooks:
            handle.remove()
    return list(found)
