"""`vmf eval`."""

import sys
from collections.abc import Sequence

from vmf.cli.parsing import Parser
from vmf.training.distributed import is_first_process
from vmf.training.evaluation import EvalResult, evaluate
from vmf_kernels import keep_freed_memory

_DESCRIPTION = """\
Evaluate trained weights: top-1, top-5 and per-class accuracy over the videos of DATA/SPLIT/CLASS
or of a list file. With --views and --crops each video is seen several times and the scores are
averaged. --out keeps the figures as results.json and the confusion matrix as confusion.png.
Under torchrun the videos are shared among the processes."""

_EXAMPLE = """\
  vmf eval --weights runs/first --data clips
  vmf eval --weights runs/first --data clips --split test --views 10 --crops 3 --out runs/first/test
  vmf eval --weights model.safetensors --data videos --list-file val.txt"""


def run(arguments: Sequence[str]) -> int:
    """Runs `vmf eval`; returns the exit code."""
    keep_freed_memory()
    parser = Parser("eval", _DESCRIPTION, _EXAMPLE)
    parser.add_function(evaluate, Weights=["weights"])
    parser.add_function(evaluate, Videos=["data", "split", "list_file", "classes", "max_bad_files"])
    parser.add_function(evaluate, Views=["views", "crops"])
    parser.add_function(evaluate, Output=["out"])
    parser.add_function(evaluate, Machine=["batch_size", "workers", "device", "precision"])
    options = parser.parse(arguments)
    result = evaluate(**options)
    if is_first_process():
        _tell(result, options["out"])
    return 0


def _tell(result: EvalResult, out: str | None) -> None:
    for line in result.errors:
        print(f"passed over: {line}", file=sys.stderr)
    width = max(map(len, result.classes))
    for name, accuracy in result.per_class.items():
        print(f"  {name:{width}}  " + ("no video" if accuracy is None else f"{accuracy:6.1%}"))
    print(
        f"top-1 {result.top1:.1%}  top-5 {result.top5:.1%}  loss {result.loss:.4f}  "
        f"videos {result.count}"
    )
    if out is not None:
        print(f"written: {out}/results.json, {out}/confusion.png")
