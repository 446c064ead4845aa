"""`vmf train`."""

import operator
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from vmf.cli.errors import UsageError
from vmf.cli.parsing import Parser
from vmf.training import Stopped, TrainConfig, resumed_config, train
from vmf.training.checkpoint import STATE_FILE
from vmf.training.config import FREE_ON_RESUME, GROUPS
from vmf.training.distributed import is_first_process
from vmf_kernels import keep_freed_memory

_DESCRIPTION = """\
Train a Video Mobile-Former. DATA holds train/CLASS/*.mp4 and val/CLASS/*.mp4 (also .avi, .mkv,
.webm, .mov), or list files name the videos. The run's folder gets the best and the last weights,
metrics.csv, curves.png, TensorBoard events, the settings as config.yaml, and a state from which
--resume goes on exactly. Every option may also stand in the YAML file given to --config."""

_EXAMPLE = """\
  vmf train --data clips --model vmf_tiny --epochs 30 --out runs/first
  vmf train --resume runs/first
  vmf train --config runs/first/config.yaml --lr 5e-4 --out runs/second
  fine-tune a published image Mobile-Former:
    vmf train --data clips --model vmf_1g --init-from mobile-former-96m.pth --lr 4e-4 \\
      --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225
  long training, on 8 GPUs (UniFormer-XXS's recipe, a start for Kinetics-400):
    torchrun --nproc-per-node 8 -m vmf train --data k400 --model vmf_1g --epochs 110 \\
      --batch-size 256 --lr 4e-4 --warmup-epochs 10 --weight-decay 0.1 --mixup 0.8 --cutmix 1.0 \\
      --augment.randaugment 5 --drop-path-rate 0.05 --ema 0.9998"""


def parser() -> Parser:
    """Options of `vmf train`."""
    made = Parser("train", _DESCRIPTION, _EXAMPLE)
    made.add_argument("--config", action="config", help="YAML file of settings.")
    for group in GROUPS:
        made.add_class_arguments(group)
    return made


def run(arguments: Sequence[str]) -> int:
    """Runs `vmf train`.

    Returns:
        The exit code.
    """
    keep_freed_memory()
    options = parser()
    values = options.parse(arguments)
    resume = values["resume"]
    if resume is None or resume == "auto":
        config = TrainConfig(**values)
    else:
        config = _resumed(options, arguments, values)
    try:
        result = train(config)
    except Stopped as stop:
        if is_first_process():
            again = f"go on with: vmf train --resume {stop.folder}"
            print(f"vmf train: {stop}; {again}", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:
        if is_first_process():
            state = Path(config.resume or config.folder) / STATE_FILE
            saved = f"; go on from the last save with: vmf train --resume {state.parent}"
            print(f"vmf train: stopped{saved if state.exists() else ''}", file=sys.stderr)
        return 128 + signal.SIGINT
    if not is_first_process():
        return 0
    best = "" if result.top1 is None else f", best top-1 {result.top1:.1%}"
    print(f"{result.weights}: loss {result.loss:.4f}{best}, {result.seconds:.0f} s")
    return 0


def _resumed(options: Parser, arguments: Sequence[str], values: dict) -> TrainConfig:
    """The settings of the run to go on with, and those the user set beside --resume."""
    given = set(options.parse(arguments, defaults=False)) - {"resume", "out"}
    stored, wanted = resumed_config(values["resume"]), TrainConfig(**values)
    for name in given - FREE_ON_RESUME:
        read = operator.attrgetter(name)  # also augment.flip
        if read(stored) != read(wanted):
            raise UsageError(
                f"{name}: cannot change in a run that goes on "
                f"(got {read(wanted)}, it has {read(stored)})"
            )
    changes = {name: values[name] for name in given & FREE_ON_RESUME}
    return resumed_config(values["resume"], **changes)
