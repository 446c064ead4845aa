"""Small arguments for every operator, for tests that hold for all of them alike."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vmf_kernels
from tests.conftest import IMPLEMENTATIONS
from tests.ops.layouts import DENSE
from vmf_kernels.backends import OPS
from vmf_kernels.operator import Operator
from vmf_kernels.ops.depthwise_conv3d import epilogue
from vmf_kernels.ops.depthwise_conv3d import library as conv
from vmf_kernels.ops.dynamic_relu import library as relu
from vmf_kernels.ops.few_key_attention import library as few_key
from vmf_kernels.ops.few_query_attention import library as few_query

Make = Callable[..., Tensor]

GEOMETRY = ((1, 2, 1), (1, 1, 0, 1, 2, 0), (1, 1, 2))  # stride, padding, dilation


def _few_query_backward(make: Make) -> tuple[Any, ...]:
    query, features = make(2, 3, 4), make(2, 4, 2, 3)
    with torch.no_grad():
        saved = few_query.saved(*few_query.few_query_attention(query, features, 2, 0.7))
    return make(2, 3, 4), query, features, *saved, 2, 0.7


OPERATORS: dict[str, tuple[Operator, Callable[[Make], tuple[Any, ...]]]] = {
    "depthwise_conv3d": (
        conv.depthwise_conv3d,
        lambda make: (make(2, 2, 3, 3, 3), make(4, 1, 3, 2, 2), make(4), *GEOMETRY),
    ),
    "depthwise_conv3d_without_bias": (
        conv.depthwise_conv3d,
        lambda make: (make(2, 2, 3, 3, 3), make(4, 1, 3, 2, 2), None, *GEOMETRY),
    ),
    "depthwise_conv3d_fused": (
        epilogue.depthwise_conv3d_fused,
        lambda make: (
            *(make(2, 2, 3, 3, 3), make(4, 1, 3, 2, 2), make(4), make(2, 4, 3, 2, 3)),
            *(make(2, 4), make(2, 4), epilogue.ACTIVATIONS.index("dynamic_relu"), *GEOMETRY),
        ),
    ),
    "depthwise_conv3d_fused_without_residual": (
        epilogue.depthwise_conv3d_fused,
        lambda make: (
            *(make(2, 2, 3, 3, 3), make(4, 1, 3, 2, 2), None, None, None, None),
            *(epilogue.ACTIVATIONS.index("silu"), *GEOMETRY),
        ),
    ),
    "depthwise_conv_transpose3d": (
        conv.depthwise_conv_transpose3d,
        lambda make: (
            *(make(2, 4, 3, 2, 3), make(4, 1, 3, 2, 2), make(2), [2, 2, 3, 3, 3]),
            *GEOMETRY,
        ),
    ),
    "depthwise_conv3d_grad_weight": (
        conv.depthwise_conv3d_grad_weight,
        lambda make: (make(2, 4, 3, 2, 3), make(2, 2, 3, 3, 3), [3, 2, 2], *GEOMETRY),
    ),
    "few_query_attention": (
        few_query.few_query_attention,
        lambda make: (make(2, 3, 4), make(2, 4, 2, 3), 2, 0.7),
    ),
    "few_query_attention_backward": (few_query.few_query_attention_backward, _few_query_backward),
    "few_key_attention": (
        few_key.few_key_attention,
        lambda make: (make(2, 4, 2, 3), make(2, 3, 4), make(2, 3, 4), 2, 0.7, True),
    ),
    "few_key_attention_backward": (
        few_key.few_key_attention_backward,
        lambda make: (
            *(make(2, 4, 2, 3), make(2, 4, 2, 3), make(2, 3, 4), make(2, 3, 4)),
            *(2, 0.7, False),
        ),
    ),
    "dynamic_relu": (
        relu.dynamic_relu,
        lambda make: (make(2, 3, 2, 3, 2), make(2, 3), make(2, 3)),
    ),
    "dynamic_relu_backward": (
        relu.dynamic_relu_backward,
        lambda make: (make(2, 3, 2, 3, 2), make(2, 3, 2, 3, 2), make(2, 3), make(2, 3)),
    ),
}

# The public functions, of tensors alone, and the shapes that those have.
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "depthwise_conv3d": (
        lambda x, w, b: vmf_kernels.depthwise_conv3d(x, w, b, (1, 2, 1), (1, 1, 0)),
        ((2, 4, 5, 6, 7), (8, 1, 3, 3, 2), (8,)),
    ),
    "depthwise_conv_transpose3d": (
        lambda x, w, b: vmf_kernels.depthwise_conv_transpose3d(x, w, b, (1, 2, 2), 1, (0, 1, 0)),
        ((2, 4, 3, 2, 3), (4, 2, 3, 3, 2), (8,)),
    ),
    "few_query_attention": (
        lambda q, x: vmf_kernels.few_query_attention(q, x, 2),
        ((2, 3, 4), (2, 4, 3, 4, 5)),
    ),
    "few_key_attention": (
        lambda x, k, v: vmf_kernels.few_key_attention(x, k, v, 2),
        ((2, 4, 3, 4, 5), (2, 3, 4), (2, 3, 4)),
    ),
    "dynamic_relu": (
        vmf_kernels.dynamic_relu,
        ((2, 4, 3, 4, 5), (2, 4), (2, 4)),
    ),
}

CONVOLUTIONS = ("depthwise_conv3d", "depthwise_conv_transpose3d")  # their weights have no batch

# Which implementation runs which function.
SERVED = [
    pytest.param(name, implementation, id=f"{name}-{implementation}")
    for name in FUNCTIONS
    for implementation in IMPLEMENTATIONS
    if any(backend.name == implementation.backend for backend in OPS[name].backends)
]


def served_by(name: str) -> pytest.MarkDecorator:
    """Runs a test once for each implementation of the function `name`."""
    chosen = [p.values[1] for p in SERVED if p.values[0] == name]
    return pytest.mark.parametrize("implementation", chosen, ids=str, indirect=True)


def make(
    *shape: int, dtype: torch.dtype = torch.float32, layout: str = "contiguous", grad: bool = False
) -> Tensor:
    """A normal tensor; `layout` is that of activations, which have three dimensions or more."""
    x = torch.randn(shape).to(dtype)
    if len(shape) >= 4:
        x = DENSE[layout](x)
    return x.requires_grad_(grad)


def operator_call(name: str, **options: Any) -> tuple[Operator, tuple[Any, ...]]:
    """An operator and its arguments; `options` are those of `make`."""
    operator, arguments = OPERATORS[name]
    return operator, arguments(lambda *shape: make(*shape, **options))


def function_call(name: str, **options: Any) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """A public function and its tensors; `options` are those of `make`."""
    function, shapes = FUNCTIONS[name]
    return function, [make(*shape, **options) for shape in shapes]
