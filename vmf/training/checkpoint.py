"""Two kinds of file: weights to use, and a training state to go on from.

Each is one safetensors file that is complete in itself and replaced in one step, so there is no
moment at which a kill could leave weights of one step beside an optimizer of another: a resumed
run reads the state alone, and the state holds its own copy of the weights.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vmf
from vmf import VideoMobileFormer
from vmf.data import ClipSpec
from vmf.training.tensors import is_kind, read_record, read_tensors, write_tensors

WEIGHTS = "vmf_weights"
STATE = "vmf_state"
STATE_FILE = "state.safetensors"


@dataclass
class Weights:
    """A trained network and what is needed to use it.

    Attributes:
        model: The network, on the CPU, in evaluation mode.
        classes: Class names in label order.
        clip: The clip it reads.
        info: Everything else that was recorded: step, epoch, metrics, the training settings.
    """

    model: VideoMobileFormer
    classes: list[str]
    clip: ClipSpec
    info: dict[str, Any] = field(default_factory=dict)


def save_weights(
    path: str | Path, model: VideoMobileFormer, classes: list[str], clip: ClipSpec, **info: Any
) -> Path:
    """Writes a network that `load_weights`, `vmf eval`, `vmf predict` and `vmf export` can use.

    Args:
        path: The .safetensors file; its folder must exist.
        model: A model of `vmf.create_model`.
        classes: Class names in label order.
        clip: The clip it was trained on.
        **info: JSON-able values to keep with it.
    """
    record = {
        "model": dataclasses.asdict(model.config),
        "classes": list(classes),
        "clip": dataclasses.asdict(clip),
        "info": info,
    }
    return write_tensors(path, WEIGHTS, model.state_dict(), record)


def load_weights(path: str | Path) -> Weights:
    """Rebuilds the network of a weights file.

    Args:
        path: The file, or the folder of a run: then its best weights, else its last.

    Raises:
        ValueError: The file is missing, damaged, no weights file, or holds other tensors than its
            network has.
    """
    path = find_weights(path)
    tensors, record = read_tensors(path, WEIGHTS)
    try:
        model = vmf.create_model(**record["model"]).eval()
        clip = ClipSpec(**record["clip"])
        classes, info = list(record["classes"]), dict(record.get("info", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: describes no model of this version ({error})") from None
    load_exactly(model, tensors, path)
    return Weights(model, classes, clip, info)


def find_weights(path: str | Path) -> Path:
    """The weights file that a file or run folder means."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in ("best.safetensors", "last.safetensors"):
        if (path / name).is_file():
            return path / name
    raise ValueError(f"{path}: no weights in this folder (best.safetensors or last.safetensors)")


def load_exactly(model: VideoMobileFormer, tensors: dict[str, Tensor], path: str | Path) -> None:
    """`load_state_dict` whose error is one line.

    Raises:
        ValueError: Names the file and the tensors that are missing, extra or misshapen.
    """
    wanted = model.state_dict()
    faults = [f"missing {name}" for name in wanted if name not in tensors]
    faults += [f"extra {name}" for name in tensors if name not in wanted]
    faults += [
        f"{name} is {list(tensors[name].shape)} and must be {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(
            f"{path}: weights of another model than {model.config.name} "
            f"({'; '.join(faults[:3])}{more})"
        )
    model.load_state_dict(tensors)


def initial_weights(model_record: dict[str, Any], path: str | Path) -> VideoMobileFormer:
    """A network that starts from the weights of a file.

    Args:
        model_record: Arguments of `vmf.create_model`.
        path: Weights of this program (a file or a run's folder), or an image Mobile-Former
            checkpoint. A classifier for another number of classes is replaced by a new one.

    Raises:
        ValueError: The file is missing, damaged or of another network.
    """
    path = find_weights(path)
    if not path.is_file():
        raise ValueError(f"init_from: no such file (got {path})")
    if not is_kind(path, WEIGHTS):
        return vmf.load_mobile_former(vmf.create_model(**model_record), path, skip_classifier=True)
    tensors, record = read_tensors(path, WEIGHTS)
    made_for = record["model"]
    if made_for["name"] != model_record["name"]:
        raise ValueError(
            f"{path}: weights of another model (got {made_for['name']}, "
            f"the run trains {model_record['name']})"
        )
    model = vmf.create_model(**{**model_record, "num_classes": made_for["num_classes"]})
    load_exactly(model, tensors, path)
    if made_for["num_classes"] != model_record["num_classes"]:
        model.reset_classifier(model_record["num_classes"])
    return model


def save_state(
    folder: Path,
    model: VideoMobileFormer,
    ema: VideoMobileFormer | None,
    optimizer: torch.optim.Optimizer,
    record: dict[str, Any],
) -> None:
    """Writes all that a run needs to go on, as one file.

    Args:
        folder: The run's folder.
        model: The model that is trained.
        ema: The running mean of its weights, if one is kept.
        optimizer: Its per-parameter tensors are kept; rates and the like follow from the settings.
        record: JSON-able: settings, step and whatever else is to be remembered.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{name}": value for name, value in ema.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    write_tensors(folder / STATE_FILE, STATE, tensors, record)


def read_state_record(folder: Path) -> dict[str, Any]:
    """What `save_state` was given as `record`.

    Raises:
        ValueError: The folder holds no state that can be read.
    """
    if not (folder / STATE_FILE).is_file():
        raise ValueError(f"resume: {folder} must hold a run's {STATE_FILE} (found none)")
    return read_record(folder / STATE_FILE, STATE)


def load_state(
    folder: Path,
    model: VideoMobileFormer,
    ema: VideoMobileFormer | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Puts back what `save_state` wrote.

    Raises:
        ValueError: The file is missing, damaged or of another network.
    """
    path = folder / STATE_FILE
    tensors, _ = read_tensors(path, STATE)

    def under(prefix: str) -> dict[str, Tensor]:
        start = len(prefix)
        return {name[start:]: v for name, v in tensors.items() if name.startswith(prefix)}

    load_exactly(model, under("model."), path)
    if ema is not None:
        load_exactly(ema, under("ema."), path)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(parameters))}
    for key, value in under("optimizer.").items():
        index, name = key.split(".")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            # The file is contiguous; moments must be laid out as their weights are.
            value = torch.empty_like(parameter).copy_(value)
        state[int(index)][name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
