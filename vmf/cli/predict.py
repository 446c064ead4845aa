"""`vmf predict`."""

import dataclasses
import json
import sys
from collections.abc import Sequence

from vmf.cli.parsing import Parser
from vmf.training.prediction import predict
from vmf_kernels import keep_freed_memory

_DESCRIPTION = """\
Tell the best classes of video files, with their probabilities. --attention draws, over the frames
of the clip, where each of the network's tokens looks. A file that cannot be read gets a line on
stderr, the others are still told, and the exit code is 2."""

_EXAMPLE = """\
  vmf predict walk.mp4 --weights runs/first
  vmf predict *.mp4 --weights runs/first/best.safetensors --views 10 --crops 3 --json
  vmf predict walk.mp4 --weights runs/first --attention walk.png"""


def run(arguments: Sequence[str]) -> int:
    """Runs `vmf predict`; returns the exit code."""
    keep_freed_memory()
    parser = Parser("predict", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("files", nargs="+", help="Video files.", metavar="FILE")
    parser.add_function(predict, Weights=["weights"])
    parser.add_function(predict, Views=["views", "crops"])
    parser.add_function(predict, Output=["top", "attention"])
    parser.add_argument(
        "--json", action="store_true", help="One JSON object a file, on a line of its own."
    )
    parser.add_function(predict, Machine=["device", "precision"])
    options = parser.parse(arguments)
    as_json = options.pop("json")
    failed = False
    for prediction in predict(**options):
        failed |= prediction.error is not None
        if prediction.error is not None:
            print(f"vmf predict: {prediction.error}", file=sys.stderr)
        if as_json:
            print(json.dumps(dataclasses.asdict(prediction), default=str))
        elif prediction.error is None:
            print(prediction.file)
            width = max(len(name) for name, _ in prediction.classes)
            for name, value in prediction.classes:
                print(f"  {name:{width}}  {value:6.1%}")
            if prediction.attention is not None:
                print(f"  attention: {prediction.attention}")
    return 2 if failed else 0
