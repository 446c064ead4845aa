"""`python -m vmf.demo`, and `make demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vmf.threads import wait_briefly

wait_briefly()

from vmf.demo.films import FILMS  # noqa: E402 (after the line that must come before PyTorch)
from vmf.demo.footage import Footage  # noqa: E402
from vmf.demo.run import run_demo, summary  # noqa: E402
from vmf.training import Stopped  # noqa: E402
from vmf_kernels import keep_freed_memory  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns its exit code."""
    options = _parser().parse_args(argv)
    keep_freed_memory()
    footage = Footage(options.held_out, train=options.train_clips, val=options.val_clips)
    print("Video Mobile-Former learns to tell how a camera moves, from real footage.")
    try:
        result = run_demo(
            options.out,
            footage,
            epochs=options.epochs,
            seed=options.seed,
            kernel_size_t=options.kernel_size_t,
        )
    except (ValueError, OSError, RuntimeError, Stopped) as error:
        print(f"vmf.demo: {' '.join(str(error).split())}", file=sys.stderr)
        return 128 + error.signal if isinstance(error, Stopped) else 2
    except KeyboardInterrupt:
        return 130
    print(f"\nDone.\n{summary(result, footage.held_out)}\n\nTry it on a clip of yours:")
    print(f"  vmf predict FILE --weights {result.weights}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vmf.demo",
        description="Films clips with a virtual camera that moves over real footage, trains a "
        "small Video Mobile-Former to tell nine camera motions apart, and evaluates it on a film "
        "it never saw.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("demo"), help="folder for clips, weights and pictures")
    add("--held-out", choices=list(FILMS), default=Footage.held_out, help="the film to test on")
    add("--train-clips", type=int, default=Footage.train, help="training clips of each class")
    add("--val-clips", type=int, default=Footage.val, help="clips of the held-out film per class")
    add("--epochs", type=int, default=10, help="passes over the training clips")
    add("--seed", type=int, default=0, help="of the training run")
    add("--kernel-size-t", type=int, default=3, help="temporal kernel size; 1 cannot see motion")
    return parser


if __name__ == "__main__":
    sys.exit(main())
