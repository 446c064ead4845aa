"""Published image Mobile-Former checkpoints, inflated into the video network.

A k x k kernel goes to the centre temporal tap of kT x k x k, zeros elsewhere. On a clip that
repeats one image the video network then computes exactly what the image network does: spreading
w / kT over the taps would break that at the zero-padded ends of the clip. Inflation is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmf.models.blocks import DownMobile, LiteMobile, Mobile
from vmf.models.layers import channel_shuffle
from vmf.models.network import VideoMobileFormer

# Our module names and the checkpoint's.
_WHOLE = {
    "stem.conv": "stem.0",
    "stem.norm": "stem.1",
    "head.expand": "classifier.conv.1",
    "head.norm": "classifier.conv.2",
    "head.hidden": "classifier.fc.0",
    "head.hidden_norm": "classifier.fc.1",
    "head.classifier": "classifier.classifier.1",
}
_TO_TOKENS = {
    "to_tokens.query": "local_global.q",
    "to_tokens.gate": "local_global.alpha.0",
    "to_tokens.proj": "local_global.proj",
    "to_tokens.norm": "local_global.layer_norm",
}
_TOKENS = {
    **_TO_TOKENS,
    "former.query": "global_block.q",
    "former.proj": "global_block.channel_mlp",
    "former.norm": "global_block.layer_norm",
    "former.expand": "global_block.ffn.0",
    "former.contract": "global_block.ffn.2",
    "former.mlp_norm": "global_block.ffn_norm",
    "from_tokens.key": "global_local.k",
    "from_tokens.value": "global_local.proj",
}
_MOBILE = {
    LiteMobile: {
        "mobile.stage.depthwise": "conv.0",
        "mobile.stage.norm_out": "conv.1",
        "mobile.project": "conv.4",
        "mobile.norm": "conv.5",
    },
    Mobile: {
        "mobile.expand": "conv1.0",
        "mobile.stage.norm_in": "conv1.1",
        "mobile.stage.act_in.squeeze": "hyper1.hyper.0",
        "mobile.stage.act_in.slopes": "hyper1.hyper.2",
        "mobile.stage.depthwise": "conv2.0",
        "mobile.stage.norm_out": "conv2.1",
        "mobile.stage.act_out.squeeze": "hyper2.hyper.0",
        "mobile.stage.act_out.slopes": "hyper2.hyper.2",
        "mobile.project": "conv3.0",
        "mobile.norm": "conv3.1",
    },
    DownMobile: {
        "mobile.stage1.depthwise": "conv1.0",
        "mobile.stage1.norm_out": "conv1.1",
        "mobile.stage1.act_out.squeeze": "hyper1.hyper.0",
        "mobile.stage1.act_out.slopes": "hyper1.hyper.2",
        "mobile.project1": "conv2.0",
        "mobile.norm1": "conv2.1",
        "mobile.stage2.depthwise": "conv3.0",
        "mobile.stage2.norm_out": "conv3.1",
        "mobile.stage2.act_out.squeeze": "hyper3.hyper.0",
        "mobile.stage2.act_out.slopes": "hyper3.hyper.2",
        "mobile.project2": "conv4.0",
        "mobile.norm2": "conv4.1",
    },
}

_CLASSIFIER = "classifier.classifier.1."


def load_mobile_former(
    model: VideoMobileFormer,
    checkpoint: Mapping[str, Tensor] | str | Path,
    skip_classifier: bool = False,
) -> VideoMobileFormer:
    """Puts the weights of an image Mobile-Former into a video network of the same widths.

    To fine-tune with other classes than the checkpoint's, pass `skip_classifier=True`: the last
    linear layer then keeps the model's own weights and everything else is loaded.

    Args:
        model: Is filled in place.
        checkpoint: The state dict, a `.safetensors` file, or any other file that
            `torch.load(..., weights_only=True)` reads; bare or under the key `"state_dict"`.
        skip_classifier: Leave `classifier.classifier.1.*` out.

    Returns:
        The model.

    Raises:
        ValueError: Entries are missing, extra or of another shape (all are listed, and the model is
            left as it was), or the file is no checkpoint.
        FileNotFoundError: There is no such file.
        TypeError: `model` or `checkpoint` is something else.
    """
    if not isinstance(model, VideoMobileFormer):
        raise TypeError(
            f"load_mobile_former: model must be a Video Mobile-Former (got {type(model).__name__})"
        )
    given = _read(checkpoint)
    names = _names(model)
    target = model.state_dict()
    if skip_classifier:
        given = {name: value for name, value in given.items() if not name.startswith(_CLASSIFIER)}
        names = {ours: name for ours, name in names.items() if not name.startswith(_CLASSIFIER)}
    wrong = [f"missing: {name}" for name in names.values() if name not in given]
    wrong += [f"extra: {name}" for name in given if name not in set(names.values())]
    for ours, name in names.items():
        expected = _image_shape(target[ours])
        if name in given and (found := _describe(given[name])) != str(expected):
            wrong.append(f"misshapen: {name} is {found}, must be {expected}")
    if wrong:
        hint = (
            "\nskip_classifier=True leaves the last layer out" if _CLASSIFIER in str(wrong) else ""
        )
        raise ValueError(
            f"load_mobile_former: the checkpoint does not fit {model.config.name} "
            f"({len(wrong)} entries):\n  " + "\n  ".join(wrong) + hint
        )
    with torch.no_grad():
        for ours, name in names.items():
            target[ours].copy_(_inflate(_reordered(model, ours, given[name]), target[ours]))
    return model


def _read(checkpoint: Mapping[str, Tensor] | str | Path) -> dict[str, Any]:
    found: Any = checkpoint
    if isinstance(checkpoint, str | Path):
        found = _read_file(Path(checkpoint))
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise TypeError(
            "load_mobile_former: a checkpoint is a dict of tensors or a file that holds one "
            f"(got {type(found).__name__})"
        )
    return {str(name): value for name, value in found.items()}


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"load_mobile_former: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:  # the readers raise anything at all on a corrupt file
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"load_mobile_former: {path} is not a checkpoint ({reason})") from error


def _names(model: VideoMobileFormer) -> dict[str, str]:
    """Every entry of the model's state dict with its name in an image checkpoint."""
    modules = dict(_WHOLE)
    modules.update({f"head.{ours}": theirs for ours, theirs in _TO_TOKENS.items()})
    for i in range(len(model.blocks)):
        mobile = _MOBILE[type(model.get_submodule(f"blocks.{i}.mobile"))]
        for ours, theirs in {**_TOKENS, **mobile}.items():
            modules[f"blocks.{i}.{ours}"] = f"features.{i}.{theirs}"
    names = {}
    for entry in model.state_dict():
        module, _, parameter = entry.rpartition(".")
        names[entry] = f"{modules[module]}.{parameter}" if module else "tokens.weight"
    return names


