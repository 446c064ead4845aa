"""Runs of calls on a GPU are worked out once for each kind of call; CPU tensors pass for CUDA's."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vmf_kernels
from vmf_kernels import _extension, _runs, tiles, use_backend
from vmf_kernels.backends import OPS, Backend, always
from vmf_kernels.ops.dynamic_relu import reference

X, A = torch.randn(2, 4, 3, 5), torch.randn(2, 4)


@pytest.fixture
def as_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes every tensor for one on a GPU."""
    monkeypatch.setattr(Tensor, "is_cuda", True)


@pytest.fixture(params=["C++", "Python"])
def key(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Of a call, by both implementations."""
    if request.param == "C++" and _extension._C is None:
        pytest.skip(_extension.REASON)
    find = _runs.in_python if request.param == "Python" else _extension._C.call_key
    return lambda *args: find(args)


def test_calls_of_one_kind_share_a_key(key: Callable[..., Any]) -> None:
    for settings in ((), (1, 2.5, None, True, "same", (1, 2, 3), [(1, 0), (0, 1)], X.shape)):
        assert (
            key(X, *settings) == key(X.clone(), *settings) == key(nn.Parameter(X, False), *settings)
        )
        assert key(X, *settings) is not None


def test_what_tells_kinds_of_calls_apart(key: Callable[..., Any]) -> None:
    apart = [
        *(X, X[:1], X.transpose(2, 3), X.contiguous(memory_format=torch.channels_last)),
        *(X.double(), X.flatten()[1:].view(-1), X.flatten()[4:-3], X.clone().requires_grad_()),
        *(1, True, False, 1.0, None, "1", "11", 2, (1, 1), [1, 1], (1, True), (1, 1.0)),
        *(((1, 1), 1), (1, (1,)), ((1, True), 1), torch.Size((1, 1)), (), -1, 2**40),
    ]
    assert len({key(x) for x in apart}) == len(apart)
    assert len({key(x, y) for x in apart for y in apart}) == len(apart) ** 2
    with torch.no_grad():  # where no gradient is wanted, nobody asks for one
        assert key(X.clone().requires_grad_()) == key(X)


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)
ODD = [
    X.as_subclass(type("Odd", (Tensor,), {})),
    X.to_sparse(),
    torch._neg_view(X),
    torch.nested.nested_tensor([X, X[:1]]),
    *(ENDLESS, object(), [object()], (X,), 1j, type("Int", (int,), {})(1)),
]


@pytest.mark.parametrize("number", range(len(ODD)))
def test_no_key_tells_all_of_other_arguments(number: int, key: Callable[..., Any]) -> None:
    assert key(X, ODD[number]) is None


def test_half_a_character_is_nobodys_mistake(key: Callable[..., Any]) -> None:
    key(X, "\ud800")  # the op itself says what is wrong


def test_no_more_is_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runs, "MOST_RUNS", 3)
    runs = _runs.Runs()
    for number in range(10):
        runs.keep(number, print)
        assert number in runs and len(runs) <= 3


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, as_cuda: None) -> Iterator[list[Any]]:
    """Calls of `dynamic_relu` whose arguments were prepared, with a backend that runs them all."""
    op = OPS["dynamic_relu"]
    calls: list[Any] = []
    prepare = op.prepare

    def noting(*args: Any) -> Any:
        calls.append(args)
        return prepare(*args)

    monkeypatch.setattr(op, "prepare", noting)
    before = op.backends
    op.backends = (Backend("cuda", always, reference.dynamic_relu), *before)
    yield calls
    op.backends = before


def check(x: Tensor, a1: Tensor, a2: Tensor) -> None:
    ours, theirs = vmf_kernels.dynamic_relu(x, a1, a2), reference.dynamic_relu(x, a1, a2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_calls_of_one_kind_are_prepared_once(prepared: list[Any]) -> None:
    for _ in range(3):
        check(torch.randn_like(X), torch.randn_like(A), A)
    assert len(prepared) == 1
    for x in (X.double(), X.transpose(2, 3)):
        for _ in range(2):
            check(x, A.to(x.dtype), A.to(x.dtype))
    assert len(prepared) == 3
    with use_backend("reference"):
        for _ in range(2):
            check(X, A, A)
    assert len(prepared) == 4


def test_wrong_calls_are_refused_each_time(prepared: list[Any]) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="a1 and a2"):
            vmf_kernels.dynamic_relu(X, A[:1], A)
    assert len(prepared) == 2


def test_gradients_are_recorded_where_they_are_wanted(prepared: list[Any]) -> None:
    for _ in range(2):
        check(X, A, A)
        x = X.clone().requires_grad_()
        vmf_kernels.dynamic_relu(x, A, A).sum().backward()
        expected = torch.autograd.grad(reference.dynamic_relu(x, A, A).sum(), x)[0]
        assert torch.equal(x.grad, expected)
    assert len(prepared) == 2


@pytest.mark.parametrize("forced", ["auto", "cpu", "reference"])
def test_on_a_cpu_calls_with_gradients_are_prepared_once(
    forced: str, monkeypatch: pytest.MonkeyPatch, extension: Any
) -> None:
    """Others are C++'s, or left to PyTorch by rules that look at more than a key tells."""
    torch.use_deterministic_algorithms(False)  # else C++ leaves them to the dispatcher
    op, prepared = OPS["depthwise_conv3d"], []
    prepare = op.prepare
    monkeypatch.setattr(op, "prepare", lambda *args: (prepared.append(args), prepare(*args))[1])
    op._runs.clear()
    for _ in range(3):
        x, w = torch.randn(1, 2, 3, 4, 5), torch.randn(2, 1, 3, 3, 3).requires_grad_()
        with use_backend(forced):
            ours = vmf_kernels.depthwise_conv3d(x, w, None, 1, 1)
        theirs = nn.functional.conv3d(x, w, None, 1, 1, groups=2)
        grads = (torch.autograd.grad(y.sum(), w)[0] for y in (ours, theirs))
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*grads)
    assert len(prepared) == (3 if forced == "reference" else 1)
    before = len(prepared)
    for _ in range(2):
        with torch.no_grad(), use_backend(forced):
            vmf_kernels.depthwise_conv3d(x, w.detach()[:, :, ::2], None, 1, (0, 1, 1))
    assert len(prepared) == before + (2 if forced == "reference" else 0)
    assert len(op._runs) == (0 if forced == "reference" else 1)
    op._runs.clear()


