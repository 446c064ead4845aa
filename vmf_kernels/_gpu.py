"""An operator's way to its GPU kernels, of whatever kind they are."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from vmf_kernels import _triton, tiles
from vmf_kernels._runs import Run, Runs, call_key
from vmf_kernels.checks import without_autocast


@dataclass(frozen=True)
class Kernels:
    """One kind of GPU kernels for an operator.

    Attributes:
        module: has the launcher; imported by the first call.
        refuses: takes the operator's arguments; what is not covered, in words.
        missing: why these kernels cannot run here, or None.
        slower: takes the operator's arguments; why the next kind was measured to be faster, or
            None.
        how: takes the operator's arguments; says in words how the work is divided.
        name: for people.
    """

    module: str
    refuses: Callable[..., str | None] = lambda *args: None
    missing: Callable[[], str | None] = _triton.missing
    slower: Callable[..., str | None] = lambda *args: None
    how: Callable[..., str] = lambda *args: ""
    name: str = "Triton"

    def refusal(self, tensor: Tensor, *rest: Any) -> str | None:
        """Why they do not run a call, or None."""
        return self.missing() or _triton.wrong_dtype(tensor) or self.refuses(tensor, *rest)


class Launcher:
    """An operator's way to GPU kernels: same arguments.

    The first kind of kernels that covers a call and is not slower than the next runs it. What none
    covers (as a compiled graph or a direct call of the operator may ask for) runs through the
    reference.

    Args:
        name: of the launchers.
        kinds: of kernels, those asked first in front.
        reference: the operator in plain PyTorch.
    """

    def __init__(self, name: str, kinds: tuple[Kernels, ...], reference: Run) -> None:
        self.name, self.kinds = name, kinds
        self.reference = without_autocast(reference)
        self.runs = Runs()

    def choose(self, *args: Any) -> Kernels | None:
        """The kernels that run a call; None: the reference does."""
        able = [kernels for kernels in self.kinds if kernels.refusal(*args) is None]
        for kernels in able:
            if kernels is able[-1] or kernels.slower(*args) is None:
                return kernels
        return None

    def refusal(self, *args: Any) -> str | None:
        """Why the reference runs a call, or None."""
        return self.kinds[-1].refusal(*args) if self.choose(*args) is None else None

    def told(self, *args: Any) -> str:
        """Which kernels run a call, and how, in words."""
        kernels = self.choose(*args)
        if kernels is None:
            return f"PyTorch, {self.refusal(*args)}"
        passed = [k for k in self.kinds[: self.kinds.index(kernels)] if k.missing() is None]
        reasons = [f"; {k.name}: {k.refusal(*args) or k.slower(*args)}" for k in passed]
        return f"{kernels.name}, {kernels.how(*args)}{''.join(reasons)}"

    def plan(self, *args: Any) -> Run:
        """The run of calls like this one."""
        kernels = self.choose(*args)
        if kernels is None:
            return self.reference
        run: Run = getattr(import_module(kernels.module), self.name).plan(*args)
        return _on_device(run, args[0].get_device()) if args[0].is_cuda else run

    def __call__(self, *args: Any) -> Any:
        run = self.kept(*args) if args[0].is_cuda else None
        return (run or self.plan(*args))(*args)

    def kept(self, *args: Any) -> Run | None:
        """The run of calls like this one, kept for others; None where an argument is not plain."""
        key = call_key(args)
        if key is None:
            return None
        if tiles.are_forced():
            return self.plan(*args)
        run = self.runs.get(key)
        if run is None:
            run = self.plan(*args)
            self.runs.keep(key, run)
        return run


def _on_device(run: Run, index: int) -> Run:
    """`run` with that device as the current one."""

    def launch(*args: Any) -> Any:
        if torch._C._cuda_getDevice() == index:
            return run(*args)
        with torch.cuda.device(index):
            return run(*args)

    return launch
