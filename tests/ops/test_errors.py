"""Every worded error of the ops: `op: the rule (got the values)`, and never a crash."""

from typing import Any

import pytest
import torch

import vmf_kernels
from tests.ops.samples import OPERATORS, make, operator_call

CONV = "depthwise_conv3d"
CONVS = (CONV, "depthwise_conv_transpose3d")
X, W = (2, 4, 3, 5, 6), (8, 1, 3, 3, 3)


def x(*shape: int, **options: Any) -> torch.Tensor:
    return make(*(shape or X), **options)


def w(*shape: int, **options: Any) -> torch.Tensor:
    return make(*(shape or W), **options)


HUGE = 2**40

# op, arguments, keyword arguments, error, what its message says after "op: "
WRONG: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "conv_input_is_no_tensor": (
        *(CONV, ([1.0], w()), {}, TypeError),
        r"input must be a tensor \(got list\)",
    ),
    "conv_weight_is_none": (
        *(CONV, (x(), None), {}, TypeError),
        r"weight must be a tensor \(got NoneType\)",
    ),
    "conv_bias_is_a_number": (
        *(CONV, (x(), w(), 1.0), {}, TypeError),
        r"bias must be a tensor \(got float\)",
    ),
    "conv_integers": (
        *(CONV, (x().long(), w().long()), {}, ValueError),
        r"tensors must be floating point \(got torch.int64\)",
    ),
    "conv_complex": (
        *(CONV, (x().cfloat(), w().cfloat()), {}, ValueError),
        r"tensors must be floating point \(got torch.complex64\)",
    ),
    "conv_dtypes": (
        *(CONV, (x(), w().double()), {}, ValueError),
        r"tensors must share one dtype \(got input torch.float32, weight torch.float64\)",
    ),
    "conv_devices": (
        *(CONV, (x(), w().to("meta")), {}, ValueError),
        r"tensors must share one device \(got input cpu, weight meta\)",
    ),
    "conv_input_3d": (
        *(CONV, (x(4, 5, 6), w()), {}, ValueError),
        r"input must be \(N, C, T, H, W\) or \(C, T, H, W\) \(got shape \(4, 5, 6\)\)",
    ),
    "conv_input_6d": (
        *(CONV, (x(1, *X), w()), {}, ValueError),
        r"input must be \(N, C, T, H, W\) or \(C, T, H, W\)",
    ),
    "conv_weight_4d": (
        *(CONV, (x(), w(8, 3, 3, 3)), {}, ValueError),
        r"weight must be \(m\*C, 1, kT, kH, kW\)",
    ),
    "conv_weight_not_depthwise": (
        *(CONV, (x(), w(4, 4, 3, 3, 3)), {}, ValueError),
        r"weight must be \(m\*C, 1, kT, kH, kW\).*\(got shape \(4, 4, 3, 3, 3\)\)",
    ),
    "conv_weight_without_taps": (
        *(CONV, (x(), w(4, 1, 3, 0, 3)), {}, ValueError),
        r"weight must be .* without an empty dimension",
    ),
    "conv_channels_do_not_divide": (
        *(CONV, (x(), w(6, 1, 3, 3, 3)), {}, ValueError),
        r"the weight's first dimension must be a multiple of .*\(got 6 and 4\)",
    ),
    "conv_no_channels": (
        *(CONV, (x(2, 0, 3, 5, 6), w()), {}, ValueError),
        r"the weight's first dimension must be a multiple .*\(got 8 and 0\)",
    ),
    "conv_bias_length": (
        *(CONV, (x(), w(), x(4)), {}, ValueError),
        r"bias must have one value per output channel \(got shape \(4,\) for 8 channels\)",
    ),
    "conv_bias_2d": (
        *(CONV, (x(), w(), x(8, 1)), {}, ValueError),
        r"bias must have one value per output channel",
    ),
    "conv_kernel_too_large": (
        *(CONV, (x(), w(4, 1, 7, 1, 1)), {"padding": 1}, ValueError),
        r"the kernel must fit into the padded input \(got 7 over 5 along T\)",
    ),
    "conv_dilated_kernel_too_large": (
        *(CONV, (x(), w()), {"dilation": (1, 1, 3)}, ValueError),
        r"the kernel must fit into the padded input \(got 7 over 6 along W\)",
    ),
    "conv_stride_0": (
        *(CONV, (x(), w()), {"stride": 0}, ValueError),
        r"stride must be at least 1 \(got 0\)",
    ),
    "conv_stride_negative": (
        *(CONV, (x(), w()), {"stride": (1, -2, 1)}, ValueError),
        r"stride must be at least 1 \(got -2\)",
    ),
    "conv_stride_of_two": (
        *(CONV, (x(), w()), {"stride": (1, 2)}, ValueError),
        r"stride must be one int or three \(got \(1, 2\)\)",
    ),
    "conv_stride_float": (
        *(CONV, (x(), w()), {"stride": 1.0}, TypeError),
        r"stride must be made of ints \(got float\)",
    ),
    "conv_stride_bool": (
        *(CONV, (x(), w()), {"stride": True}, TypeError),
        r"stride must be made of ints \(got bool\)",
    ),
    "conv_stride_word": (
        *(CONV, (x(), w()), {"stride": "two"}, TypeError),
        r"stride must be made of ints \(got str\)",
    ),
    "conv_dilation_0": (
        *(CONV, (x(), w()), {"dilation": 0}, ValueError),
        r"dilation must be at least 1 \(got 0\)",
    ),
    "conv_padding_negative": (
        *(CONV, (x(), w()), {"padding": -1}, ValueError),
        r"padding must be at least 0 \(got -1\)",
    ),
    "conv_padding_pair_negative": (
        *(CONV, (x(), w()), {"padding": ((0, 0), (1, -1), (0, 0))}, ValueError),
        r"padding must be at least 0 \(got -1\)",
    ),
    "conv_padding_word": (
        *(CONV, (x(), w()), {"padding": "full"}, ValueError),
        r"padding must be 'same', 'valid' or ints \(got 'full'\)",
    ),
    "conv_padding_two_pairs": (
        *(CONV, (x(), w()), {"padding": ((1, 1), (1, 1))}, ValueError),
        r"padding in pairs must be three \(before, after\) pairs",
    ),
    "conv_padding_of_six": (
        *(CONV, (x(), w()), {"padding": (1, 1, 1, 1, 1, 1)}, ValueError),
        r"padding must be one int or three",
    ),
    "conv_same_with_stride": (
        *(CONV, (x(), w()), {"padding": "same", "stride": 2}, ValueError),
        r"padding='same' needs stride 1 \(got stride=\(2, 2, 2\)\)",
    ),
    "conv_padding_absurd": (
        *(CONV, (x(), w()), {"padding": HUGE}, ValueError),
        r"the output must have at most 2\*\*40 elements",
    ),
    "conv_padding_beyond_64_bits": (
        *(CONV, (x(), w()), {"padding": 2**70}, ValueError),
        r"the output must have at most 2\*\*40 elements",
    ),
    "conv_dilation_absurd": (
        *(CONV, (x(), w()), {"dilation": HUGE}, ValueError),
        r"the kernel must fit into the padded input",
    ),
    "query_features_2d": (
        *("few_query_attention", (x(2, 3, 4), x(2, 4)), {}, ValueError),
        r"features must be \(B, C, \*spatial\) with at least one spatial dimension",
    ),
    "query_2d": (
        *("few_query_attention", (x(3, 4), x(2, 4, 5)), {}, ValueError),
        r"query must be \(B, M, C\) with B=2, C=4 of the features \(got shape \(3, 4\)\)",
    ),
    "query_other_batch": (
        *("few_query_attention", (x(1, 3, 4), x(2, 4, 5)), {}, ValueError),
        r"query must be \(B, M, C\) with B=2, C=4",
    ),
    "query_other_channels": (
        *("few_query_attention", (x(2, 3, 5), x(2, 4, 5)), {}, ValueError),
        r"query must be \(B, M, C\) with B=2, C=4",
    ),
    "query_no_token": (
        *("few_query_attention", (x(2, 0, 4), x(2, 4, 5)), {}, ValueError),
        r"there must be at least one token \(got M=0 in query\)",
    ),
    "query_no_position": (
        *("few_query_attention", (x(2, 3, 4), x(2, 4, 0, 5)), {}, ValueError),
        r"features must have at least one position \(got shape \(2, 4, 0, 5\)\)",
    ),
    "query_heads_do_not_divide": (
        *("few_query_attention", (x(2, 3, 4), x(2, 4, 5), 3), {}, ValueError),
        r"num_heads must divide the channels \(got C=4, num_heads=3\)",
    ),
    "query_heads_0": (
        *("few_query_attention", (x(2, 3, 4), x(2, 4, 5), 0), {}, ValueError),
        r"num_heads must divide the channels \(got C=4, num_heads=0\)",
    ),
    "query_heads_absurd": (
        *("few_query_attention", (x(2, 3, 4), x(2, 4, 5), HUGE), {}, ValueError),
        r"num_heads must divide the channels",
    ),
    "query_heads_float": (
        *("few_query_attention", (x(2, 3, 4), x(2, 4, 5), 2.0), {}, TypeError),
        r"num_heads must be an int \(got float\)",
    ),
    "query_scale_word": (
        *("few_query_attention", (x(2, 3, 4), x(2, 4, 5), 2, "big"), {}, TypeError),
        r"scale must be a float or None \(got str\)",
    ),
    "query_no_channels": (
        *("few_query_attention", (x(2, 3, 0), x(2, 0, 5)), {}, ValueError),
        r"num_heads must divide the channels \(got C=0",
    ),
    "key_no_token": (
        *("few_key_attention", (x(2, 4, 5), x(2, 0, 4), x(2, 0, 4)), {}, ValueError),
        r"there must be at least one token \(got M=0 in key\)",
    ),
    "key_and_value_differ": (
        *("few_key_attention", (x(2, 4, 5), x(2, 3, 4), x(2, 2, 4)), {}, ValueError),
        r"key and value must have one shape \(got \(2, 3, 4\) and \(2, 2, 4\)\)",
    ),
    "value_other_channels": (
        *("few_key_attention", (x(2, 4, 5), x(2, 3, 4), x(2, 3, 8)), {}, ValueError),
        r"value must be \(B, M, C\)",
    ),
    "value_is_none": (
        *("few_key_attention", (x(2, 4, 5), x(2, 3, 4), None), {}, TypeError),
        r"value must be a tensor \(got NoneType\)",
    ),
    "relu_slopes_1d": (
        *("dynamic_relu", (x(), x(4), x(4)), {}, ValueError),
        r"features must be \(B, C, \*spatial\), a1 and a2 \(B, C\) \(got shapes ",
    ),
    "relu_slopes_of_another_batch": (
        *("dynamic_relu", (x(), x(2, 4), x(1, 4)), {}, ValueError),
        r"features must be \(B, C, \*spatial\), a1 and a2 \(B, C\)",
    ),
    "relu_features_1d": (
        *("dynamic_relu", (x(4), x(4), x(4)), {}, ValueError),
        r"features must be \(B, C, \*spatial\)",
    ),
    "relu_integers": (
        *("dynamic_relu", (x().int(), x(2, 4).int(), x(2, 4).int()), {}, ValueError),
        r"tensors must be floating point",
    ),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_argument(name: str, backend: str) -> None:
    op, args, kwargs, error, message = WRONG[name]
    with vmf_kernels.use_backend(backend), pytest.raises(error, match=f"^{op}: {message}"):
        getattr(vmf_kernels, op)(*args, **kwargs)


