"""The instruction set of the CPU kernels: chosen once, pinned by VMF_CPU_ISA, told by info."""

from types import ModuleType

import pytest
import torch

from tests.test_backends import python
from vmf_kernels import depthwise_conv3d

TELL = """
from vmf_kernels._extension import _C
try:
    print(_C.current_isa())
except ValueError as error:
    print("ValueError:", error)
"""
CALL = """
import torch, vmf_kernels
try:
    vmf_kernels.depthwise_conv3d(torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_what_is_built_and_supported(extension: ModuleType) -> None:
    built, supported = extension.built_isas(), extension.supported_isas()
    assert built[0] == supported[0] == "baseline"
    assert set(supported) <= set(built)
    assert extension.current_isa() in supported


def test_the_best_one_is_the_default(extension: ModuleType) -> None:
    assert python(TELL, VMF_CPU_ISA="").stdout.strip() == extension.supported_isas()[-1]


def test_every_supported_one_can_be_pinned(extension: ModuleType) -> None:
    for isa in extension.supported_isas():
        assert python(TELL, VMF_CPU_ISA=isa).stdout.strip() == isa


def test_an_unknown_one_is_refused(extension: ModuleType) -> None:
    said = python(TELL, VMF_CPU_ISA="sse9").stdout
    assert said.startswith("ValueError: VMF_CPU_ISA: the instruction set must be one of baseline")
    assert '(got "sse9")' in said
    called = python(CALL, VMF_CPU_ISA="sse9")
    assert called.returncode == 0
    assert "VMF_CPU_ISA" in called.stdout, "an op under a wrong VMF_CPU_ISA says so"


def test_set_isa(extension: ModuleType) -> None:
    before = extension.current_isa()
    x, w = torch.randn(1, 20, 3, 4, 5), torch.randn(20, 1, 3, 3, 3)
    results = []
    for isa in extension.supported_isas():
        extension.set_isa(isa)
        assert extension.current_isa() == isa
        results.append(depthwise_conv3d(x, w, padding=1))
    extension.set_isa(before)
    for result in results:
        torch.testing.assert_close(result, results[0])
    with pytest.raises(ValueError, match=r'^set_isa: the instruction set must be .* \(got "mmx"\)'):
        extension.set_isa("mmx")
    assert extension.current_isa() == before
