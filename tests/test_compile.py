"""Compiled, exported and packaged models: the same numbers after `accelerate` and `fuse`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from tests.networks import clips, close, gradients, loss_of, pair
from vmf_kernels import fuse

needs_kernels = pytest.mark.usefixtures("extension")  # the reference compiles for half a minute


@needs_kernels
def test_max_autotune() -> None:
    theirs, ours = pair()
    torch._dynamo.reset()
    compiled = torch.compile(ours, mode="max-autotune-no-cudagraphs", fullgraph=True)
    close(
        gradients(ours, loss_of(compiled, clips())),
        gradients(theirs, loss_of(theirs, clips())),
    )


@needs_kernels
def test_any_batch_and_time_with_one_recompilation() -> None:
    theirs, ours = (model.eval() for model in pair())
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(ours, fullgraph=True, backend=counter)
    with torch.no_grad():
        for number, frames in ((2, 4), (3, 5), (5, 6), (4, 9)):
            x = clips(number, frames)
            close(compiled(x), theirs(x))
    assert counter.frame_count <= 2


@needs_kernels
def test_a_fused_model() -> None:
    theirs, ours = (model.eval() for model in pair())
    torch._dynamo.reset()
    compiled = torch.compile(fuse(ours), fullgraph=True)
    with torch.no_grad():
        close(compiled(clips()), theirs(clips()))


def models() -> dict[str, nn.Module]:
    ours = pair()[1].eval()
    return {"accelerated": ours, "fused": fuse(ours)}


@pytest.mark.parametrize("name", ["accelerated", "fused"])
def test_export_with_any_batch(name: str, tmp_path: Path) -> None:
    theirs = pair()[0].eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(models()[name], (clips(),), dynamic_shapes=({0: batch},))
    path = tmp_path / "model.pt2"
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    for number in (1, 4, 7):
        close(loaded(clips(number)), theirs(clips(number)))


PACKAGED = """
import sys
import torch
import vmf_kernels  # registers the ops
model = torch._inductor.aoti_load_package(sys.argv[1])
torch.save(model(torch.load(sys.argv[2])), sys.argv[3])
"""


@needs_kernels
@pytest.mark.parametrize("name", ["accelerated", "fused"])
def test_ahead_of_time_package(name: str, tmp_path: Path) -> None:
    """AOTInductor's, run in another process."""
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(models()[name], (clips(),), dynamic_shapes=({0: batch},))
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "model.pt2")
        )
        expected = pair()[0].eval()(clips(3))
    torch.save(clips(3), tmp_path / "in.pt")
    files = [path, str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    subprocess.run([sys.executable, "-c", PACKAGED, *files], check=True, timeout=600)
    close(torch.load(tmp_path / "out.pt"), expected)
