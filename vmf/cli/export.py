"""`vmf export`."""

from collections.abc import Sequence

from vmf.cli.parsing import Parser
from vmf.training.exporting import export

_DESCRIPTION = """\
Write a network as a torch.export program (.pt2). It runs wherever PyTorch does, without this
package, on batches of any size, and carries the class names, clip size, mean and std as
vmf.json. What was written is read back and compared before the file gets its name."""

_EXAMPLE = """\
  vmf export --weights runs/first --out model.pt2
  and then, in Python:
    more = {"vmf.json": ""}
    model = torch.export.load("model.pt2", extra_files=more).module()
    model(clips)  # (B, 3, T, H, W), (pixel / 255 - mean) / std"""


def run(arguments: Sequence[str]) -> int:
    """Runs `vmf export`; returns the exit code."""
    parser = Parser("export", _DESCRIPTION, _EXAMPLE)
    parser.add_function(export, Files=["weights", "out"])
    result = export(**parser.parse(arguments))
    clip = result.record["clip"]
    print(
        f"{result.path}: {len(result.record['classes'])} classes, clips of 3 x {clip['frames']} x "
        f"{clip['size']} x {clip['size']}, logits within {result.error:.1e} of the network's"
    )
    return 0
