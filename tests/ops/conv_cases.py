"""Geometries of `depthwise_conv3d`, their tensors, and the truth about them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.compare import gradients, in_dtype
from tests.ops.layouts import DENSE

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Case:
    """One call. `padding` is any form that `depthwise_conv3d` takes."""

    name: str
    size: Triple
    kernel: Triple = (3, 3, 3)
    channels: int = 5
    batch: int = 2
    multiplier: int = 1
    stride: Triple = (1, 1, 1)
    padding: Any = (1, 1, 1)
    dilation: Triple = (1, 1, 1)
    bias: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def settings(self) -> tuple[Any, ...]:
        """Stride, padding, dilation, as arguments of the op."""
        return self.stride, self.padding, self.dilation

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The padding as (before, after) pairs."""
        if self.padding == "valid":
            return ((0, 0),) * 3
        if self.padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
            return tuple((t // 2, t - t // 2) for t in total)
        return tuple(p if isinstance(p, tuple) else (p, p) for p in self.padding)

    @property
    def output(self) -> Triple:
        """T, H, W of the output."""
        axes = zip(self.size, self.kernel, self.stride, self.pairs, self.dilation, strict=True)
        t, h, w = ((n + sum(p) - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
        return t, h, w

    def tensors(self, dtype: torch.dtype) -> tuple[list[Tensor | None], Tensor]:
        """[input, weight, bias] and the gradient of the output."""
        generator = torch.Generator().manual_seed(hash((self.size, self.kernel)) % 2**31)
        outputs = self.channels * self.multiplier

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        x = normal(self.batch, self.channels, *self.size)
        w = normal(outputs, 1, *self.kernel)
        b = normal(outputs) if self.bias else None
        return [x, w, b], normal(self.batch, outputs, *self.output)

    def pytorch(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        """PyTorch's own op, which cannot pad differently before and after."""
        flat = [p for pair in reversed(self.pairs) for p in pair]
        return F.conv3d(F.pad(x, flat), w, b, self.stride, 0, self.dilation, self.channels)


@dataclass(frozen=True)
class Problem:
    """A case in one dtype. Lists are [output, grad input, grad weight, grad bias]."""

    inputs: list[Tensor | None]
    grad_output: Tensor
    truth: list[Tensor | None]
    scale: list[Tensor | None]


NAMES = ("output", "grad_input", "grad_weight", "grad_bias")


@lru_cache(maxsize=4096)
def problem(case: Case, dtype: torch.dtype) -> Problem:
    inputs, grad_output = case.tensors(dtype)
    *wide, wide_grad = in_dtype([*inputs, grad_output], torch.float64)
    truth = gradients(case.pytorch, wide, wide_grad)
    squares = [x if x is None else x.square() for x in wide]
    sums = gradients(case.pytorch, squares, wide_grad.square())
    scale = [x if x is None or x.numel() == 0 else x.max().sqrt() for x in sums]
    return Problem(inputs, grad_output, truth, scale)


@lru_cache(maxsize=4096)
def peer(case: Case, dtype: torch.dtype, layout: str) -> list[Tensor | None]:
    """PyTorch's own results in a dense layout: its errors are not the same in both."""
    if dtype == torch.float64:
        return problem(case, dtype).truth
    p = problem(case, dtype)
    x, w, b, grad_output = in_dtype([*p.inputs, p.grad_output], torch.float32)
    x, grad_output = DENSE[layout](x), DENSE[layout](grad_output)
    return in_dtype(gradients(case.pytorch, [x, w, b], grad_output), dtype)


def random_case(seed: int, **fixed: Any) -> Case:
    """A small geometry, hostile more often than not."""
    rng = random.Random(seed)

    def triple(choices: Sequence[int]) -> Triple:
        return rng.choice(choices), rng.choice(choices), rng.choice(choices)

    kernel = triple((1, 1, 2, 3, 3, 3, 4, 5, 7))
    stride = triple((1, 1, 1, 2, 3))
    dilation = triple((1, 1, 1, 2, 3))
    pairs = tuple(
        (p, p) if rng.random() < 0.5 else (p, rng.randrange(k + 2))
        for k in kernel
        for p in [rng.randrange(k + 2)]
    )
    # Never smaller than the kernel needs, often just that.
    size = tuple(
        max(1, d * (k - 1) + 1 - sum(p)) + rng.choice((0, 0, 1, 2, 3, 5, 8, extra))
        for k, p, d, extra in zip(kernel, pairs, dilation, (4, 9, 37), strict=True)
    )
    values = {
        "name": f"seed-{seed}",
        "size": size,
        "kernel": kernel,
        "channels": rng.choice((1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 19, 31, 33)),
        "batch": rng.choice((1, 1, 2, 3)),
        "multiplier": rng.choice((1, 1, 1, 2, 3, 4)),
        "stride": stride,
        "padding": pairs,
        "dilation": dilation,
        "bias": rng.random() < 0.7,
    }
    return Case(**{**values, **fixed})
