"""The definition of correct: plain PyTorch, any device, any floating dtype."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vmf_kernels.layout import is_channels_last, to_layout, widen


def depthwise_conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    size: list[int],
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
) -> Tensor:
    """`F.conv_transpose3d(groups=C)`; 16-bit dtypes accumulate in float32."""
    output = F.conv_transpose3d(
        widen(input),
        widen(weight),
        None if bias is None else widen(bias),
        stride,
        padding[::2],
        output_padding,
        input.shape[1],
        dilation,
    )
    return to_layout(output.to(input.dtype), is_channels_last(input))
