"""The fixture that poisons memory, and that it reaches what C++ allocates."""

from types import ModuleType

import pytest
import torch

from vmf_kernels.ops.depthwise_conv3d import library


def test_empty_tensors_are_nan() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert torch.empty(1000, dtype=dtype).isnan().all()
        assert torch.empty_strided((7, 5), (5, 1), dtype=dtype).isnan().all()
        assert torch.randn(3, dtype=dtype).new_empty(10).isnan().all()


def test_bytes_of_scratch_make_nan() -> None:
    scratch = torch.empty(64, dtype=torch.uint8)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert scratch.view(dtype).isnan().all()


def test_outputs_that_cpp_allocates_are_filled(extension: ModuleType) -> None:
    """Each tensor that the C++ of the weight gradient makes: the profiler sees it being filled."""
    g = x = torch.ones(1, 2, 3, 4, 5)
    calls = {}
    for poisoned in (False, True):
        torch.utils.deterministic.fill_uninitialized_memory = poisoned
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            library.depthwise_conv3d_grad_weight(g, x, [1, 1, 1], [1, 1, 1], [0] * 6, [1, 1, 1])
        calls[poisoned] = {event.key: event.count for event in profile.key_averages()}
    made = calls[True]["aten::empty_strided"]
    assert made >= 3, "weight, bias and scratch"
    assert calls[True]["aten::fill_"] == made
    assert "aten::fill_" not in calls[False]


def test_tests_are_seeded() -> None:
    first = torch.randn(1)
    torch.manual_seed(0)
    assert torch.equal(first, torch.randn(1))


@pytest.mark.gpu
def test_empty_tensors_on_the_gpu_are_nan() -> None:
    assert torch.empty(1000, device="cuda").isnan().all()
