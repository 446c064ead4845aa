"""Where the time of a network goes: self time of PyTorch's operators, by part of the network.

Ranges around the modules say which part an operator of the forward pass belongs to. An operator of
the backward pass belongs to the part whose forward recorded it: autograd gives both one number.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from vmf.models.bridges import Former, FormerToMobile, MobileToFormer
from vmf.models.layers import DynamicReLU, ReLU, ReLU6

DEPTHWISE, CONVOLUTION = "depthwise convolution", "other convolutions"
ATTENTION, DYNAMIC_RELU = "attention and tokens", "dynamic ReLU"
NORM, ELEMENTWISE, OPTIMIZER = "norm", "elementwise", "optimizer"
REST = "rest"
PARTS = (DEPTHWISE, CONVOLUTION, ATTENTION, DYNAMIC_RELU, NORM, ELEMENTWISE, OPTIMIZER, REST)
FORWARD, BACKWARD = "forward", "backward"

_PREFIX = "part: "
_BACKWARD = "autograd::engine::evaluate_function: "
# Operators that networks call between their modules.
_ELEMENTWISE = ("add", "mul", "relu", "silu", "sigmoid", "hardswish", "hardsigmoid", "clamp")


def part_of(module: nn.Module) -> str | None:
    """The part that everything inside a module belongs to; None if it depends."""
    if isinstance(module, nn.Conv3d):
        return DEPTHWISE if 1 < module.groups == module.in_channels else CONVOLUTION
    if isinstance(module, MobileToFormer | FormerToMobile | Former):
        return ATTENTION
    if isinstance(module, DynamicReLU):
        return DYNAMIC_RELU
    if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
        return NORM
    if isinstance(module, ReLU | ReLU6 | nn.ReLU | nn.ReLU6 | nn.SiLU | nn.Hardswish | nn.Sigmoid):
        return ELEMENTWISE
    return None


def breakdown(
    network: nn.Module, work: Callable[[], None], steps: int = 2
) -> dict[tuple[str, str], float]:
    """Seconds of self time per call of `work`, by part and direction.

    Args:
        network: what `work` runs; not a compiled one.
        work: an inference or a training step. It must have run before.
        steps: calls to average over.
    """
    with _ranges(network), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            work()
    found = dict.fromkeys(((part, way) for part in PARTS for way in (FORWARD, BACKWARD)), 0.0)
    for event, part, direction in _attributed(profiler.events()):
        found[part, direction] += event.self_cpu_time_total / 1e6 / steps
    return {key: seconds for key, seconds in found.items() if seconds}


def _attributed(events: Any) -> Iterator[tuple[Any, str, str]]:
    """Each event with its part and direction."""
    ordered = sorted(events, key=lambda event: event.time_range.start)
    recorded: dict[int, str] = {}  # by autograd's number: the part that recorded the node
    for event in ordered:
        if event.sequence_nr >= 0 and not _backward_of(event):
            # The last operator before the number goes up is the one that made the node.
            recorded[event.sequence_nr] = _forward_part(event)
    for event in ordered:
        if node := _backward_of(event):
            yield event, recorded.get(node.sequence_nr, REST), BACKWARD
        else:
            yield event, _forward_part(event), FORWARD


def _line(event: Any) -> Iterator[Any]:
    """The event and those around it, inside out."""
    while event is not None:
        yield event
        event = event.cpu_parent


def _backward_of(event: Any) -> Any:
    return next((e for e in _line(event) if e.name.startswith(_BACKWARD)), None)


def _forward_part(event: Any) -> str:
    """The outermost part around an event; without one, by the outermost operator's name."""
    line = list(_line(event))
    for around in reversed(line):
        if around.name.startswith(_PREFIX):
            return around.name.removeprefix(_PREFIX)
        if around.name.startswith("Optimizer."):
            return OPTIMIZER
    name = line[-1].name.removeprefix("aten::").rstrip("_")
    if "conv" in name:
        return CONVOLUTION
    return ELEMENTWISE if name in _ELEMENTWISE else REST


@contextmanager
def _ranges(network: nn.Module) -> Iterator[None]:
    """Names the parts in the profile, by hooks that are gone afterwards."""
    handles = []
    for module in network.modules():
        if not (part := part_of(module)):
            continue
        open_ranges: list[Any] = []

        def enter(*_: Any, part: str = part, open_ranges: list[Any] = open_ranges) -> None:
            open_ranges.append(record_function(_PREFIX + part))
            open_ranges[-1].__enter__()

        def leave(*_: Any, open_ranges: list[Any] = open_ranges) -> None:
            open_ranges.pop().__exit__(None, None, None)

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
