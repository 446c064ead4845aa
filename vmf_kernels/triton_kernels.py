"""What the Triton kernels of several ops share. Imports Triton: only launchers import this."""

import triton
import triton.language as tl
from torch import Tensor

from vmf_kernels.tiles import ceil_div

SUM_BLOCK = 256
# Multiply-adds are what these kernels are counted in. Triton 3.10 will not make them unasked.
OPTIONS = {"enable_fp_fusion": True}


@triton.jit
def _sum_splits(p_parts, p_a, p_b, splits, len_a, len_b, BLOCK: tl.constexpr):
    """Sums (splits, len_a + len_b) over the splits, in order, into a (len_a) and b (len_b)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    length = len_a + len_b
    m_i = i < length
    b_sum = tl.zeros([BLOCK], tl.float32)
    p_i = p_parts + i
    for _ in range(splits):
        b_sum += tl.load(p_i, mask=m_i, other=0.0)
        p_i += length
    tl.store(p_a + i, b_sum.to(p_a.dtype.element_ty), mask=i < len_a)
    tl.store(p_b + (i - len_a), b_sum.to(p_b.dtype.element_ty), mask=m_i & (i >= len_a))


def sum_splits(parts: Tensor, a: Tensor, b: Tensor) -> None:
    """Second stage of every reduction: adds what the programs left, in one fixed order.

    Args:
        parts: (splits, a.numel() + b.numel()) float32.
        a, b: dense; get the sums.
    """
    grid = (ceil_div(a.numel() + b.numel(), SUM_BLOCK),)
    _sum_splits[grid](parts, a, b, parts.shape[0], a.numel(), b.numel(), BLOCK=SUM_BLOCK, **OPTIONS)


def dense(features: Tensor, channels_last: bool) -> Tensor:
    """(B, C, *spatial) dense in the given order; itself if it is."""
    if channels_last:
        moved = features.movedim(1, -1)
        return features if moved.is_contiguous() else moved.contiguous().movedim(-1, 1)
    return features.contiguous()