def _image_shape(entry: Tensor) -> tuple[int, ...]:
    """The shape that an entry of the video network has in the image network."""
    shape = tuple(entry.shape)
    return (*shape[:2], *shape[3:]) if entry.ndim == 5 else shape


def _describe(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _inflate(value: Tensor, entry: Tensor) -> Tensor:
    if entry.ndim != 5:
        return value
    inflated = torch.zeros_like(entry)
    inflated[:, :, entry.shape[2] // 2] = value
    return inflated


def _reordered(model: VideoMobileFormer, entry: str, value: Tensor) -> Tensor:
    """An entry in the order of channels that our grouped networks have.

    The image network shuffles channels after a norm; ours does so inside the pointwise convolution
    before it (`Mobile`) or after the activation that follows (`DownMobile`), see `PointwiseConv3d`.
    The per-channel entries that the shuffle moves past are reordered here, once.
    """
    groups = model.config.groups
    block, found, part = entry.partition(".mobile.")
    if groups == 1 or not found or not value.ndim:
        return value
    mobile = model.get_submodule(f"{block}.mobile")
    if isinstance(mobile, Mobile) and part.startswith(("stage.norm_in.", "norm.")):
        return channel_shuffle(value, groups, dim=0)
    if isinstance(mobile, DownMobile) and ".slopes." in part:
        stage = mobile.stage1 if part.startswith("stage1.") else mobile.stage2
        multiplier = stage.depthwise.out_channels // stage.depthwise.in_channels
        return channel_shuffle(value.unflatten(0, (2, -1)), multiplier, dim=1).flatten(0, 1)
    return value
