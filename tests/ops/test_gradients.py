"""First and second derivatives of every op, in fp64 against finite differences."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from tests.conftest import Implementation
from tests.ops.layouts import DENSE
from tests.ops.samples import OPERATORS, SERVED, function_call, operator_call
from vmf_kernels import depthwise_conv3d
from vmf_kernels.operator import Operator
from vmf_kernels.ops.few_query_attention import library as few_query

CHOICES = list(itertools.product([False, True], repeat=3))
OPTIONS = {"dtype": torch.float64, "grad": True}


def as_function(name: str, operator: Operator) -> Callable[..., Any]:
    """The operator as a function of independent inputs, with its differentiable outputs alone."""

    def run(*args: Any) -> Any:
        if name == "few_query_attention_backward":
            # What forward saved changes with query and features: no inputs of their own.
            grad_output, query, features, _, _, *options = args
            with torch.no_grad():
                saved = few_query.saved(*few_query.few_query_attention(query, features, *options))
            args = grad_output, query, features, *saved, *options
        outputs = operator(*args)
        if isinstance(outputs, tuple):
            return tuple(x for x in outputs if x.requires_grad)
        return outputs

    return run


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("name", OPERATORS)
def test_operator(name: str, layout: str) -> None:
    operator, args = operator_call(name, layout=layout, **OPTIONS)
    assert gradcheck(as_function(name, operator), args)
    assert gradgradcheck(as_function(name, operator), args, fast_mode=True)


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize(("name", "implementation"), SERVED, indirect=["implementation"])
def test_function(name: str, layout: str, implementation: Implementation) -> None:
    function, tensors = function_call(name, layout=layout, **OPTIONS)
    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("needs", CHOICES, ids=str)
def test_each_choice_of_wanted_gradients(
    needs: tuple[bool, bool, bool], layout: str, implementation: Implementation
) -> None:
    """What is wanted is what it is where all is wanted; the rest is None."""
    function, tensors = function_call("depthwise_conv3d", layout=layout)
    everything = [x.detach().clone().requires_grad_() for x in tensors]
    function(*everything).square().sum().backward()
    wanted = [x.detach().requires_grad_(n) for x, n in zip(tensors, needs, strict=True)]
    output = function(*wanted)
    assert output.requires_grad == any(needs)
    if any(needs):
        output.square().sum().backward()
    for x, full, need in zip(wanted, everything, needs, strict=True):
        assert (x.grad is not None) == need
        if need:
            torch.testing.assert_close(x.grad, full.grad)


def test_no_gradient_without_grad_mode(implementation: Implementation) -> None:
    function, tensors = function_call("depthwise_conv3d", grad=True)
    with torch.no_grad():
        assert not function(*tensors).requires_grad
    with torch.inference_mode():
        assert function(*tensors).is_inference()
    assert function(*tensors).requires_grad


def test_gradients_accumulate_and_hooks_run(implementation: Implementation) -> None:
    function, (x, w, b) = function_call("depthwise_conv3d", grad=True)
    seen: list[Tensor] = []
    x.register_hook(lambda grad: seen.append(grad))
    function(x, w, b).sum().backward()
    once = [t.grad.clone() for t in (x, w, b)]
    function(x, w, b).sum().backward()
    assert len(seen) == 2
    for t, grad in zip((x, w, b), once, strict=True):
        torch.testing.assert_close(t.grad, 2 * grad)


def test_changing_an_input_in_place_before_backward_is_noticed(
    implementation: Implementation,
) -> None:
    function, (x, w, b) = function_call("depthwise_conv3d", grad=True)
    output = function(x * 1, w, b)
    with torch.no_grad():
        w += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_penalty_on_the_gradient_trains(implementation: Implementation) -> None:
    """Double backward as a user writes it: a loss that has the input's gradient in it."""
    x = torch.randn(2, 4, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    results = []
    for conv in (depthwise_conv3d, reference_conv3d):
        w = torch.linspace(-1, 1, 4 * 27, dtype=torch.float64).view(4, 1, 3, 3, 3)
        w.requires_grad_()
        (slope,) = torch.autograd.grad(conv(x, w).tanh().sum(), x, create_graph=True)
        (slope.square().sum() + slope.sum()).backward()
        results.append(w.grad)
    torch.testing.assert_close(results[0], results[1])


def reference_conv3d(x: Tensor, w: Tensor) -> Tensor:
    return torch.nn.functional.conv3d(x, w, groups=x.shape[1])
