"""What training code does around a model: the same numbers after `accelerate`."""

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from tests.networks import clips, close, gradients, labels, loss_of, pair, plain
from tests.ops.samples import FUNCTIONS, function_call
from vmf_kernels import accelerate, fuse, use_backend

Model = nn.Module


def step(model: Model, optimizer: torch.optim.Optimizer, **autocast: Any) -> Tensor:
    optimizer.zero_grad()
    with torch.autocast("cpu", **autocast):
        loss = loss_of(model, clips())
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_steps_under_autocast(dtype: torch.dtype) -> None:
    losses = []
    for model in pair():
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        losses.append(torch.stack([step(model, optimizer, dtype=dtype) for _ in range(4)]))
    assert losses[0][-1] < losses[0][0]
    close(losses[0], losses[1], 3e-2)


def test_grad_scaler() -> None:
    """Scaled float16 steps are the plain model's; a step with infinite gradients is left out."""
    found = []
    for model in pair():
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = loss_of(model, clips())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 256
        found.append([p.detach().clone() for p in model.parameters()])
        scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(model, clips())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() < 1e38
        close(found[-1], list(model.parameters()), 0)
    close(found[0], found[1], 2e-2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    theirs, ours = pair()
    x = clips().requires_grad_()  # the reentrant form wants an input with a gradient

    def run(model: Any, x: Tensor) -> Tensor:
        for part in (model[:3], model[3:8], model[8:]):
            x = checkpoint(part, x, use_reentrant=reentrant)
        return nn.functional.cross_entropy(x, labels())

    run(ours, x).backward()
    found = {name: p.grad for name, p in ours.named_parameters()}
    close(found, gradients(theirs, loss_of(theirs, clips())))


def test_gradient_penalty() -> None:
    """Gradients of the gradients of the input."""
    found = []
    for model in pair():
        model.eval()
        x = clips().requires_grad_()
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        weights = [p for n, p in model.named_parameters() if n.startswith(("3", "6.w"))]
        found.append(torch.autograd.grad(grad.square().sum(), weights))
    close(*found)


def test_functional_transforms() -> None:
    found = []
    for model in pair():
        model.eval()
        parameters = {name: p.detach() for name, p in model.named_parameters()}

        def loss(weights: dict[str, Tensor], x: Tensor, model: Model = model) -> Tensor:
            return functional_call(model, weights, (x[None],)).square().sum()

        of_each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, clips(3))
        jacobian = torch.func.jacrev(lambda x, model=model: model(x))(clips(1))
        found.append((of_each, jacobian))
    close(found[0][0], found[1][0])
    close(found[0][1], found[1][1])


def test_forward_mode_is_refused_in_words() -> None:
    theirs, ours = (model.eval() for model in pair())
    x, tangent = clips(), clips(seed=2)
    expected = torch.func.jvp(theirs, (x,), (tangent,))
    with pytest.raises(NotImplementedError, match="forward-mode derivatives are not defined"):
        torch.func.jvp(ours, (x,), (tangent,))
    with use_backend("reference"):
        close(torch.func.jvp(ours, (x,), (tangent,)), expected)


def calls() -> list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]]:
    """Ops and models with inputs of several sizes."""
    model = pair()[1].eval()
    found: list[Any] = [
        (model, (clips(n, f, s),)) for n, f, s in ((1, 4, 8), (2, 6, 10), (3, 3, 7))
    ]
    found += [(fuse(model), (clips(2, 5, 9),))]
    return found + [(function, tuple(t)) for function, t in map(function_call, FUNCTIONS)]


@pytest.mark.parametrize("number", [1, 2])
def test_inference_from_several_threads(number: int, threads: Callable[[int], None]) -> None:
    threads(number)
    every = calls()
    with torch.no_grad():
        expected = [function(*inputs) for function, inputs in every]

    def run(i: int) -> Tensor:
        threads(number)  # a new thread has PyTorch's default
        function, inputs = every[i % len(every)]
        with torch.inference_mode():
            return function(*inputs)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(10 * len(every))))
    for i, output in enumerate(found):
        assert torch.equal(output, expected[i % len(every)])


class Accelerated(Dataset[Tensor]):
    """Clips that a worker has sent through a model."""

    def __init__(self) -> None:
        self.model = pair()[1].eval()

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> Tensor:
        with torch.no_grad():
            return self.model(clips(1, seed=i))[0]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader(method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    data = Accelerated()
    expected = torch.stack([data[i] for i in range(len(data))])  # the parent's threads are started
    loader = DataLoader(data, 3, num_workers=2, multiprocessing_context=method, timeout=600)
    close(torch.cat(list(loader)), expected, 1e-6)


def test_copies_and_checkpoints() -> None:
    ours = pair()[1].eval()
    expected = ours(clips())
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    loaded = accelerate(plain(seed=5)).eval()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for copied in (loaded, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert [type(m) for m in copied.modules()] == [type(m) for m in ours.modules()]
        assert torch.equal(copied(clips()), expected)


def test_averaged_weights() -> None:
    found = []
    for model in pair():
        average = AveragedModel(model)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            step(model, optimizer, enabled=False)
            average.update_parameters(model)
        found.append(average.eval()(clips()))
    close(*found)


def test_built_without_memory() -> None:
    theirs = plain().eval()
    with torch.device("meta"):
        ours = accelerate(plain(seed=1)).eval()
    assert ours(clips().to("meta")).shape == (4, 5)
    ours.to_empty(device="cpu").load_state_dict(theirs.state_dict())
    close(ours(clips()), theirs(clips()))


def test_hooks_of_gradients_and_frozen_layers() -> None:
    found = []
    for model in pair():
        seen: list[Tensor] = []
        model[3].weight.requires_grad_(False)
        model[3].register_full_backward_hook(partial(_keep, seen))
        loss_of(model, clips()).backward()
        assert model[3].weight.grad is None
        found.append([*seen, model[0].weight.grad])
    close(*found)


def _keep(seen: list[Tensor], module: Model, inputs: Any, outputs: Any) -> None:
    seen.extend((*inputs, *outputs))
