"""The training run: steps, logs, validation, saves, and going on where it stopped."""

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vmf import VideoMobileFormer
from vmf.data import EvalClips
from vmf.training.batches import ChunkSampler, evaluation_batches, training_batches
from vmf.training.checkpoint import load_state, save_state, save_weights
from vmf.training.config import TrainConfig
from vmf.training.distributed import Ranks, distributed, processes
from vmf.training.evaluation import check_bad_files, score
from vmf.training.interrupt import Stopped, StopRequest
from vmf.training.logs import Logs
from vmf.training.optim import Ema, make_optimizer
from vmf.training.precision import deterministic, pick_precision
from vmf.training.schedule import learning_rate
from vmf.training.setup import (
    check_same_run,
    make_clips,
    make_model,
    prepare_folder,
    settle_resume,
)
from vmf.training.step import Stepper
from vmf.training.videos import default_workers


@dataclass
class TrainResult:
    """What a finished run leaves.

    Attributes:
        folder: Holds last.safetensors, best.safetensors (if the run validates), metrics.csv,
            curves.png, config.yaml, state.safetensors and tensorboard/.
        weights: The best weights, or the last ones if the run does not validate.
        steps: Optimizer steps of the whole run.
        loss: Mean training loss of the last epoch.
        top1: Best top-1 on validation, 0 to 1; None if the run does not validate.
        seconds: Wall time of this call.
        bad_files: One line for each video that could not be read.
    """

    folder: Path
    weights: Path
    steps: int
    loss: float
    top1: float | None
    seconds: float
    bad_files: list[str]


def train(config: TrainConfig | None = None, **settings: Any) -> TrainResult:
    """Trains a Video Mobile-Former.

    Under `torchrun` it uses all processes; each must call it.

    Args:
        config: The settings.
        **settings: Settings by name, instead of or on top of `config`.

    Returns:
        Where everything is, and how good it became.

    Raises:
        ValueError: Names the setting, file or value that is wrong: before anything is written, or
            when the loss stops being finite or too many videos are unreadable.
        OSError: A file could not be written. Those already there are whole.
        Stopped: SIGINT or SIGTERM came; the state was saved at the end of that step.

    Example:
        >>> result = train(data="clips", model="vmf_tiny", epochs=10, out="runs/first")
        >>> evaluate(result.folder, "clips").top1
    """
    began = time.monotonic()
    config = dataclasses.replace(config or TrainConfig(), **settings)
    with processes(config.device) as ranks:
        config.check(ranks.world)
        gpus = [ranks.device] if ranks.device.type == "cuda" else []
        with torch.random.fork_rng(gpus), deterministic(config.deterministic):
            run = _Run(config, ranks)
            run.fit()
    progress = run.progress
    return TrainResult(
        folder=run.folder,
        weights=run.folder / ("last.safetensors" if progress.best is None else "best.safetensors"),
        steps=progress.step,
        loss=progress.epoch_loss,
        top1=None if progress.best is None else progress.best[0],
        seconds=time.monotonic() - began,
        bad_files=sorted(progress.bad_files),
    )


@dataclass
class _Progress:
    """All that changes in a run beside tensors; plain values, saved with every state.

    Attributes:
        step: Steps taken.
        window: [loss, gradient norm] of the steps that are in no log line yet.
        epoch_losses: Losses of this epoch's steps.
        epoch_loss: Mean loss of the last whole epoch.
        best: (top-1, minus the loss) of the best validation.
        bad_files: One line for each unreadable video met.
    """

    step: int = 0
    window: list[list[float]] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)
    epoch_loss: float = math.nan
    best: list[float] | None = None
    bad_files: list[str] = field(default_factory=list)


