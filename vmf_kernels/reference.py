"""Every op in plain PyTorch: the definition of correct, on any device, in any floating dtype.

The same functions with the same signatures as in `vmf_kernels`.
"""

from functools import wraps
from typing import Any

import vmf_kernels
from vmf_kernels.backends import OPS, use_backend


def _reference(name: str) -> Any:
    function = getattr(vmf_kernels, name)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with use_backend("reference"):
            return function(*args, **kwargs)

    return run


depthwise_conv3d = _reference("depthwise_conv3d")
depthwise_conv_transpose3d = _reference("depthwise_conv_transpose3d")
few_query_attention = _reference("few_query_attention")
few_key_attention = _reference("few_key_attention")
dynamic_relu = _reference("dynamic_relu")

__all__ = sorted(OPS)
