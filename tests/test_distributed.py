"""Two processes over gloo: DDP and FSDP2 train what one process trains on the whole batch."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from tests.networks import clips, close, labels, pair
from vmf_kernels import restore

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo"
)
WORLD, EACH = 2, 2


def without_batch_norm(model: nn.Module) -> nn.Module:
    """Statistics of half a batch are other ones: they are frozen, as in fine-tuning."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm3d):
            layer.eval()
    return model


def steps(model: nn.Module, x: Tensor, target: Tensor, number: int = 3) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    losses = []
    for _ in range(number):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def fsdp(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (WORLD,))
    for layer in (model[3], model[6]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


WRAPPERS = {"ddp": ddp, "fsdp": fsdp}


def work(rank: int, wrapper: str, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=WORLD)
    try:
        model = without_batch_norm(pair()[1])
        wrapped: Any = WRAPPERS[wrapper](model)
        mine = slice(rank * EACH, (rank + 1) * EACH)
        steps(wrapped, clips(WORLD * EACH)[mine], labels(WORLD * EACH)[mine])
        weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
        torch.save([w.detach().clone() for w in weights], Path(folder) / f"{rank}.pt")
        if wrapper == "ddp":
            assert type(restore(model)[3]) is nn.Conv3d
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_processes_train_as_one(wrapper: str, tmp_path: Path) -> None:
    theirs = without_batch_norm(pair()[0])
    losses = steps(theirs, clips(WORLD * EACH), labels(WORLD * EACH))
    assert losses[-1] < losses[0]
    mp.spawn(work, (wrapper, str(tmp_path)), nprocs=WORLD)
    for rank in range(WORLD):
        close(torch.load(tmp_path / f"{rank}.pt"), list(theirs.parameters()))
