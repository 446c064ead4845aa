"""What every op is to the rest of PyTorch: opcheck, compile, export, autocast, meta, functorch."""

import io
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import Implementation
from tests.ops.compare import DTYPES, HALVES, gradients
from tests.ops.layouts import DENSE
from tests.ops.samples import (
    CONVOLUTIONS,
    FUNCTIONS,
    OPERATORS,
    SERVED,
    function_call,
    operator_call,
)
from vmf_kernels import use_backend

each_function = pytest.mark.parametrize("name", FUNCTIONS)
each_layout = pytest.mark.parametrize("layout", DENSE)
served = pytest.mark.parametrize(("name", "implementation"), SERVED, indirect=["implementation"])


@each_layout
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name: str, grad: bool, layout: str) -> None:
    operator, args = operator_call(name, grad=grad, layout=layout)
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if not (grad and name.endswith("_backward")):  # third derivatives compile for seconds
        tests.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(operator.op, args, test_utils=tests)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck_of_each_dtype(name: str, dtype: torch.dtype) -> None:
    operator, args = operator_call(name, dtype=dtype)
    torch.library.opcheck(operator.op, args, test_utils=["test_schema", "test_faketensor"])


def resized(name: str, tensors: list[torch.Tensor], batch: int, time: int) -> list[torch.Tensor]:
    """The tensors with another batch and, for activations, another number of frames."""
    result = []
    for i, x in enumerate(tensors):
        shape = list(x.shape)
        if name not in CONVOLUTIONS or i == 0:
            shape[0] = batch
            if x.dim() == 5:
                shape[2] = time
        result.append(torch.randn(shape))
    return result


@pytest.mark.parametrize(
    ("name", "layout"),
    [*((name, "contiguous") for name in FUNCTIONS), ("depthwise_conv3d", "channels_last")],
)
def test_inductor_computes_what_eager_does(
    name: str, layout: str, request: pytest.FixtureRequest
) -> None:
    """Forward and backward, compiled once for any batch and any number of frames."""
    request.getfixturevalue("extension")  # the reference takes half a minute, some for each size
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    function, tensors = function_call(name)
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for batch, time in ((9, 11), (3, 5), (5, 4), (10, 13)):  # the first unlike all other sizes
        inputs = resized(name, tensors, batch, time)
        inputs = [DENSE[layout](x) if x.dim() == 5 else x for x in inputs]
        grad_output = torch.randn_like(function(*inputs))
        eager = gradients(function, inputs, grad_output)
        leaves = [x.detach().requires_grad_() for x in inputs]
        for i, x in enumerate(leaves):
            if name not in CONVOLUTIONS or i == 0:
                torch._dynamo.mark_dynamic(x, (0, 2) if x.dim() == 5 else 0)
        output = compiled(*leaves)
        ours = [output, *torch.autograd.grad(output, leaves, grad_output)]
        for result, expected in zip(ours, eager, strict=True):
            torch.testing.assert_close(result, expected, atol=1e-4, rtol=1e-4)
    assert counter.frame_count == 1


@each_layout
@each_function
def test_no_endless_recompilation(name: str, layout: str) -> None:
    """Once for the first sizes, once more for all others."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    function, tensors = function_call(name)
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for batch, time in ((2, 3), (3, 5), (5, 4), (7, 9), (8, 2)):
        inputs = resized(name, tensors, batch, time)
        inputs = [DENSE[layout](x) if x.dim() == 5 else x for x in inputs]
        torch.testing.assert_close(compiled(*inputs), function(*inputs))
    assert counter.frame_count <= 2


class Wrapped(torch.nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.function, tensors = function_call(name)
        self.name = name
        if name in CONVOLUTIONS:
            self.weights = torch.nn.ParameterList(tensors[1:])

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        if self.name in CONVOLUTIONS:
            return self.function(*tensors, *self.weights)
        return self.function(*tensors)


@each_function
def test_export_with_dynamic_batch_and_time(name: str) -> None:
    tensors = function_call(name)[1]
    if name in CONVOLUTIONS:
        tensors = tensors[:1]
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple({0: dynamic, 2: dynamic} if x.dim() == 5 else {0: dynamic} for x in tensors)
    model = Wrapped(name)
    program = torch.export.export(model, tuple(tensors), dynamic_shapes=(shapes,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch, time in ((2, 3), (3, 3), (5, 9)):
        sized = resized(name, tensors, batch, time)
        torch.testing.assert_close(loaded(*sized), model(*sized))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@served
def test_autocast(name: str, dtype: torch.dtype, implementation: Implementation) -> None:
    """Everything is cast first, and gradients come back in the parameters' own dtype."""
    function, tensors = function_call(name, grad=True)
    with torch.autocast("cpu", dtype):
        output = function(*tensors)
        mixed = function(tensors[0].to(dtype), *tensors[1:])
    assert output.dtype == mixed.dtype == dtype
    assert torch.equal(output, mixed)
    output.float().square().sum().backward()
    halves = [x.detach().to(dtype).requires_grad_() for x in tensors]
    expected = function(*halves)
    expected.float().square().sum().backward()
    assert torch.equal(output, expected)
    for x, half in zip(tensors, halves, strict=True):
        assert x.grad.dtype == torch.float32
        torch.testing.assert_close(x.grad, half.grad.float())


