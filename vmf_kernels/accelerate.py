"""One line for a model that is there already: its depthwise layers run our kernels."""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from vmf_kernels import _extension
from vmf_kernels.layers import (
    AcceleratedConv3d,
    AcceleratedConvTranspose3d,
    DepthwiseConv3d,
    DepthwiseConvTranspose3d,
)
from vmf_kernels.ops.depthwise_conv3d.geometry import normalise

Model = TypeVar("Model", bound=nn.Module)
FORMATS = (torch.contiguous_format, torch.channels_last_3d)
ROUNDS = 5
ACCELERATED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv3d: AcceleratedConv3d,
    nn.ConvTranspose3d: AcceleratedConvTranspose3d,
}
ORIGINAL = {accelerated: original for original, accelerated in ACCELERATED.items()}
_log = logging.getLogger("vmf_kernels")


def accelerate(model: Model, memory_format: Any = None, sample: Any = None) -> Model:
    """Lets every depthwise 3D convolution of a model run our kernels, in place.

    An `nn.Conv3d` or `nn.ConvTranspose3d` with `groups == in_channels` stays the same object with
    the same parameters, buffers, hooks, name, settings and training mode; only its class changes.
    So optimizers, checkpoints and references to layers stay valid. Which backend runs a call is
    decided call by call, PyTorch's own where it was measured to be faster. What is left alone, and
    why, is told by `explain(model)`. Twice is once; `restore` undoes it.

    Args:
        model: any module; also one layer.
        memory_format: `torch.contiguous_format` or `torch.channels_last_3d` for all parameters of
            five dimensions, which features follow wherever PyTorch's convolutions do; "auto" times
            inference of the sample in both and takes the faster one (told to the logger
            `vmf_kernels`, level INFO). None leaves it.
        sample: for "auto": a clip (N, C, T, H, W), or a tuple of the model's arguments.

    Returns:
        The model itself.

    Raises:
        TypeError: it is no module.
        ValueError: another memory format, "auto" without a sample, or a sample without it.

    Example:
        >>> model = accelerate(model, memory_format="auto", sample=clip)
    """
    _check(model, "accelerate")
    if memory_format not in (None, "auto", *FORMATS):
        raise ValueError(
            "accelerate: memory_format must be None, 'auto', torch.contiguous_format or "
            f"torch.channels_last_3d (got {memory_format!r})"
        )
    if (memory_format == "auto") != (sample is not None):
        raise ValueError(
            "accelerate: a sample and memory_format='auto', which times it, go together (got "
            f"memory_format={memory_format!r} and {'no' if sample is None else 'a'} sample)"
        )
    swap(model)
    if not any(type(layer) in ORIGINAL for layer in model.modules()):
        _log.warning("accelerate: nothing to do: no depthwise 3D convolution that it can swap")
    elif not _extension.LOADED and not torch.cuda.is_available():
        _log.warning("accelerate: the layers run in plain PyTorch: %s", _extension.REASON)
    if memory_format == "auto":
        memory_format = _faster(model, sample if isinstance(sample, tuple) else (sample,))
    if memory_format is not None:
        _lay(model, memory_format)
    return model


def swap(model: Model) -> Model:
    """What `accelerate` does to the layers, in silence."""
    for layer in model.modules():
        if is_depthwise(layer) and refusal(layer) is None:
            layer.__class__ = ACCELERATED[type(layer)]
    return model


def _lay(model: nn.Module, format: torch.memory_format) -> None:
    """Puts a model's parameters and buffers of five dimensions into a format.

    `model.to(memory_format=torch.channels_last_3d)` refuses those of four.
    """
    model._apply(lambda t: t.to(memory_format=format) if t.dim() == 5 else t)


def restore(model: Model) -> Model:
    """Undoes `accelerate`, in place: its layers are of PyTorch's own classes again.

    The memory format stays. A layer that something has given another class in between
    (a parametrization, FSDP) cannot be restored before that is removed: a warning names it.

    Returns:
        The model itself.

    Raises:
        TypeError: it is no module.
    """
    _check(model, "restore")
    wrapped = []
    for name, layer in model.named_modules():
        if type(layer) in ORIGINAL:
            layer.__class__ = ORIGINAL[type(layer)]
        elif isinstance(layer, tuple(ORIGINAL)):
            wrapped.append(f"{name} ({type(layer).__name__})")
    if wrapped:
        warnings.warn(
            f"restore: of another class since accelerate, so left alone: {', '.join(wrapped)}",
            stacklevel=2,
        )
    return model


def is_depthwise(layer: nn.Module) -> bool:
    """Whether it is a depthwise 3D convolution, transposed or not, of whatever class."""
    channels = getattr(layer, "in_channels", None)  # quantized ones are no nn.Conv3d
    size = getattr(layer, "kernel_size", None)
    three = isinstance(size, tuple) and len(size) == 3
    return bool(three and isinstance(channels, int) and getattr(layer, "groups", 0) == channels > 1)


def refusal(layer: nn.Module) -> str | None:
    """Why `accelerate` leaves a depthwise layer alone, or None."""
    if not isinstance(layer, nn.Conv3d | nn.ConvTranspose3d):
        return f"its class {type(layer).__module__}.{type(layer).__name__} is no nn.Conv3d"
    if isinstance(layer, DepthwiseConv3d | DepthwiseConvTranspose3d):
        return "it is one of ours"
    if parametrize.is_parametrized(layer):
        return "its parameters are parametrized"
    if isinstance(layer, LazyModuleMixin):
        return "it is lazy: run the model once first"
    if type(layer) not in ACCELERATED:
        base = nn.Conv3d if isinstance(layer, nn.Conv3d) else nn.ConvTranspose3d
        changed = ("forward", "_conv_forward", "_output_padding")
        own = any(getattr(type(layer), m, None) is not getattr(base, m, None) for m in changed)
        return f"its class {type(layer).__name__} " + (
            "overrides forward" if own else f"is derived from nn.{base.__name__}"
        )
    if "forward" in vars(layer):
        return "its forward was replaced"
    if all(k == 1 for k in layer.kernel_size):
        return "a 1x1x1 kernel is one multiplication an element, for which PyTorch is fast"
    if layer.weight.is_complex():
        return f"there is no kernel for {layer.weight.dtype}"
    try:
        normalise(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """The model as it infers, without a trace: no gradients, no changed statistics."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _faster(model: nn.Module, sample: tuple[Any, ...]) -> torch.memory_format:
    """The format in which inference of the sample takes less time."""
    seconds: dict[torch.memory_format, list[float]] = {format: [] for format in FORMATS}
    with inference(model):
        for done in range(ROUNDS + 1):
            for format in FORMATS:
                _lay(model, format)
                start = time.perf_counter()
                model(*sample)
                if any(isinstance(x, Tensor) and x.is_cuda for x in sample):
                    torch.cuda.synchronize()
                if done:  # the first round warms up
                    seconds[format].append(time.perf_counter() - start)
    medians = {format: median(times) for format, times in seconds.items()}
    best = min(FORMATS, key=medians.__getitem__)
    told = ", ".join(f"{format} {1e3 * t:.1f} ms" for format, t in medians.items())
    _log.info("accelerate: %s for the whole model (inference of the sample: %s)", best, told)
    return best


def _check(model: Any, name: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name}: takes an nn.Module (got {type(model).__name__})")
