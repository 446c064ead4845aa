"""Runs of calls: how a call of some kind runs is worked out once, and kept.

A small layer is done before Python has looked at its arguments. So a launcher of GPU kernels is in
two steps. The first looks at everything but the values of the tensors, chooses the kernels, cuts
the tiles, and returns a function of the same arguments: the run. The second is that run, which
allocates and launches. Runs are kept by what the first step looks at (`call_key`).
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vmf_kernels import _extension
from vmf_kernels.checks import wants_grad

Run = Callable[..., Any]
MOST_RUNS = 4096
_PLAIN = (Tensor, torch.nn.Parameter)
_INTS = {int}
_DEEPEST = 3  # of what lies within each other: a list may contain itself
_PLAIN_VALUES = (float, bool, str, type(None), torch.Size)


def in_python(args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """`call_key` where the C++ extension is not built."""
    grads = torch.is_grad_enabled()
    parts: list[Any] = []
    for arg in args:
        if type(arg) in _PLAIN:
            if arg.layout is not torch.strided or arg.is_neg():
                return None
            try:
                of_tensor = (arg.shape, arg.stride(), arg.dtype, arg.device, arg.data_ptr() % 16)
            except RuntimeError:  # it has no memory, or no sizes
                return None
            parts.append((*of_tensor, grads and arg.requires_grad))
        else:
            parts.append(_frozen(arg))
            if parts[-1] is NotImplemented:
                return None
    return tuple(parts)


def _frozen(value: Any, depth: int = 0) -> Any:
    """Equal for values of equal types alone, which 1, 1.0 and True are not."""
    kind = type(value)
    if kind is int:
        return value
    if kind is tuple or kind is list:
        if {*map(type, value)} == _INTS:
            return (kind, *value)
        if depth == _DEEPEST:
            return NotImplemented
        parts = (kind, *(_frozen(part, depth + 1) for part in value))
        return NotImplemented if NotImplemented in parts else parts
    return (kind, value) if kind in _PLAIN_VALUES else NotImplemented


# All that decides how a call runs, of its arguments: of tensors everything but the values. None
# where that is not all of it: one is neither a plain strided tensor nor a number, a bool, a string,
# None, or a tuple or list of such.
call_key: Callable[[tuple[Any, ...]], Any] = getattr(_extension._C, "call_key", None) or in_python


class Runs(dict[Any, Run]):
    """What is kept, by key."""

    def keep(self, key: Any, run: Run) -> None:
        """Keeps one, in place of all others where there are `MOST_RUNS`."""
        if len(self) >= MOST_RUNS:
            self.clear()
        self[key] = run


def someone_listens() -> bool:
    """Whether a mode, a tracer or a transform has to see a call."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def without_preparing(run: Run, args: tuple[Any, ...], prepared: tuple[Any, ...]) -> Run | None:
    """What runs calls like that of `args`, which are `prepared` for `run`.

    Without gradients that is what `run.plan` makes of them, if there is one. None where the tensors
    are not the first arguments and the same in both, and without gradients on a CPU, where rules
    that look at threads and instruction sets leave calls to PyTorch.
    """
    tensors = sum(isinstance(arg, Tensor) for arg in args)
    rest = prepared[tensors:]
    same = all(a is b for a, b in zip(args[:tensors], prepared[:tensors], strict=True))
    if not same or any(isinstance(arg, Tensor) for arg in rest):
        return None
    grads = wants_grad(*args[:tensors])
    if not grads and not args[0].is_cuda:
        return None
    plan = None if grads else getattr(run, "plan", None)
    planned: Run = run if plan is None else plan(*prepared) or run
    return lambda *args: planned(*args[:tensors], *rest)


def launcher(plan: Callable[..., Run]) -> Run:
    """A launcher made of its first step, which stays to be had as its attribute `plan`."""

    @wraps(plan)
    def launch(*args: Any) -> Any:
        return plan(*args)(*args)

    launch.plan = plan  # type: ignore[attr-defined]
    return launch
