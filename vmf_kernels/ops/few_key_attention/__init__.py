"""Every local feature reads few tokens (Mobile <- Former)."""

from typing import Any

from torch import Tensor

from vmf_kernels import _triton, tiles
from vmf_kernels.backends import Backend, Op, always, cpu_cannot_run
from vmf_kernels.checks import autocast, check_attention, check_tensors, default_scale
from vmf_kernels.ops.few_key_attention import library, reference

NAME = "few_key_attention"


def few_key_attention(
    features: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int = 1,
    scale: float | None = None,
    residual: bool = True,
) -> Tensor:
    """Cross-attention from all positions to few tokens, added to the features.

    Per head and position x: `x + softmax(x k^T scale) v`. This is the attention of
    Mobile<-Former in Mobile-Former (arXiv 2108.05895), without its projections.

    Args:
        features: (B, C, *spatial) with at least one spatial dimension, any floating dtype, any
            strides; the queries.
        key: (B, M, C), same dtype and device. Meant for few tokens (M <= 64).
        value: (B, M, C).
        num_heads: heads split C contiguously.
        scale: of the scores; (C / num_heads) ** -0.5 if None.
        residual: add the features to the result.

    Returns:
        (B, C, *spatial) in the dtype and memory format of the features. 16-bit inputs are
        accumulated in float32.

    Raises:
        ValueError: shapes, dtypes, devices or values do not fit.
        TypeError: an argument has the wrong type.
        NotImplementedError, RuntimeError: the backend that `use_backend` asks for cannot run it.
    """
    return OP(features, key, value, num_heads, scale, residual)


def _prepare(
    features: Tensor, key: Tensor, value: Tensor, num_heads: Any, scale: Any, residual: Any
) -> tuple[Any, ...]:
    features, key, value = autocast(features, key, value)
    check_tensors(NAME, features=features, key=key, value=value)
    check_attention(NAME, features, num_heads, key=key, value=value)
    if key.shape != value.shape:
        raise ValueError(
            f"{NAME}: key and value must have one shape "
            f"(got {tuple(key.shape)} and {tuple(value.shape)})"
        )
    scale = default_scale(NAME, scale, features.shape[1], num_heads)
    return features, key, value, num_heads, scale, bool(residual)


def _triton_refuses(
    features: Tensor, key: Tensor, value: Tensor, num_heads: int, *rest: Any
) -> str | None:
    return _triton.attention_refuses(features, key, num_heads)


def _tile(features: Tensor, *rest: Any) -> str:
    return tiles.told(NAME, "forward", features, channels=features.shape[1])


OP = Op(
    NAME,
    _prepare,
    (
        Backend("cpu", cpu_cannot_run, library.few_key_attention, "cpu"),
        Backend(
            "triton", _triton.cannot_run(_triton_refuses), library.few_key_attention, how=_tile
        ),
        Backend("reference", always, reference.few_key_attention),
    ),
)
