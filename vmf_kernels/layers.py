"""Layers: thin modules over the ops."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmf_kernels import onednn
from vmf_kernels.ops.depthwise_conv3d import depthwise_conv3d
from vmf_kernels.ops.depthwise_conv3d.epilogue import ELEMENTWISE
from vmf_kernels.ops.depthwise_conv3d.geometry import normalise, output_size
from vmf_kernels.ops.depthwise_conv_transpose3d import depthwise_conv_transpose3d

# Those of ELEMENTWISE that can write where they read.
IN_PLACE = {"relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "silu": F.silu}


class DepthwiseConv3d(nn.Conv3d):
    """An `nn.Conv3d` with `groups=in_channels`, run by `depthwise_conv3d`.

    Same `state_dict`, same initialisation, same `repr` fields as `nn.Conv3d`; also takes three
    (before, after) pairs as padding.

    Args:
        in_channels: C.
        out_channels: m*C for a channel multiplier m >= 1.
        kernel_size: an int, or three for T, H, W.
        stride, padding, dilation: as in `depthwise_conv3d`.
        bias: whether there is one.
        device, dtype: of the parameters.
        padding_mode: as in `nn.Conv3d`; one that is not "zeros" pads first, in a pass of its own,
            and takes no pairs.

    Raises:
        ValueError: out_channels is no multiple of in_channels, or a value is out of range.
        TypeError: a value has the wrong type.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: Any = 0,
        dilation: int | tuple[int, int, int] = 1,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
    ) -> None:
        _check_channels("DepthwiseConv3d", in_channels, out_channels, kernel_size)
        pairs = padding if _is_pairs(padding) else None
        if pairs and padding_mode != "zeros":
            raise ValueError(
                "DepthwiseConv3d: (before, after) pairs are padded with zeros "
                f"(got padding_mode={padding_mode!r})"
            )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            0 if pairs else padding,
            dilation,
            groups=in_channels,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        if pairs:
            self.padding: Any = tuple(tuple(pair) for pair in pairs)
        normalise(self.kernel_size, self.stride, self.padding, self.dilation)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, T, H, W) or (C, T, H, W) to (N, m*C, T', H', W') or (m*C, T', H', W')."""
        return depthwise_conv3d(*self._arguments(input))

    def _arguments(self, input: Tensor) -> tuple[Any, ...]:
        """Those of the op; what it does not pad itself is padded.

        Raises:
            ValueError: other channels than the layer's, which the op would take for a multiplier.
        """
        if input.dim() in (4, 5) and input.shape[-4] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__}: input must have {self.in_channels} channels "
                f"(got shape {tuple(input.shape)})"
            )
        padding = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return input, self.weight, self.bias, self.stride, padding, self.dilation


class DepthwiseConvTranspose3d(nn.ConvTranspose3d):
    """An `nn.ConvTranspose3d` with `groups=in_channels`, run by `depthwise_conv_transpose3d`.

    Same `state_dict`, same initialisation, same `repr` fields as `nn.ConvTranspose3d`.

    Args:
        in_channels: C.
        out_channels: m*C for a channel multiplier m >= 1.
        kernel_size: an int, or three for T, H, W.
        stride, padding, output_padding, dilation: as in `depthwise_conv_transpose3d`.
        bias: whether there is one.
        device, dtype: of the parameters.

    Raises:
        ValueError: out_channels is no multiple of in_channels, or a value is out of range.
        TypeError: a value has the wrong type.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int | tuple[int, int, int] = 0,
        output_padding: int | tuple[int, int, int] = 0,
        bias: bool = True,
        dilation: int | tuple[int, int, int] = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _check_channels("DepthwiseConvTranspose3d", in_channels, out_channels, kernel_size)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            in_channels,
            bias,
            dilation,
            device=device,
            dtype=dtype,
        )
        normalise(
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            "depthwise_conv_transpose3d",
        )

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C, T, H, W) or (C, T, H, W) to (N, m*C, T', H', W') or (m*C, T', H', W')."""
        layer: Any = self  # whose stubs know less than PyTorch does
        output_padding = layer._output_padding(
            input, output_size, self.stride, self.padding, self.kernel_size, 3, self.dilation
        )
        settings = (self.stride, layer.padding, output_padding, self.dilation)
        return depthwise_conv_transpose3d(input, self.weight, self.bias, *settings)


class AcceleratedConvTranspose3d(DepthwiseConvTranspose3d):
    """What `accelerate` makes of an `nn.ConvTranspose3d`; `restore` undoes it."""


class AcceleratedConv3d(DepthwiseConv3d):
    """What `accelerate` makes of an `nn.Conv3d`, and `restore` an `nn.Conv3d` of again."""


class FusedDepthwiseConv3d(DepthwiseConv3d):
    """What `fuse` makes of a depthwise convolution and what follows it.

    Attributes:
        activation: its name, as `depthwise_conv3d` takes it, or None.
    """

    activation: str | None

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """`activation(conv(input) + residual)`, in one pass where the residual is like the rest."""
        arguments = self._arguments(input)
        if residual is None or _is_like_output(residual, *arguments):
            return depthwise_conv3d(*arguments, activation=self.activation, residual=residual)
        return _finish(depthwise_conv3d(*arguments), self.activation, residual)

    def extra_repr(self) -> str:
        """As of `nn.Conv3d`, and the activation."""
        return f"{super().extra_repr()}, activation={self.activation}"


class FusedConv3d(nn.Conv3d):
    """What `fuse` makes of another convolution and what follows it.

    In float32 on a CPU that is a pass of oneDNN, which PyTorch has for its compiler's sake;
    elsewhere the steps follow each other.

    Attributes:
        activation: a name of `onednn.ACTIVATIONS`, or None.
        overwrites: the residual's memory becomes the output's, as nobody else wants it.
    """

    activation: str | None
    overwrites = False

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """`activation(conv(input) + residual)`."""
        geometry = (self.stride, self.padding, self.dilation)
        fits = residual is None or _is_like_output(residual, input, self.weight, None, *geometry)
        plain = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        if fits and plain and onednn.can_run(input, self.weight, residual):
            return onednn.conv3d(
                input,
                self.weight,
                self.bias,
                *geometry,
                self.groups,
                activation=self.activation,
                residual=residual,
                overwrites=self.overwrites,
            )
        return _finish(super().forward(input), self.activation, residual)

    def extra_repr(self) -> str:
        """As of `nn.Conv3d`, and the activation."""
        return f"{super().extra_repr()}, activation={self.activation}"


def _is_like_output(
    residual: Tensor, input: Tensor, weight: Tensor, bias: Any, *geometry: Any
) -> bool:
    if residual.dtype != input.dtype or torch.is_autocast_enabled(input.device.type):
        return False  # their sum has another dtype than the convolution
    normal = normalise(weight.shape[2:], *geometry)
    return residual.shape == output_size(input.shape, weight.shape, *normal)


def _finish(output: Tensor, activation: str | None, residual: Tensor | None) -> Tensor:
    """Step by step, from a convolution's output that nobody else has."""
    if residual is not None:
        output = output + residual
    if activation is None:
        return output
    in_place = IN_PLACE.get(activation)
    return ELEMENTWISE[activation](output) if in_place is None else in_place(output, inplace=True)


def multiply_in_place(a: Any, b: Any) -> Any:
    """`a * b`, in the memory of `a` where it fits there and no gradient wants what was there."""
    return a.mul_(b) if _can_hold_product(a, b) else a * b


def _can_hold_product(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return False
    shape = torch.broadcast_shapes(a.shape, b.shape)
    return shape == a.shape and torch.result_type(a, b) == a.dtype


def _check_channels(name: str, in_channels: int, out_channels: int, kernel_size: Any) -> None:
    if in_channels < 1 or out_channels < 1 or out_channels % in_channels:
        raise ValueError(
            f"{name}: out_channels must be a multiple of in_channels "
            f"(got in_channels={in_channels}, out_channels={out_channels})"
        )
    if min((kernel_size,) if isinstance(kernel_size, int) else kernel_size) < 1:
        raise ValueError(f"{name}: kernel_size must be at least 1 (got {kernel_size})")


def _is_pairs(padding: Any) -> bool:
    return not isinstance(padding, int | str) and any(not isinstance(p, int) for p in padding)
