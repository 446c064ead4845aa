"""The error rule: against fp64 truth, at most twice the error of PyTorch's own op.

PyTorch's own op is no peer in 16 bits on a CPU: it sums in 16 bits here and there, so twice its
error allows anything. There the peer is PyTorch in float32 on the same 16-bit inputs, rounded once
at the end, which is what the kernels promise to be.

A peer may be exact by luck where there are few elements. Then an error is still allowed that
`slack` says: some rounding errors of the result, and of a sum of such terms.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALVES = (torch.bfloat16, torch.float16)

Tensors = Sequence[Tensor | None]


def widened(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over elements of `dtype` are made."""
    return torch.float32 if dtype in HALVES else dtype


def gradients(
    function: Callable[..., Tensor], inputs: Tensors, grad_output: Tensor
) -> list[Tensor | None]:
    """[output, gradients...] of `function(*inputs)`; None where the input is None."""
    leaves = [x if x is None else x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    present = [x for x in leaves if x is not None]
    grads = iter(torch.autograd.grad(output, present, grad_output))
    return [output.detach(), *(None if x is None else next(grads) for x in leaves)]


def in_dtype(tensors: Tensors, dtype: torch.dtype) -> list[Tensor | None]:
    return [x if x is None else x.to(dtype) for x in tensors]


def assert_accurate(
    ours: Tensor, truth: Tensor, peer: Tensor, scale: Tensor | float, what: str
) -> None:
    """Raises unless `ours` obeys the error rule.

    Args:
        ours: the result under test.
        truth: the same in float64.
        peer: PyTorch's own result, in any dtype.
        scale: root of the sum of squares of the terms that make up one element: the size of a
            rounding error in their sum. The largest counts.
        what: names the result in the message.
    """
    assert ours.shape == truth.shape, f"{what}: shape {ours.shape}, not {truth.shape}"
    if truth.numel() == 0:
        return
    sums = torch.finfo(widened(ours.dtype)).eps * torch.as_tensor(scale).max()
    # In float64 the truth is a rounded sum, too, and no peer shows how far off.
    terms = 1000 if ours.dtype == torch.float64 else 2
    slack = torch.finfo(ours.dtype).eps * truth.abs().max() + terms * sums
    allowed = 2 * (peer.double() - truth).abs().max() + slack
    errors = (ours.double() - truth).abs()
    # A NaN is no error below the limit either.
    wrong = ~(errors <= allowed)
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {truth.numel()} elements are wrong, the first at "
            f"{where}: {ours[where].item():.9g}, not {truth[where].item():.9g} "
            f"(allowed error {allowed.item():.3g})"
        )


def assert_same_bits(
    results: Callable[[torch.dtype], Sequence[Tensor]], names: Sequence[str]
) -> None:
    """`results(dtype)` gives the same bits a second time, and on three threads instead of one."""
    before = torch.get_num_threads()
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_num_threads(1)
        first, again = results(dtype), results(dtype)
        torch.set_num_threads(3)
        threaded = results(dtype)
        torch.set_num_threads(before)
        for name, a, b, c in zip(names, first, again, threaded, strict=True):
            assert torch.equal(a, b), f"{name} in {dtype}: another result the second time"
            assert torch.equal(a, c), f"{name} in {dtype}: another result on three threads"
