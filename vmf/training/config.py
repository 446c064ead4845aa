"""Every setting of a training run, with its default.

One flat dataclass, put together from one group per subject: the command line shows the groups, a
YAML file and Python see plain names.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmf.data import AugmentOptions, ClipSpec
from vmf.training.precision import Precision


@dataclass(kw_only=True)
class DataOptions:
    """Clips

    Args:
        data: Folder of the videos: DATA/SPLIT/CLASS/*.mp4, or what the list files are relative to.
        train_split: Folder under DATA to train on.
        val_split: Folder under DATA to validate on.
        train_list: List file to train on instead (a line: relative/path label).
        val_list: List file to validate on instead.
        classes: Text file with one class name a line, in label order, for list files that hold
            numbers; without it the classes of list files are called 0, 1, 2 and so on.
        validate: Whether to validate at all; without it only the last weights are kept.
        frames: Frames of a clip; the model's own number by default.
        stride: Distance between two frames of a clip, in frames of the file.
        size: Height and width of a clip in pixels; the model's own size by default.
        mean: Mean that is subtracted from R, G and B, on a scale of 0 to 1 (image checkpoints are
            usually trained with 0.485 0.456 0.406).
        std: Deviation that R, G and B are divided by (image checkpoints: 0.229 0.224 0.225).
        workers: Processes that decode videos, for each training process; by default one per CPU
            core, at most 8. 0 decodes in the training process itself.
        max_bad_files: How many unreadable videos are passed over before the run gives up.
    """

    data: str | None = None
    train_split: str = "train"
    val_split: str = "val"
    train_list: str | None = None
    val_list: str | None = None
    classes: str | None = None
    validate: bool = True
    frames: int | None = None
    stride: int = 2
    size: int | None = None
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    workers: int | None = None
    max_bad_files: int = 10


@dataclass(kw_only=True)
class ModelOptions:
    """Model

    Args:
        model: Name of the network (`vmf models` lists them).
        overrides: Settings of the network other than its preset's, such as num_tokens or
            kernel_size_t: --overrides.kernel_size_t 1.
        drop_rate: Dropout before the last layer, as a probability.
        drop_path_rate: Highest drop-path probability; it grows linearly over the blocks.
        init_from: Weights to start from: an image Mobile-Former checkpoint (.pth or .safetensors),
            which is inflated, or weights of this program. A head for other classes is replaced.
        grad_checkpointing: Recompute activations in the backward pass: less memory, more time.
    """

    model: str = "vmf_tiny"
    overrides: dict[str, Any] = field(default_factory=dict)
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    init_from: str | None = None
    grad_checkpointing: bool = False


@dataclass(kw_only=True)
class RegularisationOptions:
    """Augmentation and labels

    Args:
        augment: How training changes clips.
        label_smoothing: Share of the target spread evenly over all classes.
        mixup: Parameter of mixup's Beta distribution (0.8 in many recipes); 0 is off.
        cutmix: Parameter of CutMix's Beta distribution (1.0 in many recipes); 0 is off.
    """

    augment: AugmentOptions = field(default_factory=AugmentOptions)
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass(kw_only=True)
class OptimOptions:
    """Optimisation

    Args:
        epochs: Passes over the training clips.
        batch_size: Clips for one optimizer step, over all processes and accumulated parts.
        accumulate: Parts a process cuts its share of a batch into, to save memory.
        lr: Highest learning rate of AdamW, for the whole batch.
        min_lr: Learning rate at the end of the cosine.
        warmup_epochs: Epochs of linear warm-up; may be a fraction.
        weight_decay: Of all parameters but 1-D ones (biases, norms) and the tokens.
        betas: AdamW's two averaging factors.
        clip_grad: Largest gradient norm; 0 is no limit.
        ema: Factor of the running mean of the weights, e.g. 0.9998. 0 is off; when it is on, the
            mean is what is validated and kept.
        precision: Arithmetic; auto is bf16 on a GPU that has it and fp32 elsewhere.
        sync_batch_norm: Normalise over the clips of all processes, not of each by itself.
    """

    epochs: int = 30
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 1e-3
    min_lr: float = 1e-6
    warmup_epochs: float = 2.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float = 1.0
    ema: float = 0.0
    precision: Precision = "auto"
    sync_batch_norm: bool = False


@dataclass(kw_only=True)
class RunOptions:
    """Run

    Args:
        out: Folder for weights, logs and curves; runs/MODEL by default.
        overwrite: Start anew in a folder that already holds a run.
        resume: Folder of a run to continue exactly where it was saved, with the settings it had;
            or auto: continue the run in OUT if there is one.
        seed: Of every random choice.
        device: auto, cpu or cuda.
        compile: Compile the network with torch.compile.
        deterministic: Have PyTorch use its deterministic operations where it has a choice.
        save_every: Steps between saves within an epoch; 0 saves at the ends of epochs only.
        log_every: Steps between two lines of the log.
        eval_every: Epochs between validations; the last epoch is always validated.
        tensorboard: Whether to write a TensorBoard log as well.
    """

    out: str | None = None
    overwrite: bool = False
    resume: str | None = None
    seed: int = 0
    device: str = "auto"
    compile: bool = False
    deterministic: bool = False
    save_every: int = 200
    log_every: int = 10
    eval_every: int = 1
    tensorboard: bool = True


GROUPS = (DataOptions, ModelOptions, RegularisationOptions, OptimOptions, RunOptions)

# What may differ when a run is continued: none of it changes what is computed.
FREE_ON_RESUME = frozenset(
    {"data", "out", "overwrite", "resume", "workers", "max_bad_files", "device", "compile"}
    | {"save_every", "log_every", "tensorboard"}
)


@dataclass(kw_only=True)
class TrainConfig(DataOptions, ModelOptions, RegularisationOptions, OptimOptions, RunOptions):
    """Settings of `vmf.training.train`; `vmf train --help` explains each of them."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict that `from_dict` turns back into an equal config."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainConfig":
        """Builds a config from plain values, as JSON or YAML hold them.

        Raises:
            ValueError: A name that is no setting.
        """
        values = dict(values)
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"config: every key must be a setting (got {', '.join(unknown)})")
        if isinstance(values.get("augment"), dict):
            values["augment"] = AugmentOptions(**values["augment"])
        for name in ("mean", "std", "betas"):
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)

    def changes(self, other: "TrainConfig") -> list[str]:
        """Settings that make `other` compute something else, worded with both values."""
        ours, theirs = (json.loads(json.dumps(c.to_dict())) for c in (self, other))
        return [
            f"{name} {ours[name]} became {theirs[name]}"
            for name in ours
            if name not in FREE_ON_RESUME and ours[name] != theirs[name]
        ]

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.out or f"runs/{self.model}")

    def clip_spec(self, default_clip: tuple[int, int]) -> ClipSpec:
        """The clip to sample, where `default_clip` is the model's own (frames, size)."""
        frames, size = default_clip
        return ClipSpec(
            frames=frames if self.frames is None else self.frames,
            stride=self.stride,
            size=size if self.size is None else self.size,
            mean=self.mean,
            std=self.std,
        )

    def check(self, world: int) -> None:
        """Refuses values that cannot work.

        Args:
            world: Number of training processes.

        Raises:
            ValueError: Names the setting and its value.
        """
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= low):
                raise ValueError(f"{name}: must be at least {low} (got {value})")
        for name in ("drop_rate", "drop_path_rate", "label_smoothing", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: must be in [0, 1) (got {getattr(self, name)})")
        if self.lr > _HIGHEST_LR:
            raise ValueError(f"lr: must be at most {_HIGHEST_LR:g} (got {self.lr})")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: both must be in [0, 1) (got {list(self.betas)})")
        if self.data is None:
            raise ValueError(
                "data: must name a folder of videos, DATA/SPLIT/CLASS/*.mp4 (got none)"
            )
        parts = self.accumulate * world
        if self.batch_size % parts:
            raise ValueError(
                f"batch_size: must be a multiple of processes x accumulate "
                f"(got {self.batch_size}, {world} x {self.accumulate})"
            )
        if self.batch_size < 2 * parts:
            raise ValueError(
                f"batch_size: batch norm needs at least 2 clips in each process and part "
                f"(got {self.batch_size} in {parts} parts)"
            )


# Far beyond any use, and within what fp32 weights can be moved by.
_HIGHEST_LR = 1e6

_AT_LEAST = {
    "epochs": 1,
    "batch_size": 1,
    "accumulate": 1,
    "lr": 0,
    "min_lr": 0,
    "warmup_epochs": 0,
    "weight_decay": 0,
    "clip_grad": 0,
    "mixup": 0,
    "cutmix": 0,
    "max_bad_files": 0,
    "workers": 0,
    "save_every": 0,
    "log_every": 1,
    "eval_every": 1,
    "seed": 0,
}
