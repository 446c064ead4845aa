"""How a call is checked, and which backend runs it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vmf_kernels import _cuda, _extension, _triton
from vmf_kernels.backends import Backend, Op, always, current_backend
from vmf_kernels.backends import cpu_cannot_run as no_cpu_kernel
from vmf_kernels.checks import autocast, check_tensors, wants_grad
from vmf_kernels.ops.depthwise_conv3d import cuda, library, reference
from vmf_kernels.ops.depthwise_conv3d.geometry import NAME, as_batch, normalise, output_size

# `prepare` in a tenth of the time; None for every call that is not an ordinary one.
_normalise = getattr(_extension._C, "normalise_depthwise_conv3d", None)
# Why PyTorch's forward is faster for prepared arguments: depthwise_conv3d_crossover.h.
_slower = getattr(_extension._C, "slower_depthwise_conv3d", None)


def prepare(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any
) -> tuple[Any, ...]:
    """The arguments of a call checked, in their normal forms; cast under autocast."""
    if _normalise is not None and not torch.compiler.is_compiling():
        geometry = _normalise(input, weight, bias, stride, padding, dilation)
        if geometry is not None:
            return input, weight, bias, *geometry
    input, weight, bias = autocast(input, weight, bias)
    if bias is None:
        check_tensors(NAME, input=input, weight=weight)
    else:
        check_tensors(NAME, input=input, weight=weight, bias=bias)
    if weight.dim() != 5 or weight.shape[1] != 1 or 0 in weight.shape:
        raise ValueError(
            f"{NAME}: weight must be (m*C, 1, kT, kH, kW) without an empty dimension "
            f"(got shape {tuple(weight.shape)})"
        )
    check_input(NAME, input)
    channels = input.shape[-4]
    if channels == 0 or weight.shape[0] % channels:
        raise ValueError(
            f"{NAME}: the weight's first dimension must be a multiple of the input's channels "
            f"(got {weight.shape[0]} and {channels})"
        )
    check_bias(NAME, bias, weight.shape[0])
    stride, padding, dilation = normalise(weight.shape[2:], stride, padding, dilation)
    output_size(input.shape, weight.shape, stride, padding, dilation)
    return input, weight, bias, stride, padding, dilation


def check_input(op: str, input: Tensor) -> None:
    """Raises ValueError unless the input is a batch or one sample."""
    if input.dim() not in (4, 5):
        raise ValueError(
            f"{op}: input must be (N, C, T, H, W) or (C, T, H, W) (got shape {tuple(input.shape)})"
        )


def check_bias(op: str, bias: Tensor | None, channels: int) -> None:
    """Raises ValueError unless a bias has one value for each of the output's channels."""
    if bias is not None and bias.shape != (channels,):
        raise ValueError(
            f"{op}: bias must have one value per output channel "
            f"(got shape {tuple(bias.shape)} for {channels} channels)"
        )


def unbatched(run: Any) -> Any:
    """Lets a function of (N, C, T, H, W) take (C, T, H, W) too."""

    def wrapper(input: Tensor, *rest: Any) -> Tensor:
        if input.dim() == 4:
            return run(input.unsqueeze(0), *rest).squeeze(0)
        return run(input, *rest)

    def plan(input: Tensor, *rest: Any) -> Any:
        return run.plan(input, *rest) if input.dim() == 5 else None

    if hasattr(run, "plan"):
        wrapper.plan = plan  # type: ignore[attr-defined]
    return wrapper


def cpu_cannot_run(input: Tensor, *rest: Any) -> Exception | None:
    """Why the C++ kernels cannot run prepared arguments, or None."""
    if input.dtype not in library.CPU_DTYPES:
        return NotImplementedError(f"its dtypes are {library.CPU_DTYPES} (got {input.dtype})")
    return no_cpu_kernel(input)


def pytorch_is_not_faster(*prepared: Any) -> Exception | None:
    """Why `pytorch`, which stands for calls that were measured, does not run others."""
    if cpu_slower(*prepared) is None:
        return NotImplementedError("it was not measured to be faster")
    return None


def cpu_slower(input: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> str | None:
    """Without gradients PyTorch is ahead in few cases; in training never."""
    if _slower is None or wants_grad(input, weight) or torch.compiler.is_compiling():
        return None
    reason: str | None = _slower(input, weight, bias, *geometry)
    return reason


def unless_alone(slower: Callable[..., str | None]) -> Callable[..., str | None]:
    """`slower`, of kernels beside Triton's, where there is Triton."""
    return lambda *prepared: None if _triton.missing() else slower(*prepared)


def gpu_operators(forced: library.Operators) -> library.Operators:
    """Those that run now: of one kind of kernels only where that is asked for by name."""
    return library.OPERATORS if current_backend() == "auto" else forced


def how(forced: library.Operators) -> Callable[..., str]:
    """Says which GPU kernels run each part of a call."""
    return lambda input, *rest: gpu_operators(forced).told(as_batch(input), *rest)


OP = Op(
    NAME,
    prepare,
    (
        Backend("cpu", cpu_cannot_run, unbatched(library.depthwise_conv3d), "cpu", cpu_slower),
        Backend(
            "cuda",
            _cuda.cannot_run(cuda.FORWARD.refuses),
            unbatched(library.CUDA_OPERATORS.forward),
            "cuda",
            unless_alone(cuda.FORWARD.slower),
            how(library.CUDA_OPERATORS),
            auto=unbatched(library.depthwise_conv3d),
        ),
        Backend(
            "triton",
            _triton.cannot_run(library.triton_refuses),
            unbatched(library.TRITON_OPERATORS.forward),
            how=how(library.TRITON_OPERATORS),
            auto=unbatched(library.depthwise_conv3d),
        ),
        Backend("pytorch", pytorch_is_not_faster, unbatched(reference.pytorch), "cpu"),
        Backend("reference", always, unbatched(reference.depthwise_conv3d)),
    ),
)
