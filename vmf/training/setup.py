"""From settings to the objects of a run: clips, network, optimizer, folder."""

import dataclasses
import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

import vmf
from vmf import VideoMobileFormer
from vmf.data import ClipSpec, EvalClips, TrainClips
from vmf.training.checkpoint import STATE_FILE, initial_weights, read_state_record
from vmf.training.config import TrainConfig
from vmf.training.distributed import Ranks
from vmf.training.files import atomic_write
from vmf.training.mixing import mix_seeds
from vmf.training.videos import Sample, training_videos, videos


@dataclass
class Clips:
    """The clips of a run.

    Attributes:
        train: Takes (epoch, index).
        validation: None if the run does not validate.
        classes: Class names in label order.
        spec: The clip.
        fingerprint: Changes when a training clip, its label or their order does.
    """

    train: TrainClips
    validation: EvalClips | None
    classes: list[str]
    spec: ClipSpec
    fingerprint: int


def make_clips(config: TrainConfig) -> Clips:
    """Lists the videos of a run.

    Raises:
        ValueError: A folder, list or class is missing, empty or unknown, or there are fewer clips
            than a batch takes.
    """
    assert config.data is not None  # TrainConfig.check has seen to it
    default_clip = _built(vmf.create_model, config.model, 0, **config.overrides).default_clip
    spec = config.clip_spec(default_clip)
    samples, classes = training_videos(
        config.data, config.train_split, config.train_list, config.classes
    )
    if len(samples) < config.batch_size:
        raise ValueError(
            f"batch_size: must be at most the number of training clips "
            f"(got {config.batch_size}, found {len(samples)})"
        )
    validation = None
    if config.validate:
        found = videos(config.data, config.val_split, config.val_list, classes)
        validation = EvalClips(found, spec)
    train = TrainClips(samples, classes, spec, config.augment, config.seed)
    return Clips(train, validation, classes, spec, _fingerprint(samples, Path(config.data)))


def make_model(config: TrainConfig, clips: Clips) -> VideoMobileFormer:
    """The network of a run with its first weights, on the CPU.

    Raises:
        ValueError: A setting that no network has, or weights that do not fit.
    """
    torch.manual_seed(mix_seeds(config.seed))
    # The record that checkpoints keep tells the clip it was trained for, not the preset's.
    overrides = {"frames": clips.spec.frames, "size": clips.spec.size, **config.overrides}
    model = _built(
        vmf.create_model,
        config.model,
        len(clips.classes),
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path_rate,
        **overrides,
    )
    if config.init_from is not None:
        model = _built(initial_weights, dataclasses.asdict(model.config), config.init_from)
    model.set_grad_checkpointing(config.grad_checkpointing)
    return model


def settle_resume(config: TrainConfig) -> tuple[TrainConfig, dict[str, Any] | None]:
    """Decides whether a run starts or goes on.

    Returns:
        The settings with `resume` and `out` filled in, and the record of the state to go on from,
        or None for a fresh run.

    Raises:
        ValueError: The state cannot be read, or was made with other settings.
    """
    folder = config.folder
    if config.resume == "auto":
        exists = (folder / STATE_FILE).is_file()
        config = dataclasses.replace(config, resume=str(folder) if exists else None)
    if config.resume is None:
        if (folder / STATE_FILE).exists() and not config.overwrite:
            raise ValueError(
                f"out: {folder} already holds a run; continue it with --resume {folder}, "
                f"or choose another --out or --overwrite true"
            )
        return config, None
    folder = Path(config.resume)
    record = read_state_record(folder)
    changed = TrainConfig.from_dict(record["config"]).changes(config)
    if changed:
        raise ValueError(
            f"resume: {folder} can only go on with the settings it had ({'; '.join(changed)}); "
            "to train on with others, start a run with --init-from"
        )
    return dataclasses.replace(config, out=str(folder)), record


def resumed_config(folder: str | Path, **changes: Any) -> TrainConfig:
    """The settings of a run that is to go on.

    Args:
        folder: The run's folder.
        **changes: Settings to have instead, of those that do not change what is computed.

    Raises:
        ValueError: There is no run that can be read, or a name is no setting.
    """
    values = read_state_record(Path(folder))["config"]
    return TrainConfig.from_dict(values | changes | {"resume": str(folder), "overwrite": False})


def prepare_folder(config: TrainConfig, fresh: bool, ranks: Ranks) -> Path:
    """Makes the run's folder, empties it of an older run, and notes the settings in it."""
    folder = config.folder
    if not ranks.first:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if fresh:
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        # The state goes first: without it, whatever else is left is no run that could go on.
        for name in (STATE_FILE, "last.safetensors", "best.safetensors", "curves.png"):
            (folder / name).unlink(missing_ok=True)
        plain = json.loads(json.dumps({**config.to_dict(), "resume": None, "overwrite": False}))
        atomic_write(folder / "config.yaml", yaml.safe_dump(plain, sort_keys=False))
    return folder


def check_same_run(record: dict[str, Any], clips: Clips, ranks: Ranks) -> None:
    """Refuses to go on where the numbers could not come out the same.

    Raises:
        ValueError: The training clips or the number of processes changed.
    """
    if record["fingerprint"] != clips.fingerprint:
        raise ValueError(
            f"resume: the training clips must be those the run began with "
            f"(it had {record['clips']}, found {len(clips.train)}, or names or labels changed)"
        )
    if record["world"] != ranks.world:
        raise ValueError(
            f"resume: the run must go on with as many processes as it had "
            f"(got {ranks.world}, had {record['world']})"
        )


def _fingerprint(samples: list[Sample], root: Path) -> int:
    value = 0
    for path, label in samples:
        # Relative to the folder, which may have moved.
        name = Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path
        value = zlib.crc32(f"{name} {label}\n".encode(), value)
    return value


def _built(make: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `make`, whose TypeErrors here come from a user's value."""
    try:
        return make(*args, **kwargs)
    except TypeError as error:
        raise ValueError(str(error)) from None
