"""A trained network as a program that needs PyTorch alone."""

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vmf.training.checkpoint import Weights, find_weights, load_weights
from vmf.training.files import atomic_write
from vmf_kernels import use_backend

# Key of the record inside the .pt2 file: what torch.export.load(..., extra_files) asks for.
RECORD = "vmf.json"

# fp32 through different kernels agrees to about 1e-6.
_TOLERANCE = 1e-4


@dataclass
class Exported:
    """What `export` wrote and found.

    Attributes:
        path: The .pt2 file.
        error: Largest difference between its logits and the network's, relative to the largest
            logit.
        record: Class names and clip, as they stand in the file.
    """

    path: Path
    error: float
    record: dict


def export(weights: str | Path, out: str | Path | None = None) -> Exported:
    """Writes a network as a `torch.export` program.

    The program takes (B, 3, T, H, W) fp32, normalised, with any B from 1 up, and returns (B, K)
    logits. It holds PyTorch's own operations alone, so it runs where this package is not
    installed: `torch.export.load(path).module()(clip)`. Class names, clip size, mean and std are
    in it as `vmf.json`. The file takes its name only once what was written has been read back and
    computes what the network does.

    Args:
        weights: A weights file, or the folder of a run (its best weights).
        out: The .pt2 file; by default beside the weights.

    Returns:
        The file and how close it is.

    Raises:
        ValueError: The weights cannot be used.
        RuntimeError: What was written computes something else.
    """
    source = find_weights(weights)
    out = source.with_suffix(".pt2") if out is None else Path(out)
    if out.suffix != ".pt2":
        raise ValueError(f"out: must end in .pt2 (got {out})")
    loaded = load_weights(source)
    record = {"classes": loaded.classes, "clip": dataclasses.asdict(loaded.clip)}
    data = _program(loaded.model, _clips(loaded, 2), record)
    error = max(_difference(data, loaded, batch) for batch in (1, 3))
    if not error < _TOLERANCE:
        raise RuntimeError(f"export: the program must give the network's logits (off by {error:g})")
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, data)
    return Exported(out, error, record)


@torch.no_grad()
def _program(model: nn.Module, clips: Tensor, record: dict) -> bytes:
    batch = torch.export.Dim("batch", min=1)
    # What is traced under the reference are PyTorch's own operations.
    with use_backend("reference"):
        program = torch.export.export(model, (clips,), dynamic_shapes=({0: batch},))
    foreign = {
        str(node.target)
        for node in program.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace != "aten"
    }
    if foreign:
        raise RuntimeError(f"export: the program must hold PyTorch's ops alone (got {foreign})")
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={RECORD: json.dumps(record)})
    return file.getvalue()


@torch.no_grad()
def _difference(data: bytes, loaded: Weights, batch: int) -> float:
    """Largest difference of the written program's logits, relative to the largest logit."""
    clips = _clips(loaded, batch)
    expected = loaded.model(clips)
    got = torch.export.load(io.BytesIO(data)).module()(clips)
    return ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-6)).item()


def _clips(loaded: Weights, batch: int) -> Tensor:
    clip = loaded.clip
    shape = (batch, loaded.model.config.in_chans, clip.frames, clip.size, clip.size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(batch))