@each_function
def test_autocast_leaves_float64(name: str) -> None:
    function, tensors = function_call(name, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert function(*tensors).dtype == torch.float64


@each_function
def test_mixed_dtypes_raise(name: str) -> None:
    function, tensors = function_call(name)
    for i in range(len(tensors)):
        mixed = [x.bfloat16() if i == k else x for k, x in enumerate(tensors)]
        with pytest.raises(ValueError, match=rf"^{name}: tensors must share one dtype \(got "):
            function(*mixed)


@each_layout
@served
def test_same_bits_from_run_to_run(name: str, layout: str, implementation: Implementation) -> None:
    function, tensors = function_call(name, layout=layout)
    grad_output = torch.randn_like(function(*tensors))
    first, second = (gradients(function, tensors, grad_output) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@each_layout
@pytest.mark.parametrize("name", OPERATORS)
def test_fake_and_meta_tensors_have_the_real_shapes(name: str, layout: str) -> None:
    operator, args = operator_call(name, layout=layout)

    def outputs(result: Any) -> list[Any]:
        tensors = result if isinstance(result, tuple) else (result,)
        # The stride of a dimension with one element says nothing.
        strides = ([s for s, n in zip(x.stride(), x.shape, strict=True) if n > 1] for x in tensors)
        return [(x.shape, x.dtype, s) for x, s in zip(tensors, strides, strict=True)]

    real = outputs(operator(*args))
    meta = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in args]
    assert outputs(operator(*meta)) == real
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) if isinstance(x, torch.Tensor) else x for x in args]
        assert outputs(operator(*fake)) == real


@each_function
def test_public_function_on_meta_and_fake_tensors(name: str) -> None:
    function, tensors = function_call(name)
    real = function(*tensors)
    meta = function(*(x.to("meta") for x in tensors))
    assert (meta.shape, meta.dtype, meta.device.type) == (real.shape, real.dtype, "meta")
    with torch.autocast("cpu", torch.bfloat16), FakeTensorMode() as mode:
        fake = function(*(mode.from_tensor(x) for x in tensors))
    assert (fake.shape, fake.dtype) == (real.shape, torch.bfloat16)


@served
def test_func_grad(name: str, implementation: Implementation) -> None:
    function, tensors = function_call(name)
    places = tuple(range(len(tensors)))
    ours = torch.func.grad(lambda *xs: function(*xs).square().sum(), places)(*tensors)
    leaves = [x.detach().requires_grad_() for x in tensors]
    function(*leaves).square().sum().backward()
    for grad, leaf in zip(ours, leaves, strict=True):
        torch.testing.assert_close(grad, leaf.grad)


@served
def test_func_vmap(name: str, implementation: Implementation) -> None:
    function, tensors = function_call(name)
    stacked = [torch.stack([x, 2 * x, -x]) for x in tensors]
    ours = torch.func.vmap(function)(*stacked)
    expected = torch.stack([function(*(x[i] for x in stacked)) for i in range(3)])
    torch.testing.assert_close(ours, expected)


@served
def test_per_sample_gradients(name: str, implementation: Implementation) -> None:
    """vmap of grad, as torch.func's users write it."""
    function, tensors = function_call(name)
    stacked = [torch.stack([x, 2 * x, -x]) for x in tensors]
    grad = torch.func.grad(lambda *xs: function(*xs).square().sum())
    ours = torch.func.vmap(grad)(*stacked)
    expected = torch.stack([grad(*(x[i] for x in stacked)) for i in range(3)])
    torch.testing.assert_close(ours, expected)


@served
def test_empty_batch(name: str, implementation: Implementation) -> None:
    function, tensors = function_call(name)
    tensors = [x if name in CONVOLUTIONS and i else x[:0] for i, x in enumerate(tensors)]
    leaves = [x.detach().requires_grad_() for x in tensors]
    output = function(*leaves)
    assert output.shape[0] == 0
    output.sum().backward()
    for leaf in leaves:
        assert leaf.grad.shape == leaf.shape
        assert (leaf.grad == 0).all()


def flops(function: Any, *args: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*args)
    return counter.get_total_flops()


@pytest.mark.parametrize("layout", DENSE)
def test_flops_of_depthwise_conv3d(extension: ModuleType, layout: str) -> None:
    """Forward as conv3d is counted, backward twice that; FlopCounterMode says more of conv3d's."""
    function, (x, w, b) = function_call("depthwise_conv3d", grad=True, layout=layout)
    macs = function(x, w, b).numel() * w[0].numel()
    assert flops(function, x, w, b) == 2 * macs

    def train(x: torch.Tensor) -> None:
        function(x, w, b).sum().backward()

    assert flops(train, x) == 3 * 2 * macs
    assert flops(train, x.detach()) == 2 * 2 * macs, "no input gradient"


@pytest.mark.parametrize("layout", DENSE)
def test_flops_of_depthwise_conv_transpose3d(extension: ModuleType, layout: str) -> None:
    function, (x, w, b) = function_call("depthwise_conv_transpose3d", grad=True, layout=layout)
    macs = x.numel() * w[0].numel()  # each value meets each tap of its m kernels
    assert flops(function, x, w, b) == 2 * macs
    assert flops(lambda x: function(x, w, b).sum().backward(), x) == 3 * 2 * macs


@pytest.mark.parametrize("name", ["few_query_attention", "few_key_attention"])
def test_flops_of_attention(name: str) -> None:
    """4 B M n C forward, of the operator and of the plain reference alike."""
    function, tensors = function_call(name)
    batch, tokens, channels = tensors[0 if name == "few_query_attention" else 1].shape
    positions = 3 * 4 * 5
    assert flops(function, *tensors) == 4 * batch * tokens * positions * channels
    with use_backend("reference"):
        assert flops(function, *tensors) == 4 * batch * tokens * positions * channels
