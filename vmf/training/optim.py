"""AdamW as it is meant for these networks, and a running mean of the weights."""

import copy
from collections.abc import Iterable
from typing import Generic, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Splits parameters into decayed and not decayed.

    Biases, norm scales and every other 1-D parameter are left undecayed, and so is what
    `model.no_weight_decay()` names (the tokens).

    Args:
        model: Any module; only parameters with `requires_grad` are taken.
        weight_decay: Of the decayed group.

    Returns:
        Two groups for a torch optimizer; an empty one is left out.
    """
    named = getattr(model, "no_weight_decay", set)
    spared = set(named())
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name in spared else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    model: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW in its fastest form that is right.

    Fused on CUDA. On the CPU `foreach`: the fused CPU kernel walks memory without looking at
    strides (torch 2.13), so a gradient laid out unlike its channels_last weight is applied to the
    wrong elements.
    """
    on_cuda = next(model.parameters()).device.type == "cuda"
    speed = {"fused": True} if on_cuda else {"foreach": True}
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=lr, betas=betas, **speed)


class Ema(Generic[Network]):
    """Exponential moving average of a model's parameters and floating-point buffers.

    Args:
        model: The model that is trained; `self.model` is a copy of it, in evaluation mode.
        decay: Share of the old average kept at each step. Early on less is kept,
            (1 + steps) / (10 + steps), so that the random start is soon forgotten.
    """

    def __init__(self, model: Network, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self.model.eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, steps: int) -> None:
        """Takes in the weights of `model` after its optimizer step number `steps` (from 0)."""
        decay = min(self.decay, (1 + steps) / (10 + steps))
        averages, values = [], []
        for average, value in zip(_state(self.model), _state(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1.0 - decay)


def _state(model: nn.Module) -> Iterable[torch.Tensor]:
    return (tensor.detach() for tensor in model.state_dict().values())
