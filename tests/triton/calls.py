"""The launches that are compiled ahead of time: the fewest that stand for all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vmf_kernels.ops.depthwise_conv3d import triton as conv
from vmf_kernels.ops.depthwise_conv3d.epilogue import ACTIVATIONS
from vmf_kernels.ops.dynamic_relu import triton as relu
from vmf_kernels.ops.few_key_attention import triton as few_key
from vmf_kernels.ops.few_query_attention import triton as few_query

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
EVERYWHERE: tuple[str, ...] = ()
HOPPER = ("sm_90",)
NVIDIA = ("sm_80", "sm_90", "sm_100")


@dataclass(frozen=True)
class Call:
    """Launches of one kind.

    Attributes:
        run: makes them, on meta tensors.
        architectures: where they are compiled; everywhere if empty.
        second_stage: whether the sum of parts is compiled with them.
    """

    run: Callable[[], Any]
    architectures: tuple[str, ...] = EVERYWHERE
    second_stage: bool = False


def features(dtype: torch.dtype, last: bool, *shape: int) -> Tensor:
    x = torch.empty(shape, dtype=dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


def _relu(dtype: torch.dtype, last: bool, channels: int = 96) -> Callable[[], Any]:
    def run() -> None:
        x, a = features(dtype, last, 8, channels, 8, 28, 28), torch.empty(8, channels, dtype=dtype)
        relu.dynamic_relu(x, a, a)
        relu.dynamic_relu_backward(x, x, a, a)

    return run


def _conv(
    dtype: torch.dtype,
    last: bool,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int] = (1, 1, 1),
    channels: int = 96,
) -> Callable[[], Any]:
    padding = tuple(k // 2 for k in kernel for _ in range(2))
    geometry = (stride, padding, (1, 1, 1))
    outputs = [(n - 1) // s + 1 for n, s in zip((8, 28, 28), stride, strict=True)]

    def run() -> None:
        x = features(dtype, last, 8, channels, 8, 28, 28)
        g = features(dtype, last, 8, channels, *outputs)
        w = torch.empty(channels, 1, *kernel, dtype=dtype)
        conv.depthwise_conv3d(x, w, w.flatten()[:channels], *geometry)
        if stride != (1, 1, 1) or kernel != (3, 3, 3):
            conv.depthwise_conv_transpose3d(g, w, None, list(x.shape), *geometry)
        conv.depthwise_conv3d_grad_weight(g, x, list(kernel), *geometry)

    return run


def _fused(dtype: torch.dtype, last: bool) -> Callable[[], Any]:
    def run() -> None:
        x, w = features(dtype, last, 8, 96, 8, 28, 28), torch.empty(96, 1, 3, 3, 3, dtype=dtype)
        a, geometry = torch.empty(8, 96, dtype=dtype), ((1, 1, 1), (1,) * 6, (1, 1, 1))
        dynamic = ACTIVATIONS.index("dynamic_relu")
        conv.depthwise_conv3d_fused(x, w, a[0], x, a, a, dynamic, *geometry)

    return run


def _few_query(dtype: torch.dtype, last: bool, channels: int) -> Callable[[], Any]:
    def run() -> None:
        x = features(dtype, last, 8, channels, 8, 28, 28)
        q, exact = torch.empty(8, 6, channels, dtype=dtype), torch.empty(8, 6, channels)
        few_query.few_query_attention(q, x, 2, 0.25)
        few_query.few_query_attention_backward(q, q, x, exact, torch.empty(8, 2, 6), 2, 0.25)

    return run


def _few_key(dtype: torch.dtype, last: bool, channels: int) -> Callable[[], Any]:
    def run() -> None:
        x = features(dtype, last, 8, channels, 8, 28, 28)
        k = torch.empty(8, 6, channels, dtype=dtype)
        few_key.few_key_attention(x, k, k, 2, 0.25, True)
        few_key.few_key_attention_backward(x, x, k, k, 2, 0.25, True)

    return run


CALLS: dict[str, Call] = {
    "dynamic_relu bf16 channels_last": Call(_relu(BF16, True), second_stage=True),
    "dynamic_relu fp32 channels_last": Call(_relu(FP32, True), HOPPER),
    "dynamic_relu fp16 contiguous": Call(_relu(FP16, False), HOPPER),
    "dynamic_relu fp16 channels_last 72": Call(_relu(FP16, True, 72), HOPPER),
    # A number of channels that divides into one unit of alignment is one to the compiler.
    "dynamic_relu fp16 channels_last 16": Call(_relu(FP16, True, 16), HOPPER),
    "few_query_attention bf16 channels_last 64": Call(_few_query(BF16, True, 64)),
    "few_query_attention bf16 channels_last 192": Call(_few_query(BF16, True, 192), HOPPER),
    "few_query_attention fp32 channels_last 64": Call(_few_query(FP32, True, 64), NVIDIA),
    "few_query_attention fp16 contiguous 12": Call(_few_query(FP16, False, 12), HOPPER),
    "few_key_attention bf16 channels_last 64": Call(_few_key(BF16, True, 64)),
    "few_key_attention bf16 channels_last 192": Call(_few_key(BF16, True, 192), HOPPER),
    "few_key_attention fp32 channels_last 64": Call(_few_key(FP32, True, 64), NVIDIA),
    "few_key_attention fp16 contiguous 16": Call(_few_key(FP16, False, 16), HOPPER),
    "depthwise_conv3d bf16 channels_last": Call(_conv(BF16, True, (3, 3, 3))),
    "depthwise_conv3d fp32 channels_last": Call(_conv(FP32, True, (3, 3, 3)), HOPPER),
    "depthwise_conv3d bf16 channels_last stride": Call(
        _conv(BF16, True, (3, 3, 3), (1, 2, 2), 432), HOPPER
    ),
    "depthwise_conv3d bf16 channels_last 5x5x5": Call(_conv(BF16, True, (5, 5, 5)), HOPPER),
    "depthwise_conv3d bf16 contiguous": Call(_conv(BF16, False, (3, 3, 3)), HOPPER),
    "depthwise_conv3d bf16 channels_last fused": Call(_fused(BF16, True), HOPPER),
}
