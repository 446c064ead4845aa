"""Results written, read back, summarised, and held against targets."""

from pathlib import Path

import pytest

from bench import targets
from bench.cases import DepthwiseCase
from bench.comparison import Comparison
from bench.machine import Roofline
from bench.op import FORWARD, TRAINING, Traffic
from bench.results import csv_text, kinds, layers, read, rows_of, summarise
from bench.targets import CPU, GPU, Target
from bench.timing import Times

ROOFLINE = Roofline(32 << 20, cache_bandwidth=180e9, memory_bandwidth=50e9, flops=190e9)
FIRST, LAST = "contiguous", "channels_last_3d"


def comparison(speedup: float, kernel: int = 3, mode: str = FORWARD, **changes) -> Comparison:
    """Ours takes 1 ms channels-last and 2 ms contiguous; the peer 4 times that contiguous."""
    case = DepthwiseCase("net", 2, 3, 4, 1, (8, 9, 9), (kernel,) * 3, (1, 1, 1), (kernel // 2,) * 3)
    seconds = {
        ("ours", FIRST): [2e-3],
        ("ours", LAST): [1e-3],
        ("eager", FIRST): [8e-3 * speedup],
        ("eager", LAST): [1e-3 * speedup],
    }
    fields = {
        "op": "depthwise_conv3d",
        "case": case,
        "full_batch": 8,
        "mode": mode,
        "dtype": "float32",
        "backend": "cpu",
        "times": Times(seconds),
        "reasons": {("inductor", FIRST): "only with --peers all"},
        "traffic": Traffic(500, 100_000),
        "groups": ("a side of 5 or more",) if kernel > 3 else ("3x3x3", "strided"),
    }
    return Comparison(**{**fields, **changes})


def back(results: list[Comparison], folder: Path):
    path = folder / "results.csv"
    path.write_text(csv_text(results, {"cpu": "Z80: fast", "threads": "2"}, ROOFLINE))
    return read(path)


def test_a_file_reads_back_as_it_was_written(tmp_path: Path):
    found = back([comparison(3.0)], tmp_path)
    assert found.facts["cpu"] == "Z80: fast" and found.facts["threads"] == "2"
    assert found.roofline == ROOFLINE
    assert found.rows == rows_of(comparison(3.0), ROOFLINE)
    (layer,) = layers(found.rows)
    assert layer.name == "net 2x4x8x9x9 k3x3x3 (of 8)"
    assert layer.groups == ("3x3x3", "strided") and layer.count == 3
    assert layer.speedup == 3.0 and layer.milliseconds == 1.0
    assert layer.peer == ("eager", LAST) and layer.peer_milliseconds == 3.0
    assert layer.same_layout == {FIRST: 12.0, LAST: 3.0}
    assert layer.peer_in_layout == {FIRST: 24.0, LAST: 3.0}
    assert (layer.bytes, layer.flops) == (500, 100_000)


def test_our_own_cuda_kernel_is_no_peer(tmp_path: Path):
    seconds = {**comparison(3.0).times.seconds, ("ours in CUDA C++", FIRST): [0.5e-3]}
    (layer,) = layers(back([comparison(3.0, times=Times(seconds))], tmp_path).rows)
    assert layer.peer == ("eager", LAST) and layer.milliseconds == 1.0


def test_a_roofline_on_a_gpu_reads_back_and_other_text_does_not():
    roofline = Roofline(0, 0.0, 3000e9, 60e12)
    assert Roofline.parse(str(roofline)) == roofline
    assert Roofline.parse("") is None


def test_wrong_numbers_stay_without_a_speedup(tmp_path: Path):
    wrong = comparison(3.0, times=Times(), reasons={("ours", LAST): "off by 1e-1"})
    (layer,) = layers(back([wrong], tmp_path).rows)
    assert layer.speedup is None and layer.peer is None
    assert summarise([layer]) is None


def test_a_summary_names_the_worst_and_the_slower(tmp_path: Path):
    found = layers(back([comparison(4.0), comparison(0.25, kernel=5)], tmp_path).rows)
    summary = summarise(found)
    assert summary is not None and summary.number == 2
    assert summary.mean == pytest.approx(1.0)
    assert summary.same_layout == pytest.approx({FIRST: 4.0, LAST: 1.0})
    assert summary.worst.name.startswith("net 2x4x8x9x9 k5x5x5")
    assert [layer.speedup for layer in summary.slower] == [0.25]
    assert [(name, len(some)) for name, some in kinds(found)] == [
        ("all cases", 2),
        ("3x3x3", 1),
        ("strided", 1),
        ("a side of 5 or more", 1),
        ("net", 2),
    ]


def test_targets_are_held_against_their_own_layers(tmp_path: Path):
    some = [
        comparison(4.0),
        comparison(1.0, kernel=5),
        comparison(30.0, mode=TRAINING),
        comparison(9.0, dtype="bfloat16"),
    ]
    found = layers(back(some, tmp_path).rows)
    table = CPU.table(found)
    assert table is not None
    cells = {
        (c := [x.strip() for x in line.strip("|").split("|")])[0]: c[1:]
        for line in table.splitlines()[2:]
    }
    assert cells["depthwise_conv3d: all"] == [
        # The peers' 4, 1 and 30 ms over the 100,000 operations at 190 GFLOP/s.
        *("2", "2.0", "2.00", "3800.0", "met"),
        *("12.0", "30.00", "57000.0", "met"),
    ]
    assert cells["depthwise_conv3d: a side of 5 or more"][2:5] == ["1.00", "1900.0", "**not met**"]
    assert cells["depthwise_conv3d: strided"][2:5] == ["4.00", "7600.0", "met"]
    # Contiguous against contiguous: 16 and 4.
    assert cells["depthwise_conv3d: all, both contiguous"][1:5] == ["8.0", "8.00", "30400.0", "met"]
    assert cells["depthwise_conv3d: all, 16-bit"][1:] == [
        *("2.4", "9.00", "17100.0", "met"),
        *("10.0", "-", "-", "-"),
    ]
    assert not any("attention" in name for name in cells)
    assert CPU.table([]) is None


def test_the_most_takes_each_layer_by_the_roofline_of_its_own_run(tmp_path: Path):
    """A table of two files, the second of a machine that is half as fast."""
    half = Roofline(32 << 20, cache_bandwidth=90e9, memory_bandwidth=25e9, flops=95e9)
    (first,) = layers(rows_of(comparison(4.0), ROOFLINE))
    (second,) = layers(rows_of(comparison(4.0), half))
    assert first.most() == pytest.approx(7600, rel=1e-3)
    assert second.most() == pytest.approx(3800, rel=1e-3)
    untold = comparison(4.0, traffic=None)
    table = CPU.table(layers(back([untold], tmp_path).rows))
    assert table is not None
    assert [cell.strip() for cell in table.splitlines()[2].split("|")[5:6]] == ["-"]


def test_every_target_names_layers_that_exist():
    from bench.ops import BENCHES

    for target in (*CPU.all, *GPU.all):
        bench = BENCHES[target.op]
        kinds = [bench.groups(c) for c in bench.cases()]
        chosen = [k for k in kinds if target.group in (None, *k) and target.without not in k]
        assert len(chosen) > 3, target
    assert isinstance(CPU.all[0], Target)


def test_a_gpu_has_targets_of_its_own(tmp_path: Path):
    some = [comparison(4.0), comparison(1.0, kernel=5)]
    found = layers(back(some, tmp_path).rows)
    assert targets.targets({"gpu": "some"}) is GPU and targets.targets({}) is CPU
    table = GPU.table(found)
    assert table is not None
    small, large = table.splitlines()[2:]
    assert "sides up to 3, float32" in small and "4.00" in small and "met" in small
    assert "side of 5 or more, float32" in large and "**not met**" in large
    assert not targets.overhead({"gpu": "some"}) and targets.overhead({}) == targets.OVERHEAD
