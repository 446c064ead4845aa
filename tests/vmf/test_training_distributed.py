"""Two processes under torchrun compute what one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from vmf.cli.main import main
from vmf.training import TrainConfig, train
from vmf.training.logs import read_log


def torchrun(script: Path, *arguments: str) -> subprocess.CompletedProcess:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", port]
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *launch, str(script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=900,
    )


def rows(folder: Path) -> list[dict]:
    return [
        {name: value for name, value in row.items() if name != "clips_per_s"}
        for row in read_log(folder / "metrics.csv")
    ]


def losses(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in rows(folder) if row["loss"]]


def test_two_processes_compute_what_one_does(settings, tmp_path):
    config, whole, broken = (tmp_path / name for name in ("config.json", "whole", "broken"))
    config.write_text(json.dumps(TrainConfig(**settings).to_dict()))
    script = Path(__file__).with_name("two_processes.py")
    ran = torchrun(script, str(config), settings["data"], str(whole), str(broken))
    assert ran.returncode == 0, ran.stderr

    # The parts of a batch are the same, whether one process takes both or two take one each.
    one = train(**settings | {"accumulate": 2}).folder
    assert len(losses(whole)) == 6
    for ours, theirs in zip(losses(whole), losses(one), strict=True):
        assert abs(ours - theirs) < 1e-6

    # A run that crashed in its second epoch went on as if nothing had happened.
    assert "going on after step 3" in ran.stdout
    assert rows(broken) == rows(whole)

    # The counts of two add up to those of one that sees every clip. Only the first one talks.
    data = ["--data", settings["data"], "--split", "train", "--workers", "0"]
    assert main(["eval", "--weights", str(whole), *data, "--out", str(whole / "by-one")]) == 0
    by_one, by_two = (
        json.loads((whole / name / "results.json").read_text()) for name in ("by-one", "by-two")
    )
    assert by_two["count"] == 18
    assert by_one["confusion"] == by_two["confusion"]
    assert by_one["per_class"] == by_two["per_class"]
    assert abs(by_one["loss"] - by_two["loss"]) < 1e-9
    assert ran.stdout.count("top-1") == 2 * 2 + 2 + 1
