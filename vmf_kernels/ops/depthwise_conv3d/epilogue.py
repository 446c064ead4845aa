"""What may follow the convolution in the same pass over its output: a residual, an activation.

`activation(conv(input) + bias + residual)`, for inference: where a gradient is wanted, the steps
are ops of their own, as the gradient needs what lies between them.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vmf_kernels import _cuda, _triton
from vmf_kernels._gpu import Kernels
from vmf_kernels.backends import Backend, Op, always
from vmf_kernels.checks import autocast, check_tensors
from vmf_kernels.layout import is_channels_last, to_layout, widen
from vmf_kernels.operator import Operator, differentiate_reference
from vmf_kernels.ops.depthwise_conv3d import cuda, dispatch, library, reference
from vmf_kernels.ops.depthwise_conv3d.geometry import NAME, as_batch, output_size
from vmf_kernels.ops.dynamic_relu import dynamic_relu
from vmf_kernels.ops.dynamic_relu import reference as dynamic_relu_reference

ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
}
# The op takes the index: the order of `Activation` in csrc/include/vmf/depthwise_conv3d.h.
ACTIVATIONS = (None, *ELEMENTWISE, "dynamic_relu")


def step_by_step(output: Tensor, activation: Any, residual: Tensor | None) -> Tensor:
    """`activation(output + residual)` by differentiable ops.

    Args:
        output: (N, C, T, H, W) or (C, T, H, W), of the convolution with its bias.
        activation: as `depthwise_conv3d` takes it.
        residual: like the output, or None.

    Raises:
        ValueError, TypeError: they do not fit.
    """
    name, a1, a2 = _parse(activation)
    output, residual, a1, a2 = autocast(output, residual, a1, a2)
    _check(output, tuple(output.shape), residual, a1, a2)
    if residual is not None:
        output = output + residual
    if name is None:
        return output
    if name != "dynamic_relu":
        return ELEMENTWISE[name](output)
    if output.dim() == 4:
        return dynamic_relu(output.unsqueeze(0), a1.unsqueeze(0), a2.unsqueeze(0)).squeeze(0)
    return dynamic_relu(output, a1, a2)


def _parse(activation: Any) -> tuple[str | None, Any, Any]:
    """The name of an activation, and its slopes if it has any."""
    if activation is None or (isinstance(activation, str) and activation in ELEMENTWISE):
        return activation, None, None
    if isinstance(activation, tuple | list) and len(activation) == 2:
        return "dynamic_relu", *activation
    if not isinstance(activation, str | tuple | list):
        raise TypeError(
            f"{NAME}: activation must be a name, two slopes or None "
            f"(got {type(activation).__name__})"
        )
    got = repr(activation) if isinstance(activation, str) else f"{len(activation)} values"
    raise ValueError(
        f"{NAME}: activation must be one of {', '.join(ELEMENTWISE)}, or the two slopes (a1, a2) "
        f"of a dynamic ReLU (got {got})"
    )


def _check(like: Tensor, shape: tuple[int, ...], residual: Any, a1: Any, a2: Any) -> None:
    """Raises unless the tensors fit an output of this shape, with dtype and device of `like`."""
    given = {"residual": residual, "a1": a1, "a2": a2}
    if a1 is None:
        del given["a1"], given["a2"]
    if residual is None:
        del given["residual"]
    check_tensors(NAME, input=like, **given)
    for name, tensor in given.items():
        wanted = shape if name == "residual" else shape[:-3]
        if tensor.shape != wanted:
            raise ValueError(
                f"{NAME}: {name} must have shape {tuple(wanted)}, as the output has {tuple(shape)} "
                f"(got shape {tuple(tensor.shape)})"
            )


def _prepare(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    activation: Any,
    residual: Tensor | None,
) -> tuple[Any, ...]:
    name, a1, a2 = _parse(activation)
    arguments = (input, weight, bias, stride, padding, dilation)
    input, weight, bias, *geometry = dispatch.prepare(*arguments)
    _, residual, a1, a2 = autocast(input, residual, a1, a2)
    _check(input, output_size(input.shape, weight.shape, *geometry), residual, a1, a2)
    return input, weight, bias, residual, a1, a2, ACTIVATIONS.index(name), *geometry


def _reference(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    a1: Tensor | None,
    a2: Tensor | None,
    activation: int,
    *geometry: Any,
) -> Tensor:
    """Rounded to a 16-bit dtype once, at the end."""
    wide: list[Any] = [
        None if t is None else widen(t) for t in (input, weight, bias, residual, a1, a2)
    ]
    output = reference.depthwise_conv3d(*wide[:3], *geometry)
    if residual is not None:
        output = output + wide[3]
    name = ACTIVATIONS[activation]
    if name == "dynamic_relu":
        output = dynamic_relu_reference.dynamic_relu(output, *wide[4:])
    elif name is not None:
        output = ELEMENTWISE[name](output)
    return to_layout(output.to(input.dtype), is_channels_last(input))


def _fake(input: Tensor, weight: Tensor, bias: Any, r: Any, a1: Any, a2: Any, *rest: Any) -> Tensor:
    return library.fake(input, weight, bias, *rest[1:])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.settings = inputs[6:]


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    inputs = (*ctx.saved_tensors, *ctx.settings)
    return differentiate_reference(_reference, inputs, grad_output)


def _of_convolution(predicate: Callable[..., Any]) -> Callable[..., Any]:
    """A predicate of the convolution's arguments as one of all."""
    return lambda input, weight, bias, r, a1, a2, f, *geometry: predicate(
        input, weight, bias, *geometry
    )


