"""Fused kernels for depthwise 3D convolution and few-token cross-attention, with autograd."""

from vmf_kernels.accelerate import accelerate, restore
from vmf_kernels.backends import use_backend
from vmf_kernels.explain import explain
from vmf_kernels.fuse import fuse
from vmf_kernels.layers import DepthwiseConv3d, DepthwiseConvTranspose3d
from vmf_kernels.memory import keep_freed_memory, release_memory
from vmf_kernels.ops.depthwise_conv3d import depthwise_conv3d
from vmf_kernels.ops.depthwise_conv_transpose3d import depthwise_conv_transpose3d
from vmf_kernels.ops.dynamic_relu import dynamic_relu
from vmf_kernels.ops.few_key_attention import few_key_attention
from vmf_kernels.ops.few_query_attention import few_query_attention

from vmf_kernels import reference  # isort: skip (wraps the functions above)

from vmf_kernels.version import __version__

__all__ = [
    "DepthwiseConv3d",
    "DepthwiseConvTranspose3d",
    "__version__",
    "accelerate",
    "depthwise_conv3d",
    "depthwise_conv_transpose3d",
    "dynamic_relu",
    "explain",
    "few_key_attention",
    "few_query_attention",
    "fuse",
    "keep_freed_memory",
    "reference",
    "release_memory",
    "restore",
    "use_backend",
]
