"""The same values in other memory: every way in which a caller may hold activations."""

from collections.abc import Callable

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def contiguous(x: Tensor) -> Tensor:
    return x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    if x.dim() in _CHANNELS_LAST:
        return x.contiguous().to(memory_format=_CHANNELS_LAST[x.dim()])
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def offset(x: Tensor) -> Tensor:
    """Starts at an odd element of its storage."""
    storage = x.new_empty(x.numel() + 3)
    view = storage[3:].view(x.shape)
    return view.copy_(x)


def sliced(x: Tensor) -> Tensor:
    """A window out of a larger tensor whose other elements are NaN."""
    whole = x.new_full([size + 3 for size in x.shape], float("nan"))
    view = whole[tuple(slice(1, 1 + size) for size in x.shape)]
    return view.copy_(x)


def strided(x: Tensor) -> Tensor:
    """Every second element along every dimension."""
    whole = x.new_full([2 * size for size in x.shape], float("nan"))
    view = whole[tuple(slice(None, None, 2) for _ in x.shape)]
    return view.copy_(x)


def transposed(x: Tensor) -> Tensor:
    """The first dimension varies fastest in memory, the last one slowest."""
    order = tuple(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


def channel_slice(x: Tensor) -> Tensor:
    """The middle channels of a wider channels-last tensor."""
    shape = (x.shape[0], *x.shape[2:], x.shape[1] + 5)
    whole = x.new_full(shape, float("nan")).movedim(-1, 1)
    view = whole[:, 2 : 2 + x.shape[1]]
    return view.copy_(x)


DENSE = {"contiguous": contiguous, "channels_last": channels_last}
STRANGE: dict[str, Callable[[Tensor], Tensor]] = {
    "offset": offset,
    "sliced": sliced,
    "strided": strided,
    "transposed": transposed,
    "channel_slice": channel_slice,
}
LAYOUTS = DENSE | STRANGE


def is_dense(x: Tensor, layout: str) -> bool:
    """Whether the strides are exactly those of a fresh tensor in a `DENSE` layout."""
    expected = DENSE[layout](torch.empty(x.shape, device="meta")).stride()
    # The stride of a dimension with one element (or in an empty tensor) says nothing.
    return x.numel() == 0 or all(
        size == 1 or stride == wanted
        for size, stride, wanted in zip(x.shape, x.stride(), expected, strict=True)
    )