depthwise_conv3d_fused: Operator = Operator(
    "depthwise_conv3d_fused(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, "
    "Tensor? a1, Tensor? a2, int activation, int[3] stride, int[6] padding, int[3] dilation) "
    "-> Tensor",
    fake=_fake,
    reference=_reference,
    flops=lambda x, w, b, r, a1, a2, f, s, p, d, out: library.forward_flops(out, w),
    setup_context=_setup,
    backward=_backward,
    kernels=(
        Kernels(
            library.TRITON_MODULE, _of_convolution(library.triton_refuses), how=library.gather_tile
        ),
    ),
)


def _unbatched(run: Any) -> Any:
    """Lets a function of batches take one sample without its dimension, too."""

    def wrapper(input: Tensor, *rest: Any) -> Tensor:
        if input.dim() == 5:
            return run(input, *rest)
        weight, bias, *like_output = rest[:5]
        batched = (None if t is None else t.unsqueeze(0) for t in like_output)
        return run(input.unsqueeze(0), weight, bias, *batched, *rest[5:]).squeeze(0)

    return wrapper


def _in_steps(convolve: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The convolution by an op that has no epilogue, and what follows it by PyTorch's."""

    def run(
        input: Tensor, weight: Tensor, bias: Any, r: Any, a1: Any, a2: Any, f: int, *geometry: Any
    ) -> Tensor:
        activation = ACTIVATIONS[f] if a1 is None else (a1, a2)
        return step_by_step(convolve(input, weight, bias, *geometry), activation, r)

    return run


def _told(input: Tensor, *rest: Any) -> str:
    return f"forward: {depthwise_conv3d_fused.told(as_batch(input), *rest)}"


def _cpu_slower(input: Tensor, *rest: Any) -> str | None:
    """In float32 the pass that is saved makes up for what PyTorch's convolution is ahead."""
    return dispatch.cpu_slower(input, *rest) if input.dtype == torch.bfloat16 else None


OP = Op(
    NAME,
    _prepare,
    (
        Backend(
            "cpu",
            dispatch.cpu_cannot_run,
            _unbatched(depthwise_conv3d_fused),
            "cpu",
            _of_convolution(_cpu_slower),
        ),
        Backend(
            "triton",
            _of_convolution(_triton.cannot_run(library.triton_refuses)),
            _unbatched(depthwise_conv3d_fused),
            how=_told,
        ),
        Backend(
            "cuda",
            _of_convolution(_cuda.cannot_run(cuda.FORWARD.refuses)),
            _unbatched(_in_steps(library.CUDA_OPERATORS.forward)),
            "cuda",
            dispatch.unless_alone(lambda *prepared: "Triton's kernel does it all in one pass"),
            _of_convolution(dispatch.how(library.CUDA_OPERATORS)),
        ),
        Backend(
            "pytorch",
            _of_convolution(dispatch.pytorch_is_not_faster),
            _unbatched(_in_steps(reference.pytorch)),
            "cpu",
        ),
        Backend("reference", always, _unbatched(_reference)),
    ),
    extends=dispatch.OP,
)
