"""Shapes of the two attentions, their tensors, and PyTorch's own attention as truth and peer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.compare import assert_accurate, gradients, in_dtype, widened
from tests.ops.layouts import DENSE
from vmf_kernels.ops.few_key_attention import library as key_op
from vmf_kernels.ops.few_query_attention import library as query_op


@dataclass(frozen=True)
class Attention:
    name: str
    tokens: int = 6
    channels: int = 12
    heads: int = 2
    spatial: tuple[int, ...] = (3, 4, 5)
    batch: int = 2
    scale: float | None = None
    residual: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def factor(self) -> float:
        return (self.channels / self.heads) ** -0.5 if self.scale is None else self.scale

    def normal(self, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(dtype)

    def features(self, dtype: torch.dtype) -> Tensor:
        return self.normal(dtype, self.batch, self.channels, *self.spatial)

    def token_values(self, dtype: torch.dtype) -> Tensor:
        return self.normal(dtype, self.batch, self.tokens, self.channels)


CASES = [
    Attention("one_token", tokens=1),
    Attention("tokens_3", tokens=3),
    Attention("tokens_4", tokens=4),
    Attention("tokens_5", tokens=5),
    Attention("tokens_7_in_two_groups", tokens=7),
    Attention("tokens_8", tokens=8),
    Attention("tokens_9", tokens=9),
    Attention("tokens_7_wide_heads_too_many_for_registers", tokens=7, channels=40),
    Attention("tokens_13_wide_heads_too_many_for_registers", tokens=13, channels=40),
    Attention("tokens_16", tokens=16),
    Attention("tokens_64", tokens=64),
    Attention("tokens_65_beyond_the_fast_path", tokens=65),
    Attention("tokens_200", tokens=200),
    Attention("one_position", spatial=(1, 1, 1)),
    Attention("positions_2", spatial=(2,)),
    Attention("positions_15", spatial=(3, 5)),
    Attention("positions_17_in_a_row", spatial=(17,)),
    Attention("positions_1021", spatial=(1021,)),
    Attention("one_head", heads=1),
    Attention("a_head_per_channel", heads=12),
    Attention("odd_width_of_a_head", channels=15, heads=3),
    Attention("width_1", channels=1, heads=1),
    Attention("width_7", channels=7, heads=1),
    Attention("width_17_of_two_heads", channels=34),
    Attention("fewer_channels_than_a_square", channels=3, heads=1),
    Attention("channels_5_squares_overlap", channels=5, heads=1),
    Attention("width_3_of_two_heads", channels=6),
    Attention("width_8", channels=16),
    Attention("width_16_one_vector", channels=32),
    Attention("width_20_vectors_overlap", channels=40),
    Attention("width_44_vectors_overlap", channels=88, spatial=(2, 7, 7)),
    Attention("width_64", channels=128),
    Attention("width_72_vectors_in_two_parts", channels=72, heads=1),
    Attention("width_150_beyond_one_chain", channels=150, heads=1),
    Attention("blocks_2", channels=64, spatial=(333,)),
    Attention("items_2_of_one_sample", channels=32, spatial=(2100,), batch=1),
    Attention("items_3_of_each_sample", channels=12, spatial=(16400,)),
    Attention("width_128", channels=128, heads=1, spatial=(2, 3, 4)),
    Attention("batch_1", batch=1),
    Attention("batch_0", batch=0),
    Attention("scale_0", scale=0.0),
    Attention("scale_negative", scale=-1.5),
    Attention("scale_large", scale=10.0),
    Attention("no_residual", residual=False),
    Attention("spatial_1d", spatial=(23,)),
    Attention("spatial_2d", spatial=(4, 6)),
    Attention("spatial_4d", spatial=(2, 3, 2, 3)),
    Attention("as_in_vmf_151m", channels=16, spatial=(4, 14, 14)),
]


def heads(x: Tensor, count: int) -> Tensor:
    """(B, length, C) as (B, heads, length, C / heads)."""
    return x.unflatten(2, (count, -1)).transpose(1, 2)


def few_query(case: Attention, query: Tensor, features: Tensor) -> Tensor:
    """PyTorch's own attention from query to features."""
    x = heads(features.flatten(2).transpose(1, 2), case.heads)
    output = F.scaled_dot_product_attention(heads(query, case.heads), x, x, scale=case.factor)
    return output.transpose(1, 2).flatten(2)


def few_key(case: Attention, features: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's own attention from features to tokens, plus the features."""
    x = heads(features.flatten(2).transpose(1, 2), case.heads)
    k, v = heads(key, case.heads), heads(value, case.heads)
    output = F.scaled_dot_product_attention(x, k, v, scale=case.factor)
    output = output.transpose(1, 2).flatten(2).transpose(1, 2).reshape(features.shape)
    return features + output if case.residual else output


RESULTS = (
    *("few_query output", "lse", "exact", "grad_query", "grad_features"),
    *("few_key output", "grad_features", "grad_key", "grad_value"),
)


def operator_calls(case: Attention, dtype: torch.dtype, layout: str) -> list[Tensor]:
    """The `RESULTS` of the four operators, with nothing between them and the tensors."""
    features, grad_features = (DENSE[layout](case.features(dtype)) for _ in range(2))
    a, b = case.token_values(dtype), case.token_values(dtype)
    options = case.heads, case.factor
    results = query_op.few_query_attention(a, features, *options)
    saved = query_op.saved(*results)
    grads = query_op.few_query_attention_backward(b, a, features, *saved, *options)
    output = key_op.few_key_attention(features, a, b, *options, case.residual)
    key_grads = key_op.few_key_attention_backward(
        grad_features, features, a, b, *options, case.residual
    )
    return [*results, *grads, output, *key_grads]


def check(
    case: Attention,
    function: Callable[..., Tensor],
    pytorch: Callable[..., Tensor],
    inputs: list[Tensor],
    layout: str,
) -> list[Tensor]:
    """Output and gradients of `function` obey the error rule; returns them."""
    dtype = inputs[0].dtype
    output = function(*inputs)
    grad_output = torch.randn(output.shape, dtype=torch.float64).to(dtype)
    ours = gradients(function, inputs, grad_output)
    truth = gradients(pytorch, in_dtype(inputs, torch.float64), grad_output.double())
    wide = widened(dtype)
    peers = gradients(pytorch, in_dtype(inputs, wide), grad_output.to(wide))
    names = ["output", *(f"gradient {i}" for i in range(len(inputs)))]
    # Scores are rounded, and their errors multiply everything that comes after the softmax. The
    # truth itself may be 0 where terms cancel.
    largest = [x.abs().max().item() if x.numel() else 0.0 for x in (*inputs, *truth)]
    scores = case.channels / case.heads * abs(case.factor) * max(largest[: len(inputs)]) ** 2
    scale = max(1.0, *largest) * (1 + scores)
    for name, a, t, p in zip(names, ours, truth, in_dtype(peers, dtype), strict=True):
        assert a.dtype == dtype
        assert_accurate(a, t, p, scale, f"{name} of {case} in {dtype}, {layout}")
    return ours
