"""The launches that are compiled ahead of time: the fewest that stand for all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vmf_kernels.ops.dynamic_relu import triton as relu

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
EVERYWHERE: tuple[str, ...] = ()
HOPPER = ("sm_90",)


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


CALLS: dict[str, Call] = {
    "dynamic_relu bf16 channels_last": Call(_relu(BF16, True), second_stage=True),
    "dynamic_relu fp32 channels_last": Call(_relu(FP32, True), HOPPER),
    "dynamic_relu fp16 contiguous": Call(_relu(FP16, False), HOPPER),
    "dynamic_relu fp16 channels_last 72": Call(_relu(FP16, True, 72), HOPPER),
}
