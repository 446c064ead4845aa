"""What the op is to PyTorch: schemas, fake kernels, gradients, FLOPs."""

import math
from typing import Any

import torch
from torch import Tensor

from vmf_kernels._gpu import Kernels
from vmf_kernels._triton import attention_refuses
from vmf_kernels.layout import empty_in_layout, is_channels_last
from vmf_kernels.operator import Operator, differentiate_reference
from vmf_kernels.ops.few_key_attention import reference

TRITON = f"{__package__}.triton"


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, key, value, *ctx.options = inputs
    ctx.save_for_backward(features, key, value)


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    grads = few_key_attention_backward(grad_output, *ctx.saved_tensors, *ctx.options)
    return *grads, None, None, None


def _double_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    def gradients(grad_output: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = (*tensors, *ctx.options)
        return differentiate_reference(reference.few_key_attention, inputs, grad_output)[:3]

    first = differentiate_reference(gradients, ctx.saved_tensors, grads)
    return *first, None, None, None


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_output, features, key, value, *ctx.options = inputs
    ctx.save_for_backward(grad_output, features, key, value)


def _like(features: Tensor) -> Tensor:
    return empty_in_layout(features, tuple(features.shape), is_channels_last(features))


def _backward_fake(
    grad_output: Tensor, features: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    dense = torch.contiguous_format
    return (
        _like(features),
        torch.empty_like(key, memory_format=dense),
        torch.empty_like(value, memory_format=dense),
    )


def _multiply_adds(key: Any, features: Any) -> int:
    """Of one product between all tokens and all positions: B * M * n * C."""
    return key[1] * math.prod(features)


few_key_attention: Operator = Operator(
    "few_key_attention(Tensor features, Tensor key, Tensor value, int num_heads, float scale, "
    "bool residual) -> Tensor",
    fake=lambda features, *rest: _like(features),
    reference=reference.few_key_attention,
    flops=lambda x, k, v, heads, scale, residual, out: 4 * _multiply_adds(k, x),
    setup_context=_setup,
    backward=_backward,
    kernels=(Kernels(TRITON, lambda x, k, v, heads, *rest: attention_refuses(x, k, heads)),),
)

few_key_attention_backward = Operator(
    "few_key_attention_backward(Tensor grad_output, Tensor features, Tensor key, Tensor value, "
    "int num_heads, float scale, bool residual) -> (Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    reference=reference.few_key_attention_backward,
    flops=lambda g, x, k, v, heads, scale, residual, out: 10 * _multiply_adds(k, x),
    setup_context=_backward_setup,
    backward=_double_backward,
    kernels=(Kernels(TRITON, lambda g, x, k, v, heads, *rest: attention_refuses(x, k, heads)),),
)
