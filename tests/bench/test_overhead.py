"""The suite of calls so small that only their overhead is left."""

import torch

from bench import cli, overhead
from bench.op import FORWARD, RECORDED, TRAINING
from bench.ops import BENCHES
from bench.timing import Effort


def test_every_op_has_a_tiny_case():
    assert list(overhead.CASES) == list(BENCHES)


def test_every_op_and_mode_has_a_line_with_its_target(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(overhead, "EFFORT", Effort(0.0, 1, 1, sample_seconds=0.0))
    threads = []

    def clock(work, calls: int) -> float:
        threads.append(torch.get_num_threads())
        assert torch.is_grad_enabled() == (getattr(work, "__name__", "") != "forward")
        work()
        return 10e-6

    monkeypatch.setattr(overhead, "batch_clock", clock)
    before = torch.get_num_threads()
    arguments = ["--suite", "overhead", "--skip-tests", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert set(threads) == {1} and torch.get_num_threads() == before
    text = capsys.readouterr().out
    for op in BENCHES:
        lines = [line for line in text.splitlines() if line.startswith(f"| {op} ")]
        cells = {(c := [x.strip() for x in line.strip("|").split("|")])[3]: c for line in lines}
        assert list(cells) == [FORWARD, RECORDED, TRAINING]
        # 10 microseconds: above the 6 of inference, below the 25 of a call in training.
        assert cells[FORWARD][4:7] == ["10.0", "6", "**not met**"]
        assert cells[RECORDED][4:7] == ["10.0", "25", "met"]
        assert cells[TRAINING][4:7] == ["10.0", "-", "-"]
        assert cells[FORWARD][-1] == "1.00"
    assert "- threads: 1" in text
    assert (tmp_path / "overhead-cpu.csv").exists()


def test_a_batch_is_timed_as_a_whole(monkeypatch):
    ticks = iter([1.0, 4.0])
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: next(ticks))
    done = []
    assert overhead.batch_clock(lambda: done.append(1), 6) == 0.5
    assert len(done) == 6
