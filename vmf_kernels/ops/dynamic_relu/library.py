"""What the op is to PyTorch: schemas, fake kernels, gradients, FLOPs."""

import math
from typing import Any

import torch
from torch import Tensor

from vmf_kernels._gpu import Kernels
from vmf_kernels.layout import empty_in_layout, is_channels_last
from vmf_kernels.operator import Operator, differentiate_reference
from vmf_kernels.ops.dynamic_relu import reference

TRITON = f"{__package__}.triton"


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    return dynamic_relu_backward(grad_output, *ctx.saved_tensors)


def _double_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    def gradients(grad_output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        return differentiate_reference(reference.dynamic_relu, inputs, grad_output)

    return differentiate_reference(gradients, ctx.saved_tensors, grads)


def _like(features: Tensor) -> Tensor:
    return empty_in_layout(features, tuple(features.shape), is_channels_last(features))


def _backward_fake(
    grad_output: Tensor, features: Tensor, a1: Tensor, a2: Tensor
) -> tuple[Tensor, ...]:
    dense = torch.contiguous_format
    return (
        _like(features),
        torch.empty_like(a1, memory_format=dense),
        torch.empty_like(a2, memory_format=dense),
    )


dynamic_relu: Operator = Operator(
    "dynamic_relu(Tensor features, Tensor a1, Tensor a2) -> Tensor",
    fake=lambda features, a1, a2: _like(features),
    reference=reference.dynamic_relu,
    flops=lambda x, a1, a2, out: 2 * math.prod(x),
    setup_context=_setup,
    backward=_backward,
    kernels=(Kernels(TRITON),),
)

dynamic_relu_backward = Operator(
    "dynamic_relu_backward(Tensor grad_output, Tensor features, Tensor a1, Tensor a2) "
    "-> (Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    reference=reference.dynamic_relu_backward,
    flops=lambda g, x, a1, a2, out: 4 * math.prod(x),
    setup_context=_setup,
    backward=_double_backward,
    kernels=(Kernels(TRITON),),
)