def test_the_reference_module_says_the_same() -> None:
    for op, args, kwargs, error, message in WRONG.values():
        with pytest.raises(error, match=f"^{op}: {message}"):
            getattr(vmf_kernels.reference, op)(*args, **kwargs)


def one_channel_more(t: torch.Tensor) -> torch.Tensor:
    channels = min(1, t.dim() - 1)
    return torch.cat([t, t.narrow(channels, 0, 1)], channels)


@pytest.mark.parametrize("name", OPERATORS)
def test_misused_operator_raises(name: str) -> None:
    """torch.ops is open to anybody: each tensor too small, of a wrong rank or dtype in turn."""
    operator, args = operator_call(name)
    wrong = {
        "scalar": lambda t: t.new_zeros(()),
        "one dimension": lambda t: t.flatten(),
        "one dimension more": lambda t: t.unsqueeze(0),
        "one channel more": one_channel_more,
        "integers": lambda t: t.long(),
    }
    for i, arg in enumerate(args):
        if not isinstance(arg, torch.Tensor):
            continue
        for change in wrong.values():
            changed = [*args]
            changed[i] = change(arg)
            if (changed[i].shape, changed[i].dtype) == (arg.shape, arg.dtype):
                continue
            try:
                operator.op(*changed)
            except (RuntimeError, ValueError, IndexError, TypeError):
                continue
            # A shape that broadcasts is no misuse of the plain reference; numbers of
            # the convolutions, whose kernels see raw pointers, must all be refused.
            assert not name.startswith(CONVS), f"{name} took {changed[i].shape} as argument {i}"


