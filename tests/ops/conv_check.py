"""Checks one case of `depthwise_conv3d`: numbers, dtype and memory format of all it returns."""

import math

import torch
from torch import Tensor

from tests.conftest import Implementation
from tests.ops.compare import assert_accurate, gradients
from tests.ops.conv_cases import NAMES, Case, peer, problem
from tests.ops.layouts import DENSE, is_dense
from vmf_kernels import depthwise_conv3d


def check(case: Case, dtype: torch.dtype, layout: str, implementation: Implementation) -> None:
    """Output and gradients obey the error rule, and keep the input's memory format."""
    p = problem(case, dtype)
    device = implementation.device
    x, w, b = (None if t is None else t.to(device) for t in p.inputs)
    x, grad_output = DENSE[layout](x), DENSE[layout](p.grad_output.to(device))

    def run(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return depthwise_conv3d(x, w, b, *case.settings)

    ours = gradients(run, [x, w, b], grad_output)
    peers = peer(case, dtype, layout)
    for name, result, *rest, scale in zip(NAMES, ours, p.truth, peers, p.scale, strict=True):
        if result is None:
            continue
        what = f"{name} of {case!r} in {dtype}, {layout}"
        assert result.dtype == dtype, what
        if name == "grad_bias" and implementation.backend == "reference":
            scale = 2 * scale  # PyTorch's own sum, in an order that depends on the machine
        assert_accurate(result.cpu(), *rest, scale, what)
    if math.prod(case.size) > 1:  # one position is the same memory in both formats
        assert is_dense(ours[0], layout), f"{case!r}: strides {ours[0].stride()} are not {layout}"
    # The reference's gradients are PyTorch's own; a gradient of one position tells no format.
    if implementation.backend != "reference" and math.prod(case.output) > 1:
        assert is_dense(ours[1], layout), f"{case!r}: strides {ours[1].stride()} are not {layout}"
