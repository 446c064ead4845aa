"""Dynamic ReLU: two slopes per sample and channel, given by the network itself."""

from typing import Any

from torch import Tensor

from vmf_kernels import _triton, tiles
from vmf_kernels.backends import Backend, Op, always, cpu_cannot_run
from vmf_kernels.checks import autocast, check_tensors
from vmf_kernels.ops.dynamic_relu import library, reference

NAME = "dynamic_relu"


def dynamic_relu(features: Tensor, a1: Tensor, a2: Tensor) -> Tensor:
    """`max(a1 x, a2 x)` with slopes per sample and channel.

    Dynamic ReLU-B (arXiv 2003.10027) without intercepts, as Mobile-Former (arXiv 2108.05895)
    uses it.

    Args:
        features: (B, C, *spatial), any floating dtype, any strides.
        a1: (B, C), same dtype and device.
        a2: (B, C).

    Returns:
        (B, C, *spatial) in the dtype and memory format of the features.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
        TypeError: an argument is no tensor.
        NotImplementedError, RuntimeError: the backend that `use_backend` asks for cannot run it.
    """
    return OP(features, a1, a2)


def _prepare(features: Tensor, a1: Tensor, a2: Tensor) -> tuple[Any, ...]:
    features, a1, a2 = autocast(features, a1, a2)
    check_tensors(NAME, features=features, a1=a1, a2=a2)
    if features.dim() < 2 or a1.shape != features.shape[:2] or a2.shape != features.shape[:2]:
        raise ValueError(
            f"{NAME}: features must be (B, C, *spatial), a1 and a2 (B, C) (got shapes "
            f"{tuple(features.shape)}, {tuple(a1.shape)} and {tuple(a2.shape)})"
        )
    return features, a1, a2


def _tile(features: Tensor, *rest: Any) -> str:
    return tiles.told(NAME, "forward", features)


OP = Op(
    NAME,
    _prepare,
    (
        Backend("cpu", cpu_cannot_run, library.dynamic_relu, "cpu"),
        Backend("triton", _triton.cannot_run(), library.dynamic_relu, how=_tile),
        Backend("reference", always, reference.dynamic_relu),
    ),
)