def test_other_backends_forget_what_was_kept(prepared: list[Any]) -> None:
    check(X, A, A)
    op = OPS["dynamic_relu"]
    op.backends = (Backend("cuda", always, lambda x, a1, a2: x), *op.backends)
    assert vmf_kernels.dynamic_relu(X, A, A) is X
    assert len(prepared) == 2


def test_what_is_forced_or_listens_sees_every_call(prepared: list[Any]) -> None:
    check(X, A, A)
    with tiles.forced({}):
        check(X, A, A)
    with torch.autocast("cpu"):
        assert vmf_kernels.dynamic_relu(X, A, A).shape == X.shape
    with torch.overrides.BaseTorchFunctionMode():
        check(X, A, A)
    assert torch.func.vmap(vmf_kernels.dynamic_relu)(X[None], A[None], A[None]).shape[0] == 1
    assert len(prepared) == 5
    check(X, A, A)
    assert len(prepared) == 5


def test_a_backend_plans_calls_without_gradients(prepared: list[Any]) -> None:
    planned = []

    def plan(*args: Any) -> Any:
        planned.append(args)
        return reference.dynamic_relu

    def run(*args: Any) -> Tensor:
        return reference.dynamic_relu(*args)

    run.plan = plan  # type: ignore[attr-defined]
    op = OPS["dynamic_relu"]
    op.backends = (Backend("cuda", always, run), *op.backends)
    for _ in range(2):
        check(X, A, A)
        check(X.clone().requires_grad_(), A, A)
    assert len(planned) == 1
