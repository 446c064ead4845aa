"""Numbers of depthwise_conv3d: every path of every kernel against fp64 truth."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.conftest import KERNELS, Implementation
from tests.ops.compare import DTYPES
from tests.ops.conv_cases import Case, random_case
from tests.ops.conv_check import check
from tests.ops.hostile_cases import HOSTILE
from tests.ops.layouts import DENSE
from vmf_kernels import depthwise_conv3d


@pytest.mark.parametrize("case", HOSTILE, ids=str)
def test_hostile_case(case: Case, implementation: Implementation) -> None:
    for dtype in DTYPES:
        for layout in DENSE:
            check(case, dtype, layout, implementation)


@pytest.mark.parametrize("block", range(5))
def test_random_geometries(block: int, implementation: Implementation) -> None:
    for seed in range(60 * block, 60 * block + 60):
        dtype, layout = DTYPES[seed % 4], list(DENSE)[seed // 4 % 2]
        check(random_case(seed), dtype, layout, implementation)


@pytest.mark.parametrize("implementation", KERNELS, ids=str, indirect=True)  # PyTorch refuses it
@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("channels", (3, 24))
def test_input_of_no_elements_but_padding(
    axis: int, channels: int, implementation: Implementation
) -> None:
    size = [3, 4, 5]
    size[axis] = 0
    padding = tuple(int(i == axis) for i in range(3))
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        x = torch.randn(2, channels, *size).contiguous(memory_format=layout)
        weight = torch.randn(channels, 1, 1, 1, 1, requires_grad=True)
        bias = torch.randn(channels, requires_grad=True)
        output = depthwise_conv3d(x, weight, bias, 1, padding)
        torch.testing.assert_close(output, bias.view(-1, 1, 1, 1).expand_as(output))
        grads = torch.autograd.grad(output.sum(), (weight, bias))
        assert torch.equal(grads[0], torch.zeros_like(weight))
        assert torch.equal(grads[1], torch.full_like(bias, float(output.numel() // channels)))


LAYERS = Path(__file__).parents[2] / "bench" / "cases" / "depthwise_conv3d.json"


def thin_layers() -> list[Case]:
    """Each depthwise layer of real networks with its channels and columns, but few frames and rows.

    How channels and columns are cut into vectors and tiles is what differs between layers.
    """
    cases: dict[Case, None] = {}
    for row in json.loads(LAYERS.read_text())["rows"]:
        kernel, stride, padding = (tuple(row[key]) for key in ("kernel", "stride", "padding"))
        w = row["size"][2]
        rows = 4 if math.prod(kernel) < 100 else 2
        taps = "x".join(map(str, kernel))
        case = Case(
            f"{row['in_channels']}x{w}_times_{row['multiplier']}_kernel_{taps}"
            f"_stride_{stride[2]}_padding_{padding[0]}{padding[2]}",
            (max(rows, kernel[0] - 2 * padding[0]), max(rows, kernel[1] - 2 * padding[1]), w),
            kernel,
            row["in_channels"],
            1,
            row["multiplier"],
            stride,
            padding,
            bias=False,
        )
        cases[case] = None
    return list(cases)


@pytest.mark.parametrize("implementation", KERNELS[-1:], ids=str, indirect=True)
@pytest.mark.parametrize("case", thin_layers(), ids=str)
def test_layer_of_a_real_network(case: Case, implementation: Implementation) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for layout in DENSE:
            check(case, dtype, layout, implementation)
