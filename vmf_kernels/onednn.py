"""oneDNN's convolutions with what follows them in their pass: `torch.ops.mkldnn`, for inference."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

# By name: oneDNN's name, its scalars, its algorithm.
ACTIVATIONS: dict[str | None, tuple[str, list[float], str | None]] = {
    None: ("none", [], None),
    "relu": ("relu", [], None),
    "relu6": ("hardtanh", [0.0, 6.0], None),
    "hardswish": ("hardswish", [], None),
    "silu": ("swish", [], None),
    "gelu": ("gelu", [], "none"),
}
AFTER_RESIDUAL = (None, "relu")  # the activations that may follow an addition


def can_run(input: Tensor, weight: Tensor, residual: Tensor | None) -> bool:
    """Whether it can convolve these, rather than PyTorch whatever follows."""
    if (
        torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or is_in_torch_dispatch_mode()  # a counter of FLOPs, fake tensors: they know F.conv3d
        or torch._C._are_functorch_transforms_active()
    ):
        return False
    tensors = (input, weight) if residual is None else (input, weight, residual)
    plain = all(
        type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" and t.numel()
        for t in tensors
    )
    if not plain or input.dim() != 5 or any(t.dtype != torch.float32 for t in tensors):
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    backend = torch.backends.mkldnn
    return bool(backend.is_available() and backend.enabled)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    activation: str | None,
    residual: Tensor | None,
    overwrites: bool,
) -> Tensor:
    """`activation(F.conv3d(...) + residual)`, in the residual's memory if it `overwrites` that.

    Args:
        input: (N, C, T, H, W), that `can_run` lets through, as the rest.
        weight, bias, stride, dilation, groups: as of `F.conv3d`.
        padding: an int, or three.
        activation: a key of ACTIVATIONS; of AFTER_RESIDUAL, if there is a residual.
        residual: like the output, or None.
        overwrites: whether the residual may be lost.
    """
    ops = torch.ops.mkldnn
    settings = (padding, stride, dilation, groups)
    if residual is None:
        return ops._convolution_pointwise(input, weight, bias, *settings, *ACTIVATIONS[activation])
    after: tuple[Any, ...] = ("add", 1.0, activation, [], None)
    if overwrites:
        return ops._convolution_pointwise_.binary(residual, input, weight, bias, *settings, *after)
    return ops._convolution_pointwise.binary(input, residual, weight, bias, *settings, *after)
