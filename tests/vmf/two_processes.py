"""What torchrun starts in test_training_distributed.py: a config and three folders are given."""

import os
import sys

import torch.distributed as dist

from vmf.cli.main import main
from vmf.training.logs import Logs


class Crash(BaseException):
    """Ends a run in all processes at the same step."""


def run(config: str, weights_data: str, whole: str, broken: str) -> None:
    """Trains into `whole`; trains into `broken`, crashes, goes on; evaluates `whole`."""
    assert main(["train", "--config", config, "--out", whole]) == 0
    step = Logs.step

    def crashing(logs: Logs, epoch: int, batch_size: int) -> None:
        step(logs, epoch, batch_size)
        if epoch == 1:
            raise Crash

    Logs.step = crashing
    try:
        main(["train", "--config", config, "--out", broken])
    except Crash:
        Logs.step = step
    assert main(["train", "--resume", broken]) == 0
    data = ["--data", weights_data, "--split", "train", "--workers", "0"]
    assert main(["eval", "--weights", whole, *data, "--out", f"{whole}/by-two"]) == 0


if __name__ == "__main__":
    dist.init_process_group("gloo")
    run(*sys.argv[1:])
    dist.destroy_process_group()
    # Past the interpreter's own end, in which one run of ten aborts on a busy machine ("terminate
    # called without an active exception", no Python frame): some thread outlives its owner there.
    sys.stdout.flush()
    os._exit(0)
