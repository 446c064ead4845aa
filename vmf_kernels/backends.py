"""Which backend runs a call: one ordered list of predicates dispatches, explains and refuses."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from torch._C import _is_any_autocast_enabled
from torch.compiler import is_compiling

from vmf_kernels import _extension, _runs, tiles
from vmf_kernels.checks import without_autocast

NAMES = ("auto", "reference", "cpu", "triton", "cuda")
IN_PYTORCH = ("reference", "pytorch")  # the second is its own op where that was measured faster
KERNELS_OF_DEVICE = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}

_forced: ContextVar[str] = ContextVar(
    "vmf_kernels_backend", default=os.environ.get("VMF_BACKEND") or "auto"
)


@dataclass(frozen=True)
class Backend:
    """One way to run an op.

    Attributes:
        name: one of `NAMES` but not "auto", or "pytorch", which only "auto" takes.
        cannot_run: takes the prepared arguments of the op; returns None where the backend can run
            them, else the exception that says why not (RuntimeError: the environment lacks
            something; NotImplementedError: the backend does not cover this call).
        run: takes the same arguments and computes the op.
        device: the only one where it can run, which saves asking; None if there are several.
        slower: takes the same arguments; says in words why a later backend was measured to be
            faster for them, or returns None. Only "auto" asks.
        how: takes the same arguments; says in words how its kernels are set for them.
        auto: what "auto" runs in place of `run`, if anything: the same, but for gradients that
            need not be this backend's.
    """

    name: str
    cannot_run: Callable[..., Exception | None]
    run: Callable[..., Any]
    device: str | None = None
    slower: Callable[..., str | None] = lambda *prepared: None
    how: Callable[..., str] = lambda *prepared: ""
    auto: Callable[..., Any] | None = None


class Op:
    """A public op: how its arguments are prepared, and its backends, fastest first.

    Calling it prepares the arguments (casts under autocast, checks, normal forms) and runs the
    first backend that can.
    """

    def __init__(
        self,
        name: str,
        prepare: Callable[..., tuple[Any, ...]],
        backends: tuple[Backend, ...],
        extends: "Op | None" = None,
    ) -> None:
        self.name = name
        self.prepare = prepare
        self._runs = _runs.Runs()
        self.backends = tuple(
            # Kernels compute in the dtypes that they get; PyTorch under autocast would not.
            replace(b, run=without_autocast(b.run)) if b.name in IN_PYTORCH else b
            for b in backends
        )
        # The whole of an ordinary call without gradients in C++ (csrc/bindings/direct.h), by the
        # backend that is asked for.
        self._infer: dict[str, Callable[..., Any]] = {}
        # What runs instead where the public function's keyword-only arguments are given.
        self.extension: Op | None = None
        if extends is None:
            infer = getattr(_extension._C, f"infer_{name}", None)
            if infer is not None:
                on_cpu = getattr(_extension._C, f"infer_{name}_cpu", infer)
                self._infer = {"auto": infer, "cpu": on_cpu}
            OPS[name] = self
        else:
            extends.extension = self

    @property
    def backends(self) -> tuple[Backend, ...]:
        """Fastest first."""
        return self._backends

    @backends.setter
    def backends(self, backends: tuple[Backend, ...]) -> None:
        self._backends = backends
        self._runs.clear()  # others may be chosen now

    def __call__(self, *args: Any) -> Any:
        if not is_compiling():
            infer = self._infer.get(_forced.get())  # a wrong name has none, and is told below
            if infer is not None and not getattr(args[0], "is_cuda", False):
                output = infer(*args)
                if output is not None:
                    return output
            if not (tiles.are_forced() or _is_any_autocast_enabled() or _runs.someone_listens()):
                return self._as_before(*args)
        return self._run(*args)

    def _as_before(self, *args: Any) -> Any:
        """Calls of one kind are prepared once; what is left for the others is kept."""
        wanted, key = _forced.get(), _runs.call_key(args)
        run = self._runs.get((wanted, key))
        if run is not None:
            return run(*args)
        prepared = self.prepare(*args)
        run = self._choose(*prepared)
        if key is not None and (args[0].is_cuda or wanted in self._infer):
            kept = _runs.without_preparing(run, args, prepared)
            if kept is not None:
                self._runs.keep((wanted, key), kept)
                return kept(*args)
        return run(*prepared)

    def _run(self, *args: Any) -> Any:
        prepared = self.prepare(*args)
        return self._choose(*prepared)(*prepared)

    def _choose(self, *prepared: Any) -> Callable[..., Any]:
        """What runs these arguments."""
        backend = self.select(*prepared)
        if backend.auto is not None and current_backend() == "auto":
            return backend.auto
        return backend.run

    def select(self, *prepared: Any) -> Backend:
        """The backend that runs these arguments.

        Raises:
            RuntimeError, NotImplementedError: the one that `use_backend` asks for cannot.
        """
        wanted, device = current_backend(), prepared[0].device.type
        for backend in self.backends:
            if backend.device is not None and backend.device != device:
                continue
            if wanted not in ("auto", backend.name) or backend.cannot_run(*prepared) is not None:
                continue
            if wanted == backend.name or backend.slower(*prepared) is None:
                return backend
        refusal = self.refusal(wanted, *prepared)
        raise type(refusal)(f"{self.name}: backend '{wanted}' cannot run this call: {refusal}")

    def refusal(self, name: str, *prepared: Any) -> Exception:
        """Why the backend `name` does not run these arguments."""
        for backend in self.backends:
            if backend.name == name:
                return backend.cannot_run(*prepared) or NotImplementedError(
                    backend.slower(*prepared) or "another is asked for"
                )
        return NotImplementedError("this op has no such kernel yet")


OPS: dict[str, Op] = {}


def always(*prepared: Any) -> None:
    """The predicate of a backend that runs every call."""


def cpu_cannot_run(tensor: Any, *rest: Any) -> Exception | None:
    """What every kernel of the C++ backend needs: the extension, and a CPU tensor."""
    if not tensor.is_cpu:
        return NotImplementedError(f"it runs on the CPU (got a tensor on {tensor.device})")
    if not _extension.LOADED:
        return RuntimeError(_extension.REASON)
    return None


def current_backend() -> str:
    """The backend that `use_backend` or VMF_BACKEND asks for, else "auto".

    Compiled and exported code keeps the answer of the moment when it was traced.
    """
    return _check_name(_forced.get(), "VMF_BACKEND")


# What `torch.compiler.assume_constant_result` does, which would import the whole compiler now.
current_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs every op inside the `with` block on one backend, in this thread and context.

    Args:
        name: "auto" (the first that can), "reference" (plain PyTorch), "cpu", "triton" or "cuda".
            The environment variable VMF_BACKEND sets the same for a whole process. Compiled and
            exported code keeps the backend under which it was traced.

    Raises:
        ValueError: no such backend. Inside the block, a call that the backend cannot run
            raises and says why; "auto" goes on to the next one.
    """
    token = _forced.set(_check_name(name, "use_backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def _check_name(name: str, where: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{where}: the backend must be one of {', '.join(NAMES)} (got {name!r})")
    return name
