"""Calls without PyTorch's dispatcher: the same numbers, and nobody who listens misses one."""

import importlib
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import vmf_kernels
from tests.ops.compare import DTYPES
from tests.ops.layouts import LAYOUTS
from tests.ops.samples import FUNCTIONS, OPERATORS, function_call, operator_call
from tests.ops.test_depthwise_conv_transpose3d import CASES as TRANSPOSED
from tests.ops.test_depthwise_conv_transpose3d import tensors as transposed
from vmf_kernels.backends import OPS
from vmf_kernels.ops.depthwise_conv3d.geometry import normalise

pytestmark = pytest.mark.usefixtures("extension")

# Functions with an operator of their own.
WITH_KERNELS = [n for n in FUNCTIONS if n in OPERATORS and OPS[n].backends[0].name == "cpu"]


@pytest.fixture(autouse=True)
def plain_memory(poisoned_memory: None) -> Iterator[None]:
    """Poisoned memory comes from the dispatcher: these tests do without."""
    torch.use_deterministic_algorithms(False)
    yield


def flat(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def has_kernel(name: str) -> bool:
    return any(name.startswith(op) for op in WITH_KERNELS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [n for n in OPERATORS if has_kernel(n)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_as_through_the_dispatcher(name: str, layout: str, dtype: torch.dtype) -> None:
    operator, args = operator_call(name, dtype=dtype)
    args = tuple(LAYOUTS[layout](a) if isinstance(a, Tensor) and a.dim() >= 4 else a for a in args)
    direct, other = operator._direct(*args), operator.op(*args)
    assert direct is not None
    for a, b in zip(flat(direct), flat(other), strict=True):
        assert type(a) is Tensor and a.dtype == b.dtype and a.stride() == b.stride()
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", [n for n in OPERATORS if has_kernel(n)])
def test_nothing_is_kept(name: str) -> None:
    """Neither what goes in nor what comes out outlives its last reference."""
    operator, args = operator_call(name)
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    before = [(sys.getrefcount(x), x._use_count()) for x in tensors]
    outputs = list(flat(operator._direct(*args)))
    assert [(sys.getrefcount(x), x._use_count()) for x in tensors] == before
    while outputs:
        output = outputs.pop()
        assert output._use_count() == 1
        alive = weakref.ref(output)
        storage = weakref.ref(output.untyped_storage())
        del output
        assert alive() is None and storage() is None


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_inference_goes_directly(name: str, extension: ModuleType) -> None:
    """The whole public call in C++: its binding answers for plain arguments without gradients."""
    infer = getattr(extension, f"infer_{name}")
    args = {
        "depthwise_conv3d": lambda x, w, b: (x, w, b, (1, 2, 1), (1, 1, 0), 1),
        "depthwise_conv_transpose3d": lambda x, w, b: (x, w, b, (1, 2, 2), 1, (0, 1, 0), 1),
        "few_query_attention": lambda q, x: (q, x, 2, None),
        "few_key_attention": lambda x, k, v: (x, k, v, 2, None, True),
        "dynamic_relu": lambda x, a1, a2: (x, a1, a2),
    }[name]
    function, tensors = function_call(name)
    if name == "depthwise_conv_transpose3d":  # without its multiplier, which is Python's part
        tensors = [tensors[0], tensors[1][:, :1], tensors[2][:4]]
    assert torch.equal(infer(*args(*tensors)), function(*tensors))
    tensors[0].requires_grad_()
    assert infer(*args(*tensors)) is None
    with torch.no_grad():
        assert torch.equal(infer(*args(*tensors)), function(*tensors))
    with torch.autocast("cpu"), torch.no_grad():
        assert infer(*args(*tensors)) is None
        assert function(*tensors).dtype == torch.bfloat16


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


class Listening(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Counting, Listening])
@pytest.mark.parametrize("name", WITH_KERNELS)
def test_modes_see_the_op(name: str, mode: Callable[[], Any]) -> None:
    function, tensors = function_call(name)
    with mode() as listener:
        function(*tensors)
    assert any(name in seen for seen in listener.seen)


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_the_profiler_sees_the_op(name: str) -> None:
    function, tensors = function_call(name)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function(*tensors)
    assert f"vmf_kernels::{name}" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_fake_tensors_stay_fake(name: str) -> None:
    function, tensors = function_call(name)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert type(function(*tensors)) is not Tensor


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_negated_views_are_read_as_their_values(name: str) -> None:
    """`_neg_view` shares memory that holds the opposite of its values."""
    function, (first, *rest) = function_call(name)
    assert torch.equal(function(torch._neg_view(first), *rest), function(-first, *rest))


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_forward_derivatives_are_not_dropped(name: str) -> None:
    function, (first, *rest) = function_call(name)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(first, torch.ones_like(first))
        with pytest.raises(NotImplementedError, match=f"{name}: forward-mode derivatives"):
            function(dual, *rest)
        with vmf_kernels.use_backend("reference"):
            output = forward_ad.unpack_dual(function(dual, *rest))
        assert output.tangent is not None


@pytest.mark.parametrize("name", WITH_KERNELS)
@pytest.mark.parametrize(
    "mode", [torch.inference_mode, torch.no_grad, nullcontext], ids=lambda m: m.__name__
)
def test_grad_modes(name: str, mode: Callable[[], AbstractContextManager[Any]]) -> None:
    function, tensors = function_call(name)
    with mode():
        output = function(*tensors)
        assert output.is_inference() == torch.is_inference_mode_enabled()
        assert not output.requires_grad


@pytest.mark.parametrize("name", WITH_KERNELS)
def test_subclasses_keep_their_say(name: str) -> None:
    class Loud(Tensor):
        seen: ClassVar[list[str]] = []

        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            cls.seen.append(str(func))
            return super().__torch_function__(func, types, args, kwargs)

    function, (first, *rest) = function_call(name)
    function(first.as_subclass(Loud), *rest)
    assert any(name in seen for seen in Loud.seen)


@pytest.mark.parametrize("stride", [1, 2, (1, 2, 1)])
@pytest.mark.parametrize("padding", [0, 1, (0, 1, 1)])
@pytest.mark.parametrize("dilation", [1, (1, 1, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_ordinary_settings_have_the_normal_form_that_python_gives(
    stride: Any, padding: Any, dilation: Any, bias: bool, extension: ModuleType
) -> None:
    x, w, b = torch.randn(1, 2, 4, 6, 6), torch.randn(4, 1, 3, 3, 2), torch.randn(4)
    found = extension.normalise_depthwise_conv3d(
        x, w, b if bias else None, stride, padding, dilation
    )
    expected = normalise((3, 3, 2), stride, padding, dilation)
    assert tuple(tuple(ints) for ints in found) == expected


@pytest.mark.parametrize(
    ("stride", "padding", "dilation"),
    [
        *((stride, 0, 1) for stride in ((1, 1), [1, 2, 1], True, 1.0, (1, True, 1), 0, -1, 2**70)),
        *((1, pad, 1) for pad in ("same", ((1, 0), (1, 1), (1, 1)), (1,), 1.0, -1, 2**40, 2**70)),
        *((1, 0, dilation) for dilation in (9, 0, (1, 1), 2**39, None)),
    ],
)
def test_other_settings_are_left_to_python(
    stride: Any, padding: Any, dilation: Any, extension: ModuleType
) -> None:
    """Rare forms and wrong values: Python accepts them or says what is wrong."""
    x, w = torch.randn(1, 2, 4, 4, 4), torch.randn(2, 1, 3, 3, 3)
    assert extension.normalise_depthwise_conv3d(x, w, None, stride, padding, dilation) is None
    assert extension.infer_depthwise_conv3d(x, w, None, stride, padding, dilation) is None


def test_wrong_arguments_are_left_to_python(extension: ModuleType) -> None:
    x, w = torch.randn(1, 2, 4, 4, 4), torch.randn(2, 1, 3, 3, 3)
    wrong = [
        (x, w.double(), None),
        (x.long(), w.long(), None),
        (x[0], w, None),
        (x, w[0], None),
        (x, torch.randn(3, 1, 3, 3, 3), None),
        (x, w, torch.randn(3)),
        (x.to("meta"), w, None),
        (x.to_mkldnn(), w, None),
        ("x", w, None),
        (x, None, None),
    ]
    for args in wrong:
        assert extension.normalise_depthwise_conv3d(*args, 1, 0, 1) is None
        assert extension.infer_depthwise_conv3d(*args, 1, 0, 1) is None


def test_without_the_direct_calls_all_goes_through_the_dispatcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a torch that lets no tensor go to C++ past its dispatcher."""
    for name in WITH_KERNELS:
        function, tensors = function_call(name)
        expected = function(*tensors)
        monkeypatch.setattr(OPS[name], "_infer", {})
        for key, (operator, _) in OPERATORS.items():
            if key.startswith(name):
                monkeypatch.setattr(operator, "_direct", None)
        with Counting() as listener:
            assert torch.equal(function(*tensors), expected)
        assert any(name in seen for seen in listener.seen)


def test_a_forced_backend_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    function, tensors = function_call("dynamic_relu")
    called = dict.fromkeys(("auto", "cpu"), lambda *args: pytest.fail("called"))
    monkeypatch.setattr(OPS["dynamic_relu"], "_infer", called)
    with vmf_kernels.use_backend("reference"):
        function(*tensors)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_settings_have_the_form_that_python_gives(
    name: str, extension: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w, b = transposed(name)
    given = (x, w[:, :1], b[: x.shape[1]])
    usual = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
    settings = {**usual, **TRANSPOSED[name][3]}.values()
    found = extension.normalise_depthwise_conv_transpose3d(*given, *settings)
    module = importlib.import_module("vmf_kernels.ops.depthwise_conv_transpose3d")
    monkeypatch.setattr(module, "_normalise", None)
    expected = module._prepare(*given, *settings)[3:]
    assert [tuple(ints) for ints in found] == [tuple(ints) for ints in expected]


@pytest.mark.parametrize(
    "settings",
    [
        *((stride, 0, 0, 1) for stride in (0, -1, True, 1.0, (1, 2), 2**40, 2**62, 2**70)),
        *((1, padding, 0, 1) for padding in (-1, 5, "same", ((1, 1),) * 3, 2**40, 2**62)),
        *((2, 1, more, 1) for more in (-1, 2, 2**62)),
        *((1, 0, 0, dilation) for dilation in (0, -1, 2**40, 2**62)),
    ],
    ids=str,
)
def test_transposed_settings_that_do_not_fit_are_left_to_python(
    settings: tuple[Any, ...], extension: ModuleType
) -> None:
    x, w, b = transposed("plain")
    assert extension.normalise_depthwise_conv_transpose3d(x, w, b, *settings) is None
    assert extension.infer_depthwise_conv_transpose3d(x, w, b, *settings) is None


def test_transposed_tensors_that_do_not_fit_are_left_to_python(extension: ModuleType) -> None:
    x, w, b = transposed("plain")
    for given in (
        (x.long(), w.long(), b.long()),
        (x, w.double(), b),
        (x, w, b.double()),
        (x, w, b[:2]),
        (x, w[:2], b),
        (x, w.expand(-1, 2, -1, -1, -1), None),
        (x, w[:, :, :0], b),
        (x, w[0], b),
        (x[0], w, b),
        (x[:, :, :0], w, b),
    ):
        assert extension.normalise_depthwise_conv_transpose3d(*given, 1, 0, 0, 1) is None
        assert extension.infer_depthwise_conv_transpose3d(*given, 1, 0, 0, 1) is None