class _Run:
    """One run, in one of its processes."""

    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self.ranks = ranks
        self.config, record = settle_resume(config)
        config = self.config
        self.clips = make_clips(config)
        self.steps_per_epoch = len(self.clips.train) // config.batch_size
        self.total = self.steps_per_epoch * config.epochs
        precision = pick_precision(config.precision, ranks.device)
        self.model = make_model(config, self.clips).to(ranks.device)
        self.model.train()
        if config.sync_batch_norm and ranks.world > 1:
            if ranks.device.type != "cuda":
                raise ValueError(f"sync_batch_norm: needs CUDA devices (got {ranks.device})")
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # in place
        self.optimizer = make_optimizer(self.model, config.lr, config.weight_decay, config.betas)
        self.ema = Ema(self.model, config.ema) if config.ema else None
        self.progress = _Progress()
        if record is not None:
            check_same_run(record, self.clips, ranks)
            ema = None if self.ema is None else self.ema.model
            load_state(config.folder, self.model, ema, self.optimizer)
            self.progress = _Progress(**record["progress"])
        classes = len(self.clips.classes)
        self.stepper = Stepper(self._wrapped(), self.optimizer, config, classes, precision, ranks)
        if record is not None:
            self.stepper.scaler.load_state_dict(record["scaler"])
        self.workers = default_workers(ranks.world) if config.workers is None else config.workers
        self.stop = StopRequest()
        self.unread: list[Tensor] = []  # [loss, gradient norm] still on the device
        self.folder = prepare_folder(config, record is None, ranks)
        self.logs = Logs(
            self.folder, ranks.first, self.progress.step, self.total, config.tensorboard
        )

    def fit(self) -> None:
        """Takes all steps that are left."""
        try:
            with self.stop:
                self._announce()
                self.logs.skip_time()
                for chunks in self._batches():
                    self._take_step(chunks)
                    self._after_step()
                    if self.stop.agreed:
                        raise Stopped(self.stop.signal or signal.SIGTERM, str(self.folder))
        finally:
            self.logs.close()

    @property
    def epoch(self) -> int:
        """The epoch that the next step belongs to, from 0."""
        return self.progress.step // self.steps_per_epoch

    def _announce(self) -> None:
        clips, config = self.clips, self.config
        weights = sum(p.numel() for p in self.model.parameters())
        spec = clips.spec
        self.logs.say(
            f"{config.model}: {weights / 1e6:.2f}M parameters, {len(clips.classes)} classes, "
            f"{len(clips.train)} clips of {spec.frames} x {spec.size} x {spec.size}, "
            f"{self.total} steps of {config.batch_size} on "
            f"{self.ranks.world} x {self.ranks.device.type} in {self.stepper.precision}; "
            f"to {self.folder}"
        )
        if self.progress.step:
            self.logs.say(f"going on after step {self.progress.step}")

    def _wrapped(self) -> nn.Module:
        if self.config.compile:
            self.model.compile()
        if self.ranks.world == 1:
            return self.model
        return distributed(self.model)

    def _batches(self) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
        """For each step that is left, its chunks."""
        config = self.config
        sampler = ChunkSampler(
            len(self.clips.train),
            config.batch_size,
            config.accumulate,
            self.ranks,
            config.seed,
            start=self.progress.step,
            stop=self.total,
        )
        pin = self.ranks.device.type == "cuda"
        loader = iter(training_batches(self.clips.train, sampler, self.workers, pin))
        for _ in range(self.progress.step, self.total):
            yield (self._on_device(next(loader)) for _ in range(config.accumulate))

    def _on_device(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        self._note_bad_files(batch["errors"])
        if batch["clip"] is None or len(batch["clip"]) < 2:
            raise ValueError(
                f"data: a batch must have readable videos (the last error: {batch['errors'][-1]})"
            )
        device = self.ranks.device
        return (
            batch["clip"].to(device, non_blocking=True),
            batch["label"].to(device, non_blocking=True),
        )

    def _take_step(self, chunks: Iterator[tuple[Tensor, Tensor]]) -> None:
        config, step = self.config, self.progress.step
        warmup = config.warmup_epochs * self.steps_per_epoch
        self.lr = learning_rate(step, self.total, warmup, config.lr, config.min_lr)
        loss, norm = self.stepper(step, self.lr, chunks)
        self.ranks.average_buffers(self.model)
        if self.ema is not None:
            self.ema.update(self.model, step)
        self.unread.append(torch.stack([loss, norm]))

    def _after_step(self) -> None:
        epoch, config, progress = self.epoch, self.config, self.progress
        progress.step += 1
        step = progress.step
        epoch_ends = step % self.steps_per_epoch == 0
        line_due = epoch_ends or step % config.log_every == 0
        save_due = config.save_every > 0 and step % config.save_every == 0
        alone = self.ranks.world == 1 and self.ranks.device.type == "cpu"
        # Reading a figure makes the host wait for the GPU and for the other processes: now and
        # then. Where that costs nothing each step is looked at, and a stop is obeyed at once.
        if alone or line_due or save_due or self.stop.urgent(self.ranks):
            self._read_figures()
        self.logs.step(epoch, self.config.batch_size)
        if line_due:
            self._log()
        if epoch_ends:
            self._end_epoch()
        if epoch_ends or save_due or self.stop.agreed:
            self._save()
        if epoch_ends:
            self.logs.draw(force=step == self.total)
        if epoch_ends or save_due:
            self.logs.skip_time()

    def _read_figures(self) -> None:
        """Takes in losses and norms, averaged over processes, and refuses what is not finite."""
        stop = torch.full((1, 2), float(self.stop.signal is not None), dtype=torch.float64)
        figures = torch.cat([torch.stack(self.unread).double().cpu(), stop])
        *rows, stops = (self.ranks.sum(figures) / self.ranks.world).tolist()
        self.stop.agreed = stops[0] > 0
        first = self.progress.step - len(self.unread) + 1
        self.unread.clear()
        for step, (loss, norm) in enumerate(rows, first):
            # With fp16 an infinite gradient is routine: the scaler leaves that step out.
            name, value = ("loss", loss) if not math.isfinite(loss) else ("gradient norm", norm)
            if not math.isfinite(value) and (name == "loss" or self.stepper.precision != "fp16"):
                raise ValueError(
                    f"{name}: must stay finite (got {value} at step {step}, learning rate "
                    f"{self.lr:.3g}); try a lower --lr, more --warmup-epochs or --precision fp32"
                )
            self.logs.last_loss = loss
            self.progress.window.append([loss, norm])
            self.progress.epoch_losses.append(loss)

    def _log(self) -> None:
        window, progress = self.progress.window, self.progress
        losses, norms = zip(*window, strict=True)
        self.logs.train(
            progress.step,
            progress.step / self.steps_per_epoch,
            loss=math.fsum(losses) / len(losses),
            lr=self.lr,
            grad_norm=math.fsum(norms) / len(norms),
            clips_per_s=self.logs.clips_per_second("line"),
        )
        window.clear()

    def _end_epoch(self) -> None:
        progress, config = self.progress, self.config
        losses = progress.epoch_losses
        progress.epoch_loss = math.fsum(losses) / len(losses)
        progress.epoch_losses = []
        done = progress.step // self.steps_per_epoch
        line = f"epoch {done:3d}/{config.epochs}  loss {progress.epoch_loss:.4f}"
        due = done % config.eval_every == 0 or done == config.epochs
        if self.clips.validation is not None and due:
            line += self._validate(self.clips.validation, done)
        rate = self.logs.clips_per_second("epoch")
        self.logs.say(f"{line}  {rate:.1f} clips/s")

    def _validate(self, validation: EvalClips, epochs: int) -> str:
        """Validates, keeps the weights if they are the best, and words the result."""
        config, ranks, progress = self.config, self.ranks, self.progress
        size = max(1, config.batch_size // (config.accumulate * ranks.world))
        batches = evaluation_batches(
            validation, size, ranks, self.workers, ranks.device.type == "cuda"
        )
        scores, errors = score(
            self._kept(), batches, len(self.clips.classes), ranks, self.stepper.precision, size
        )
        self._note_bad_files(errors)
        if scores.count == 0:
            raise ValueError(f"data: validation must have readable videos (got {errors[0]})")
        figures = {"val_loss": scores.loss, "top1": scores.top1, "top5": scores.top5}
        self.logs.validation(progress.step, epochs, **figures)
        rank = [scores.top1, -scores.loss]
        if progress.best is None or rank > progress.best:
            progress.best = rank
            self._write_weights("best.safetensors", figures)
        return (
            f"  val loss {scores.loss:.4f}  top-1 {scores.top1:.1%}  top-5 {scores.top5:.1%}"
            f"  (best {progress.best[0]:.1%})"
        )

    def _kept(self) -> VideoMobileFormer:
        """The weights to validate, keep and use."""
        return self.model if self.ema is None else self.ema.model

    def _save(self) -> None:
        everyones = self.ranks.gather(self.progress.bad_files)
        self.progress.bad_files = sorted({line for lines in everyones for line in lines})
        check_bad_files(self.progress.bad_files, self.config.max_bad_files)
        if not self.ranks.first:
            return
        self._write_weights("last.safetensors", {})
        save_state(
            self.folder,
            self.model,
            None if self.ema is None else self.ema.model,
            self.optimizer,
            {
                "config": self.config.to_dict(),
                "progress": dataclasses.asdict(self.progress),
                "scaler": self.stepper.scaler.state_dict(),
                "clips": len(self.clips.train),
                "fingerprint": self.clips.fingerprint,
                "world": self.ranks.world,
            },
        )

    def _write_weights(self, name: str, metrics: dict[str, float]) -> None:
        if self.ranks.first:
            save_weights(
                self.folder / name,
                self._kept(),
                self.clips.classes,
                self.clips.spec,
                step=self.progress.step,
                epoch=self.progress.step / self.steps_per_epoch,
                metrics=metrics,
                config=self.config.to_dict(),
            )

    def _note_bad_files(self, errors: list[str]) -> None:
        for line in errors:
            if line not in self.progress.bad_files:
                self.progress.bad_files.append(line)
                self.logs.say(f"passed over: {line}", file=sys.stderr)
        check_bad_files(self.progress.bad_files, self.config.max_bad_files)
