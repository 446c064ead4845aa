"""What only a GPU can tell of the Triton kernels: graphs, compiled code, repeated bits, size."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import vmf_kernels
from tests.ops.samples import CONVOLUTIONS, FUNCTIONS, OPERATORS, function_call, operator_call
from vmf_kernels import use_backend
from vmf_kernels.backends import OPS

pytestmark = pytest.mark.gpu

NAMES = [name for name in FUNCTIONS if any(b.name == "triton" for b in OPS[name].backends)]
LAYOUTS = ("contiguous", "channels_last")


def on_gpu(name: str, layout: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [x.cuda() for x in function_call(name, dtype=dtype, layout=layout)[1]]


def training(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Output and gradients, of a gradient that is the same at every call."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    output = function(*leaves)
    grad = torch.linspace(-1, 1, output.numel(), device="cuda").view(output.shape)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad.to(output.dtype))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_captured_graph_replays_on_new_values(name: str, layout: str) -> None:
    function = FUNCTIONS[name][0]
    tensors = on_gpu(name, layout)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, and lets autograd make its buffers
        training(function, tensors)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = training(function, tensors)
    for tensor in tensors:
        tensor.copy_(torch.randn_like(tensor))
    graph.replay()
    for a, b in zip(captured, training(function, tensors), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_compiled_code_gives_the_same_numbers(name: str, layout: str) -> None:
    function = FUNCTIONS[name][0]
    tensors = on_gpu(name, layout)
    compiled = torch.compile(function, fullgraph=True)
    ours = training(function, tensors)
    for a, b in zip(training(compiled, tensors), ours, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck_on_cuda(name: str) -> None:
    operator, args = operator_call(name)
    moved = [a.cuda().requires_grad_(a.requires_grad) if _is(a) else a for a in args]
    torch.library.opcheck(operator.op, tuple(moved))


def _is(x: object) -> bool:
    return isinstance(x, Tensor)


LARGE: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "depthwise_conv3d": (
        lambda x, w: vmf_kernels.depthwise_conv3d(x, w, None, 1, 1),
        ((4, 48, 8, 56, 57), (48, 1, 3, 3, 3)),
    ),
    "depthwise_conv_transpose3d": (
        lambda x, w: vmf_kernels.depthwise_conv_transpose3d(x, w, None, (1, 2, 2), 1, (0, 1, 1)),
        ((4, 48, 8, 28, 29), (48, 1, 3, 3, 3)),
    ),
    "few_query_attention": (
        lambda q, x: vmf_kernels.few_query_attention(q, x, 2),
        ((2, 6, 96), (2, 96, 8, 57, 55)),
    ),
    "few_key_attention": (
        lambda x, k, v: vmf_kernels.few_key_attention(x, k, v, 2),
        ((2, 96, 8, 57, 55), (2, 6, 96), (2, 6, 96)),
    ),
    "dynamic_relu": (vmf_kernels.dynamic_relu, ((4, 96, 8, 57, 55), (4, 96), (4, 96))),
}
assert LARGE.keys() == set(NAMES)  # here, so that it is told where there is no GPU too


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_call_gives_the_same_bits(name: str, layout: str, dtype: torch.dtype) -> None:
    function, shapes = LARGE[name]
    tensors = [torch.randn(s, device="cuda", dtype=dtype) for s in shapes]
    tensors = [x.contiguous(memory_format=_format(x, layout)) for x in tensors]
    first = training(function, tensors)
    for _ in range(3):
        for a, b in zip(training(function, tensors), first, strict=True):
            assert torch.equal(a, b)


def _format(x: Tensor, layout: str) -> torch.memory_format:
    last = layout == "channels_last" and x.dim() == 5 and x.shape[1] > 1
    return torch.channels_last_3d if last else torch.contiguous_format


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_more_elements_than_32_bits_count(name: str, layout: str) -> None:
    """The last sample of a batch of 2**31 elements and more is what it is alone."""
    if torch.cuda.get_device_properties(0).total_memory < 60 << 30:
        pytest.skip("needs a GPU with 60 GB")
    function, shapes = LARGE[name]
    batch = 2**31 // torch.Size(LARGE[name][1][_features(name)][1:]).numel() + 2
    tensors = []
    for shape in shapes:
        per_sample = name not in CONVOLUTIONS or (len(shape) == 5 and shape[1] > 1)
        size = (batch, *shape[1:]) if per_sample else shape
        x = torch.zeros(size, device="cuda", dtype=torch.bfloat16)
        x = x.contiguous(memory_format=_format(x, layout))
        (x[-2:] if per_sample else x).normal_()
        tensors.append(x)
    last = [x[-1:] if x.shape[0] == batch else x for x in tensors]
    whole = function(*tensors)
    torch.testing.assert_close(whole[-1:], function(*last))
    del whole
    leaves = [x.detach().requires_grad_() for x in tensors]
    output = function(*leaves)
    grads = torch.autograd.grad(output[-1:].sum(), leaves)
    lasts = [x.detach().requires_grad_() for x in last]
    alone = torch.autograd.grad(function(*lasts).sum(), lasts)
    for a, b in zip(grads, alone, strict=True):
        torch.testing.assert_close(a[-1:] if a.shape[0] == batch else a, b)


def _features(name: str) -> int:
    return next(i for i, s in enumerate(LARGE[name][1]) if len(s) == 5 and s[1] > 1)


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_reference_agrees(name: str, layout: str, backend: str) -> None:
    """Of the first call of a kind, and of others, whose run is kept."""
    function, shapes = LARGE[name]
    for _ in range(3):
        tensors = [torch.randn(s, device="cuda") for s in shapes]
        tensors = [x.contiguous(memory_format=_format(x, layout)) for x in tensors]
        with use_backend(backend):
            ours = [function(*tensors), *training(function, tensors)]
        with use_backend("reference"), torch.backends.cudnn.flags(allow_tf32=False):
            theirs = [function(*tensors), *training(function, tensors)]
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()
