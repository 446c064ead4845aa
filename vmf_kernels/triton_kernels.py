"""What the Triton kernels of several ops share. Imports Triton: only launchers import this."""

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

    Triton looks at every argument of every launch anew, some 20 us of Python. All that it looks
    for is the same whenever a launch of one `Launch` has tensors of the same dtypes whose
    addresses are multiples of 16, so what it compiled is kept and started directly.

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
        self.started: dict[Any, Any] = {}

    def __call__(self, *tensors: Tensor | None) -> None:
        if not isinstance(self.kernel, JITFunction) or tensors[0].device.type != "cuda":  # type: ignore[union-attr]
            self.compile(*tensors)
            return
        key = tuple(t if t is None else (t.dtype, t.data_ptr() % 16) for t in tensors)
        device = tensors[0].device.index  # type: ignore[union-attr]
        compiled = self.started.get((device, key))
        if compiled is None:
            self.started[device, key] = self.compile(*tensors)
            return
        stream = driver.active.get_current_stream(device)
        compiled.run(
            self.programs, 1, 1, stream, compiled.function, compiled.packed_metadata,
            None, None, None, *tensors, *self.rest,
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


def dense(features: Tensor, channels_last: bool) -> Tensor:
    """(B, C, *spatial) dense in the given order; itself if it is."""
    if channels_last:
        moved = features.movedim(1, -1)
        return features if moved.is_contiguous() else moved.contiguous().movedim(-1, 1)
    return features.contiguous()
