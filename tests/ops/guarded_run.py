"""Runs depthwise_conv3d and both attentions next to unmapped pages; see guard_malloc.c, preloaded.

python -m tests.ops.guarded_run LIBRARY begin|end ISA...|stray
"""

import ctypes
import sys
from typing import Any

import torch

from tests.ops import attention_cases
from tests.ops.attention_cases import Attention
from tests.ops.conv_cases import Case, random_case
from tests.ops.hostile_cases import HOSTILE
from tests.ops.layouts import DENSE
from vmf_kernels import use_backend
from vmf_kernels._extension import _C
from vmf_kernels.ops.depthwise_conv3d import library as op

EDGES = {"end": 1, "begin": 2}


def run(case: Case | Attention, dtype: torch.dtype, layout: str) -> None:
    if isinstance(case, Attention):
        results = attention_cases.operator_calls(case, dtype, layout)
    else:
        results = conv_calls(case, dtype, layout)
    for tensor in results:
        assert not tensor.isnan().any(), "an element was not written, or made of unwritten memory"


def conv_calls(case: Case, dtype: torch.dtype, layout: str) -> list[torch.Tensor]:
    """All three kernels, on the raw operators: nothing between them and the tensors."""
    (x, w, b), grad_output = case.tensors(dtype)
    x, grad_output = DENSE[layout](x), DENSE[layout](grad_output)
    geometry = case.stride, [p for pair in case.pairs for p in pair], case.dilation
    output = op.depthwise_conv3d(x, w, b, *geometry)
    grad_input = op.depthwise_conv_transpose3d(grad_output, w, None, list(x.shape), *geometry)
    grads = op.depthwise_conv3d_grad_weight(grad_output, x, list(case.kernel), *geometry)
    return [output, grad_input, *grads]


def stray(guard: Any, edge: str) -> None:
    """Reads the byte next to a tensor, which must not return."""
    guard(EDGES[edge])
    x = torch.zeros(1003, dtype=torch.uint8)
    ctypes.string_at(x.data_ptr(), x.numel())
    print("inside is fine", flush=True)
    ctypes.string_at(x.data_ptr() + (x.numel() if edge == "end" else -1), 1)
    print("so is outside")


def main(library: str, edge: str, *isas: str) -> None:
    guard = ctypes.CDLL(library).guard_edge
    if isas == ("stray",):
        return stray(guard, edge)
    large = {"larger_than_the_cache", "taps_many"}
    cases: list[Case | Attention] = [case for case in HOSTILE if case.name not in large]
    cases += [random_case(seed) for seed in range(5000, 5060)]
    cases += attention_cases.CASES
    # Each in two of them with each instruction set; all of them in each layout, case after case.
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    for offset, isa in enumerate(isas):
        _C.set_isa(isa)
        for number, case in enumerate(cases):
            for second, layout in enumerate(DENSE):
                dtype = dtypes[(number + offset + 2 * second) % len(dtypes)]
                print(isa, dtype, layout, case, flush=True)
                guard(EDGES[edge])
                with use_backend("cpu"):
                    run(case, dtype, layout)
                guard(0)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
