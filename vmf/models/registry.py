"""Networks by name, as timm has them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from vmf.models.config import REGISTRY, Config
from vmf.models.network import VideoMobileFormer


def list_models() -> list[str]:
    """Every registered name: the bases by size, then the budget presets, then `vmf_tiny`."""
    return list(REGISTRY)


def create_model(
    name: str,
    num_classes: int = 400,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    **overrides: Any,
) -> VideoMobileFormer:
    """Builds a network with fresh weights.

    `create_model(**dataclasses.asdict(model.config))` builds the same network again.

    Args:
        name: One of `list_models()`.
        num_classes: Width of the logits; 0 returns features instead.
        in_chans: Channels of a clip.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Drop-path of the last block, rising linearly from 0 over the blocks.
        **overrides: Any other field of `vmf.models.Config`, such as `num_tokens=0` (no Former:
            the baseline), `kernel_size_t=1`, `frames=16`, `size=160`.

    Returns:
        The network, in training mode as every `nn.Module`.

    Raises:
        ValueError: An unknown name or override, or a value that no network can have.
        TypeError: A value of the wrong type.
    """
    if name not in REGISTRY:
        raise ValueError(f"create_model: no model is named {name!r}{_known(name, REGISTRY)}")
    fields = [field.name for field in dataclasses.fields(Config)]
    for override in overrides:
        if override not in fields:
            raise ValueError(
                f"create_model: {name} has no option {override!r}{_known(override, fields)}"
            )
    return VideoMobileFormer(
        dataclasses.replace(
            REGISTRY[name],
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            **overrides,
        )
    )


def _known(wrong: object, names: Iterable[str]) -> str:
    names = list(names)
    close = difflib.get_close_matches(str(wrong), names, n=3)
    return f"; did you mean {' or '.join(close)}?" if close else f" (known: {', '.join(names)})"
