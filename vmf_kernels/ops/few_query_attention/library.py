"""What the op is to PyTorch: schemas, fake kernels, gradients, FLOPs."""

import math
from typing import Any

import torch
from torch import Tensor

from vmf_kernels._gpu import Kernels
from vmf_kernels._triton import attention_refuses
from vmf_kernels.layout import empty_in_layout, is_channels_last, widen
from vmf_kernels.operator import Operator, differentiate_reference
from vmf_kernels.ops.few_query_attention import reference

TRITON = f"{__package__}.triton"


def saved(output: Tensor, lse: Tensor, exact: Tensor) -> tuple[Tensor, Tensor]:
    """What the backward op needs of the results of the forward op: output and log-sum-exp."""
    return (output if output.dtype == lse.dtype else exact), lse


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, features, ctx.num_heads, ctx.scale = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(query, features, *saved(*output))


def _backward(ctx: Any, grad_output: Tensor, *rest: Any) -> tuple[Any, ...]:
    grads = few_query_attention_backward(grad_output, *ctx.saved_tensors, ctx.num_heads, ctx.scale)
    return *grads, None, None


def _backward_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    grad_output, query, features, _, _, *ctx.options = inputs
    ctx.save_for_backward(grad_output, query, features)


def _double_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    def gradients(grad_output: Tensor, query: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        inputs = (query, features, *ctx.options)
        return differentiate_reference(reference.few_query_attention, inputs, grad_output)[:2]

    first = differentiate_reference(gradients, ctx.saved_tensors, grads)
    return *first, None, None, None, None


def _fake(query: Tensor, features: Tensor, num_heads: int, scale: float) -> tuple[Tensor, ...]:
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = widen(query).new_empty((query.shape[0], num_heads, query.shape[1]))
    exact = lse.new_empty(query.shape if query.dtype != lse.dtype else 0)
    return output, lse, exact


def _backward_fake(
    grad_output: Tensor, query: Tensor, features: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return (
        torch.empty_like(query, memory_format=torch.contiguous_format),
        empty_in_layout(features, tuple(features.shape), is_channels_last(features)),
    )


def _multiply_adds(query: Any, features: Any) -> int:
    """Of one product between all tokens and all positions: B * M * n * C."""
    return query[1] * math.prod(features)


few_query_attention = Operator(
    "few_query_attention(Tensor query, Tensor features, int num_heads, float scale) "
    "-> (Tensor, Tensor, Tensor)",
    fake=_fake,
    reference=reference.few_query_attention_forward,
    flops=lambda q, x, heads, scale, out: 4 * _multiply_adds(q, x),
    setup_context=_setup,
    backward=_backward,
    kernels=(Kernels(TRITON, lambda q, x, heads, *rest: attention_refuses(x, q, heads)),),
)

few_query_attention_backward = Operator(
    "few_query_attention_backward(Tensor grad_output, Tensor query, Tensor features, "
    "Tensor output, Tensor lse, int num_heads, float scale) -> (Tensor, Tensor)",
    fake=_backward_fake,
    reference=reference.few_query_attention_backward,
    flops=lambda g, q, x, out, lse, heads, scale, outs: 10 * _multiply_adds(q, x),
    setup_context=_backward_setup,
    backward=_double_backward,
    kernels=(Kernels(TRITON, lambda g, q, x, out, lse, heads, *_: attention_refuses(x, q, heads)),),
)