@pytest.mark.parametrize(
    "geometry",
    [
        ((1, 1), (0,) * 6, (1,) * 3),
        ((1,) * 3, (0,) * 3, (1,) * 3),
        ((1,) * 3, (0,) * 6, ()),
        ((0, 1, 1), (0,) * 6, (1,) * 3),
        ((1,) * 3, (-1, *[0] * 5), (1,) * 3),
        ((1,) * 3, (0,) * 6, (1, 0, 1)),
        ((-1,) * 3, (0,) * 6, (1,) * 3),
        ((1,) * 3, (0,) * 6, (2**62, 1, 1)),
        ((1,) * 3, (2**62,) * 6, (1,) * 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", [n for n in OPERATORS if n.startswith(CONVS)])
def test_misused_geometry_raises(name: str, geometry: Any) -> None:
    operator, args = operator_call(name)
    with pytest.raises((RuntimeError, ValueError, IndexError, TypeError)):
        operator.op(*args[:-3], *geometry)


@pytest.mark.parametrize(
    "sizes", [[2, 2, 3, 3], [2, 2, 3, 3, 9], [2, 3, 3, 3, 3], [0] * 5, [-1] * 5]
)
def test_transpose_to_another_size_raises(sizes: list[int]) -> None:
    operator, args = operator_call("depthwise_conv_transpose3d")
    with pytest.raises((RuntimeError, ValueError, IndexError, TypeError)):
        operator.op(*args[:3], sizes, *args[4:])


@pytest.mark.parametrize("kernel", [[3, 2], [9, 2, 2], [0, 2, 2], [-3, 2, 2], [2**62, 1, 1]])
def test_grad_weight_of_another_kernel_raises(kernel: list[int]) -> None:
    operator, args = operator_call("depthwise_conv3d_grad_weight")
    with pytest.raises((RuntimeError, ValueError, IndexError, TypeError)):
        operator.op(*args[:2], kernel, *args[3:])
