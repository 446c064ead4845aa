"""Few tokens read every local feature (Mobile -> Former)."""

from typing import Any

import torch
from torch import Tensor

from vmf_kernels import _triton, tiles
from vmf_kernels.backends import Backend, Op, always, cpu_cannot_run
from vmf_kernels.checks import autocast, check_attention, check_tensors, default_scale
from vmf_kernels.ops.few_query_attention import library, reference

NAME = "few_query_attention"


def few_query_attention(
    query: Tensor,
    features: Tensor,
    num_heads: int = 1,
    scale: float | None = None,
    *,
    value: Tensor | None = None,
) -> Tensor:
    """Cross-attention from few query tokens to all positions, which are keys and values at once.

    Per head, over all n positions x of the features: `softmax(q x^T scale) x`. This is the
    attention of Mobile->Former in Mobile-Former (arXiv 2108.05895), without its projections. With
    a `value` of its own it is attention pooling by learned queries, `softmax(q x^T scale) v`.

    Args:
        query: (B, M, C), any floating dtype. Meant for few tokens (M <= 64).
        features: (B, C, *spatial) with at least one spatial dimension, any strides; same dtype
            and device.
        num_heads: heads split C contiguously.
        scale: of the scores; (C / num_heads) ** -0.5 if None.
        value: (B, D, *spatial) to be averaged in place of the features; num_heads divides D. It has
            no kernel: PyTorch's matrix products run. If keys and values are projections of the same
            features, let queries and outputs be projected instead (README of this op).

    Returns:
        (B, M, C), or (B, M, D) with a value, in the dtype of the inputs. 16-bit inputs are
        accumulated in float32.

    Raises:
        ValueError: shapes, dtypes, devices or values do not fit.
        TypeError: an argument has the wrong type.
        NotImplementedError, RuntimeError: the backend that `use_backend` asks for cannot run it.
    """
    if value is not None:
        return OF_VALUE(query, features, num_heads, scale, value)
    return OP(query, features, num_heads, scale)


def _prepare(query: Tensor, features: Tensor, num_heads: Any, scale: Any) -> tuple[Any, ...]:
    query, features = autocast(query, features)
    check_tensors(NAME, query=query, features=features)
    check_attention(NAME, features, num_heads, query=query)
    return query, features, num_heads, default_scale(NAME, scale, features.shape[1], num_heads)


def _prepare_value(
    query: Tensor, features: Tensor, num_heads: Any, scale: Any, value: Tensor
) -> tuple[Any, ...]:
    query, features, value = autocast(query, features, value)
    check_tensors(NAME, query=query, features=features, value=value)
    check_attention(NAME, features, num_heads, query=query)
    wanted = (features.shape[0], *features.shape[2:])
    if value.dim() != features.dim() or (value.shape[0], *value.shape[2:]) != wanted:
        raise ValueError(
            f"{NAME}: value must be (B, D, *spatial) with batch and positions of the features "
            f"(got shapes {tuple(value.shape)} and {tuple(features.shape)})"
        )
    if value.shape[1] == 0 or value.shape[1] % num_heads:
        raise ValueError(
            f"{NAME}: num_heads must divide the value's channels "
            f"(got D={value.shape[1]}, num_heads={num_heads})"
        )
    scale = default_scale(NAME, scale, features.shape[1], num_heads)
    return query, features, num_heads, scale, value


def _run(*prepared: Any) -> Tensor:
    return library.few_query_attention(*prepared)[0]


def _plan(*prepared: Any) -> Any:
    run: Any = library.few_query_attention.plan(*prepared)
    return lambda *prepared: run(*prepared)[0]


_run.plan = _plan  # type: ignore[attr-defined]


def _triton_refuses(query: Tensor, features: Tensor, num_heads: int, *rest: Any) -> str | None:
    return _triton.attention_refuses(features, query, num_heads)


def _tile(query: Tensor, features: Tensor, *rest: Any) -> str:
    return tiles.told(NAME, "forward", features, channels=features.shape[1])


# float32 products of wide heads run outside the matrix units; with few positions nothing hides it.
# On an H200 8x192x8x7x7 with 2 heads took 1.3 (forward) and 1.8 times (training) what matmul took.
WIDE_HEAD, FEW_POSITIONS = 96, 392


def _triton_slower(query: Tensor, features: Tensor, num_heads: int, *rest: Any) -> str | None:
    depth, positions = features.shape[1] // num_heads, features.shape[2:].numel()
    if features.dtype != torch.float32 or depth < WIDE_HEAD or positions > FEW_POSITIONS:
        return None
    return (
        f"in float32, with at least {WIDE_HEAD} channels a head (got {depth}) and at most "
        f"{FEW_POSITIONS} positions (got {positions}), PyTorch's matmul is faster"
    )


OP = Op(
    NAME,
    _prepare,
    (
        Backend("cpu", cpu_cannot_run, _run, "cpu"),
        Backend(
            "triton", _triton.cannot_run(_triton_refuses), _run, slower=_triton_slower, how=_tile
        ),
        Backend("reference", always, reference.few_query_attention),
    ),
)

OF_VALUE = Op(
    NAME,
    _prepare_value,
    (Backend("reference", always, reference.few_query_attention),),
    extends=OP,
)
