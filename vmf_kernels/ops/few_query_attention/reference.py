"""The definition of correct: plain PyTorch, any device, any floating dtype."""

import torch
from torch import Tensor

from vmf_kernels.layout import is_channels_last, to_layout, widen


def few_query_attention(
    query: Tensor, features: Tensor, num_heads: int, scale: float, value: Tensor | None = None
) -> Tensor:
    """Per head `softmax(q x^T scale) x`, or `... v`; 16-bit dtypes accumulate in float32."""
    q, x = _heads(query, features, num_heads)
    v = x if value is None else _heads(query, value, num_heads)[1]
    attention = torch.softmax(q @ x.mT * scale, dim=-1)
    return (attention @ v).transpose(1, 2).flatten(2).to(query.dtype)


def few_query_attention_forward(
    query: Tensor, features: Tensor, num_heads: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and what the gradient needs in float32 or wider.

    Returns:
        The output (B, M, C); the log-sum-exp of each row of scores (B, heads, M); for 16-bit
        dtypes the output before it was rounded, else an empty tensor.
    """
    q, x = _heads(query, features, num_heads)
    scores = q @ x.mT * scale
    lse = torch.logsumexp(scores, dim=-1)
    output = torch.exp(scores - lse.unsqueeze(-1)) @ x
    exact = output.transpose(1, 2).reshape(query.shape)
    if exact.dtype == query.dtype:
        return exact, lse, exact.new_empty(0)
    return exact.to(query.dtype), lse, exact


def few_query_attention_backward(
    grad_output: Tensor,
    query: Tensor,
    features: Tensor,
    output: Tensor,
    lse: Tensor,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of the query and of the features; the probabilities come back from `lse`.

    The features have two roles, keys and values: their gradient is the sum
    `p^T g + (p (g x^T - (g . out))) ^T q scale`. `output`, in float32 or wider, would give g . out;
    here it comes from p.
    """
    q, x = _heads(query, features, num_heads)
    g, _ = _heads(grad_output, features, num_heads)
    p = torch.exp(q @ x.mT * scale - lse.unsqueeze(-1))
    grad_p = g @ x.mT
    grad_scores = p * (grad_p - (grad_p * p).sum(-1, keepdim=True)) * scale
    grad_query = (grad_scores @ x).transpose(1, 2).reshape(query.shape)
    grad_x = p.mT @ g + grad_scores.mT @ q  # (B, heads, n, C / heads)
    grad_features = grad_x.transpose(2, 3).reshape(features.shape)
    return (
        grad_query.to(query.dtype),
        to_layout(grad_features.to(features.dtype), is_channels_last(features)),
    )


def _heads(tokens: Tensor, features: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """(B, M, C) and (B, C, *spatial) as (B, heads, M, C / heads) and (B, heads, n, C / heads)."""
    tokens = widen(tokens).unflatten(2, (num_heads, -1)).transpose(1, 2)
    x = widen(features).flatten(2).unflatten(1, (num_heads, -1)).mT
    return tokens, x
