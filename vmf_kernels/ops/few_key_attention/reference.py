"""The definition of correct: plain PyTorch, any device, any floating dtype."""

import torch
from torch import Tensor

from vmf_kernels.layout import is_channels_last, to_layout, widen


def few_key_attention(
    features: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float, residual: bool
) -> Tensor:
    """Per head `softmax(x k^T scale) v`, plus x; 16-bit dtypes accumulate in float32."""
    x, k, v = _heads(features, key, value, num_heads)
    output = torch.softmax(x @ k.mT * scale, dim=-1) @ v
    if residual:
        output = x + output
    return _like_features(output, features)


def few_key_attention_backward(
    grad_output: Tensor,
    features: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    scale: float,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the features, the keys and the values; the probabilities are recomputed."""
    x, k, v = _heads(features, key, value, num_heads)
    g, _, _ = _heads(grad_output, key, value, num_heads)
    p = torch.softmax(x @ k.mT * scale, dim=-1)  # (B, heads, n, M)
    grad_p = g @ v.mT
    grad_scores = p * (grad_p - (grad_p * p).sum(-1, keepdim=True)) * scale
    grad_x = grad_scores @ k
    if residual:
        grad_x = grad_x + g
    grad_key = (grad_scores.mT @ x).transpose(1, 2).reshape(key.shape)
    grad_value = (p.mT @ g).transpose(1, 2).reshape(value.shape)
    return _like_features(grad_x, features), grad_key.to(key.dtype), grad_value.to(value.dtype)


def _heads(
    features: Tensor, key: Tensor, value: Tensor, num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Features as (B, heads, n, C / heads); keys and values as (B, heads, M, C / heads)."""
    x = widen(features).flatten(2).unflatten(1, (num_heads, -1)).mT
    k = widen(key).unflatten(2, (num_heads, -1)).transpose(1, 2)
    v = widen(value).unflatten(2, (num_heads, -1)).transpose(1, 2)
    return x, k, v


def _like_features(x: Tensor, features: Tensor) -> Tensor:
    """(B, heads, n, C / heads) in the shape, dtype and memory format of `features`."""
    x = x.mT.reshape(features.shape[0], features.shape[1], *features.shape[2:])
    return to_layout(x.to(features.dtype), is_channels_last(features))
