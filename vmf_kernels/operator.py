"""What an op is to PyTorch: schema, fake kernel, gradient, FLOPs, and a short path for eager calls.

A Python-registered gradient costs an eager training call about 25 us more than an
`autograd.Function` does, and every call without gradients 5 us more than the op alone. So an
`Operator` registers its gradient with the op (for `torch.compile`, `torch.export`, `opcheck` and
`torch.func`) and takes the shorter road itself in plain eager mode; both share one `setup_context`
and one `backward`. The dispatcher costs another 5 to 10 us: plain CPU tensors go straight to the
kernel's binding while nothing listens to the dispatcher (csrc/bindings/direct.h), plain CUDA
tensors to a run that is kept (_runs.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from vmf_kernels import _extension, _gpu, _runs, _triton
from vmf_kernels.checks import without_autocast

NAMESPACE = "vmf_kernels"


class Operator:
    """A custom op `torch.ops.vmf_kernels.<name>`, callable with its schema's arguments in order.

    Args:
        schema: `name(Tensor a, ..., int b) -> Tensor`; the tensors come first.
        fake: computes the outputs' sizes, strides and dtypes from fake inputs.
        reference: computes the outputs in plain PyTorch; runs wherever no kernel is registered.
        flops: `(shapes and arguments of the schema..., out_shape) -> int`.
        setup_context: `(ctx, inputs, output)`, as in `torch.library.register_autograd`.
        backward: `(ctx, *grad_outputs) -> gradients of all inputs`, from differentiable ops.
        kernels: for CUDA tensors, the kinds there are, those asked first in front.
        launcher: the name of their launchers, where it is not the operator's.
    """

    def __init__(
        self,
        schema: str,
        *,
        fake: Callable[..., Any],
        reference: Callable[..., Any],
        flops: Callable[..., int],
        setup_context: Callable[..., None],
        backward: Callable[..., Any],
        kernels: tuple[_gpu.Kernels, ...] = (),
        launcher: str | None = None,
    ) -> None:
        self.name = schema.partition("(")[0]
        qualified = f"{NAMESPACE}::{self.name}"
        torch.library.define(qualified, schema[len(self.name) :])
        torch.library.impl(qualified, "CompositeExplicitAutograd", without_autocast(reference))
        torch.library.register_fake(qualified, fake)
        torch.library.register_autograd(qualified, backward, setup_context=setup_context)
        packet = getattr(getattr(torch.ops, NAMESPACE), self.name)
        register_flop_formula(packet)(_flops_from_shapes(flops))
        self.op = packet.default
        self._launcher = None
        if kernels:
            self._launcher = _gpu.Launcher(launcher or self.name, kernels, reference)
            torch.library.impl(qualified, "CUDA", self._launcher)
        self._direct = getattr(_extension._C, self.name, None)
        self._function = _function(self, setup_context, backward)
        self._transformable = _transformable(self, setup_context, backward)

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.op(*args)
        if torch._C._are_functorch_transforms_active():
            return self._transformable.apply(*args)
        if forward_ad._current_level >= 0:
            return self._function.apply(*args)  # which refuses tangents instead of dropping them
        if torch.is_grad_enabled():
            for arg in args:
                if isinstance(arg, torch.Tensor) and arg.requires_grad:
                    return self._function.apply(*args)
        return self.below_autograd(*args)

    def refusal(self, *args: Any) -> str | None:
        """Why GPU kernels leave a call of the operator itself to the reference, or None."""
        return "it has none" if self._launcher is None else self._launcher.refusal(*args)

    def told(self, *args: Any) -> str:
        """Which GPU kernels run a call, and how, in words."""
        return "it has none" if self._launcher is None else self._launcher.told(*args)

    def plan(self, *args: Any) -> _runs.Run | None:
        """What runs calls like this one without gradients; None where no GPU kernel may."""
        return None if self._launcher is None else self._launcher.plan(*args)

    def below_autograd(self, *args: Any) -> Any:
        """The op without its gradient, and without PyTorch's dispatcher where nothing listens."""
        if _triton.INTERPRETED and self._launcher is not None and _triton.interpreting():
            return self._launcher(*args)
        if self._launcher is not None and args[0].is_cuda and not _runs.someone_listens():
            run = self._launcher.kept(*args)
            if run is not None:
                return run(*args)
        if self._direct is not None:
            output = self._direct(*args)
            if output is not None:
                return output
        with torch._C._AutoDispatchBelowAutograd():
            return self.op(*args)


def _function(
    operator: "Operator", setup_context: Callable[..., None], backward: Callable[..., Any]
) -> type[torch.autograd.Function]:
    def forward(ctx: Any, *args: Any) -> Any:
        output = operator.below_autograd(*args)
        setup_context(ctx, args, output)
        return output

    members = {
        "forward": staticmethod(forward),
        "backward": staticmethod(backward),
        "jvp": staticmethod(_refuse_jvp(operator)),
    }
    return type(operator.name, (torch.autograd.Function,), members)


def _refuse_jvp(operator: "Operator") -> Callable[..., Any]:
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(
            f"{operator.name}: forward-mode derivatives are not defined for kernels "
            "(use_backend('reference') has them)"
        )

    return jvp


def _transformable(
    operator: "Operator", setup_context: Callable[..., None], backward: Callable[..., Any]
) -> type[torch.autograd.Function]:
    """The form that `torch.func` can differentiate and map; each call peels off one transform."""

    def forward(*args: Any) -> Any:
        return operator(*args)

    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        outputs = [
            operator(
                *(
                    arg.select(dim, i) if isinstance(dim, int) else arg
                    for arg, dim in zip(args, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        if isinstance(outputs[0], tuple):
            stacked = tuple(torch.stack(parts) for parts in zip(*outputs, strict=True))
            return stacked, (0,) * len(stacked)
        return torch.stack(outputs), 0

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "vmap": staticmethod(vmap),
        "jvp": staticmethod(_refuse_jvp(operator)),
    }
    return type(operator.name, (torch.autograd.Function,), members)


def _flops_from_shapes(flops: Callable[..., int]) -> Callable[..., int]:
    def formula(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return flops(*args, out_shape)

    return formula


def differentiate_reference(
    reference: Callable[..., Any], inputs: tuple[Any, ...], grad_output: Any
) -> tuple[Any, ...]:
    """Gradients of `reference(*inputs)` that can be differentiated again.

    A backward op calls this for its own gradient: second derivatives are rare, and PyTorch's
    autograd over the reference gives them.

    Returns:
        One gradient per input; None where the input is no tensor or needs none.
    """
    with torch.enable_grad():
        wanted = [i for i, x in enumerate(inputs) if isinstance(x, torch.Tensor)]
        leaves = list(inputs)
        for i in wanted:
            if not leaves[i].requires_grad:
                leaves[i] = leaves[i].detach().requires_grad_()
        output = reference(*leaves)
        grads = torch.autograd.grad(
            output,
            [leaves[i] for i in wanted],
            grad_output,
            create_graph=True,
            materialize_grads=True,
        )
    result: list[Any] = [None] * len(inputs)
    for i, grad in zip(wanted, grads, strict=True):
        result[i] = grad
    return tuple(result)
