"""What the Triton kernels of several ops share. Imports Triton: only launchers import this."""

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from vmf_kernels.tiles import ceil_div

# Splits and elements of a tile of the second stage: 128 bytes a row, and rows enough in flight.
SUM_SPLITS, SUM_BLOCK = 128, 32
# Multiply-adds are what these kernels are counted in. Triton 3.10 will not make them unasked.
OPTIONS = {"enable_fp_fusion": True}


class Launch:
    """A kernel with everything but its tensors, which come first among its arguments.

    Triton looks at every argument of every launch anew, some 20 us of Python. A `Launch` is part of
    a run (vmf_kernels/_runs.py), whose tensors always have the same dtypes, device and alignment to
    16 bytes: what Triton compiled for the first is right for all, is kept, and is started directly,
    with addresses in place of tensors, which need no second look.

    Args:
        kernel: compiled by the first launch.
        programs: how many.
        scalars: the arguments behind the tensors.
        constants: the constexprs, by name; they are the last arguments, in this order.
        warps: a program's.
    """

    def __init__(
        self, kernel: JITFunction, programs: int, *scalars: Any, warps: int = 4, **constants: Any
    ) -> None:
        self.kernel, self.programs, self.scalars = kernel, programs, scalars
        self.constants, self.warps = constants, warps
        self.rest = (*scalars, *constants.values())
        self.start: Callable[..., None] | None = None

    def __call__(self, *tensors: Tensor | None) -> None:
        device = tensors[0].get_device()  # type: ignore[union-attr]
        if self.start is None:
            compiled = self.compile(*tensors)
            if device >= 0 and isinstance(self.kernel, JITFunction):
                self.compiled = compiled  # which unloads its function when it goes
                self.function, self.metadata = compiled.function, compiled.packed_metadata
                self.start = compiled.run
            return
        addresses = [None if t is None else t.data_ptr() for t in tensors]
        self.start(
            self.programs, 1, 1, driver.active.get_current_stream(device), self.function,
            self.metadata, None, None, None, *addresses, *self.rest,
        )  # fmt: skip

    def compile(self, *tensors: Tensor | None) -> Any:
        """Launches by way of Triton's own road; returns what it compiled."""
        options: Any = {"num_warps": self.warps, **OPTIONS}
        grid = (self.programs,)
        return self.kernel[grid](*tensors, *self.scalars, **self.constants, **options)


@triton.jit
def _sum_splits(
    p_parts, p_a, p_b, splits, len_a, len_b, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Sums (splits, len_a + len_b) over the splits into a (len_a) and b (len_b), in one order."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    length = tl.cast(len_a + len_b, tl.int64)
    m_i = i < length
    b_sums = tl.zeros([BLOCK_S, BLOCK], tl.float32)
    for first in range(0, splits, BLOCK_S):
        i_s = first + tl.arange(0, BLOCK_S)
        p_s = p_parts + i_s[:, None] * length + i[None, :]
        b_sums += tl.load(p_s, mask=(i_s < splits)[:, None] & m_i[None, :], other=0.0)
    b_sum = tl.sum(b_sums, 0)
    tl.store(p_a + i, b_sum.to(p_a.dtype.element_ty), mask=i < len_a)
    tl.store(p_b + (i - len_a), b_sum.to(p_b.dtype.element_ty), mask=m_i & (i >= len_a))


def sum_launch(splits: int, len_a: int, len_b: int) -> Launch:
    """Second stage of every reduction: adds what the programs left, always in the same order.

    Its tensors: (splits, len_a + len_b) float32, and two dense ones that get the sums.
    """
    programs = ceil_div(len_a + len_b, SUM_BLOCK)
    return Launch(
        _sum_splits, programs, splits, len_a, len_b, BLOCK_S=SUM_SPLITS, BLOCK=SUM_BLOCK
    )  # fmt: skip
