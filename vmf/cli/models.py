"""`vmf models`."""

from collections.abc import Sequence

import torch

import vmf
from vmf.cli.parsing import Parser

_DESCRIPTION = """\
List the networks: the clip each is meant for (any other works too), its global tokens, parameters
and multiply-adds of one clip, forward."""

_EXAMPLE = """\
  vmf models
  vmf models --num-classes 10"""


def run(arguments: Sequence[str]) -> int:
    """Runs `vmf models`; returns the exit code."""
    parser = Parser("models", _DESCRIPTION, _EXAMPLE)
    parser.add_argument("--num_classes", type=int, default=400, help="Classes to tell.")
    num_classes = parser.parse(arguments)["num_classes"]
    print(f"{'name':10}  {'clip':>15}  {'tokens':>7}  {'params':>8}  {'GMACs':>7}")
    for name in vmf.list_models():
        # Costs follow from shapes: no weights are drawn.
        with torch.device("meta"):
            model = vmf.create_model(name, num_classes=num_classes)
        frames, size = model.default_clip
        clip = f"{frames} x {size} x {size}"
        tokens = f"{model.config.num_tokens} x {model.config.token_dim}"
        params = sum(p.numel() for p in model.parameters()) / 1e6
        macs = model.count_macs((model.config.in_chans, frames, size, size)) / 1e9
        print(f"{name:10}  {clip:>15}  {tokens:>7}  {params:7.2f}M  {macs:7.3f}")
    return 0
