"""Statistics, the order of contenders, and the roofline."""

import itertools

import pytest

from bench.machine import Roofline, facts, folder_name, measure_roofline
from bench.timing import Effort, Times, geomean, interleave, quantile


def test_quantiles_are_linear_between_neighbours():
    assert quantile([4.0, 1.0, 2.0, 3.0], 0.5) == 2.5
    assert quantile([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.2) == 2.0
    assert quantile([7.0], 0.8) == 7.0


def test_geomean():
    assert geomean([1.0, 4.0]) == pytest.approx(2.0)
    assert geomean([1.0, 4.0], [3.0, 1.0]) == pytest.approx(4**0.25)


def test_a_ratio_is_taken_within_each_round():
    # The machine is ten times slower in the second round: no matter.
    times = Times({"ours": [1.0, 10.0, 1.0], "peer": [2.0, 20.0, 2.0, 5.0]})
    assert times.ratio("ours", "peer") == (2.0, 2.0, 2.0)
    assert times.fastest(["ours", "peer"]) == "ours"
    assert times.spread("ours") == pytest.approx((1.0, 6.4))


class Script:
    """A clock that tells what it is told and notes who ran."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.order = seconds, []

    def __call__(self, work, calls: int) -> float:
        name = work()
        self.order.append((name, calls))
        return self.seconds[name]


def contenders(*names: str):
    return {name: lambda name=name: name for name in names}


def test_every_round_has_every_contender_and_begins_with_another():
    clock = Script({"a": 1.0, "b": 1.0, "c": 1.0})
    times = interleave(contenders("a", "b", "c"), clock, Effort(0.0, rounds=3, most_rounds=9))
    assert [len(s) for s in times.seconds.values()] == [3, 3, 3]
    assert [name for name, _ in clock.order[3:]] == list("abcbcacab")  # first three: how often?


def test_a_slow_peer_leaves_early_but_our_speed_makes_no_peer_slow():
    clock = Script({"ours": 0.001, "peer": 1.0, "slow": 7.0})
    effort = Effort(0.0, rounds=5, most_rounds=5, slow_factor=6.0, slow_rounds=2)
    times = interleave(contenders("ours", "peer", "slow"), clock, effort, rivals=["peer", "slow"])
    assert {name: len(s) for name, s in times.seconds.items()} == {"ours": 5, "peer": 5, "slow": 2}


def test_fast_calls_are_repeated_within_a_round():
    clock = Script({"fast": 1e-4, "slow": 1.0, "tiny": 1e-9})
    effort = Effort(0.0, rounds=1, most_rounds=1, sample_seconds=2e-3, most_calls=50)
    interleave(contenders("fast", "slow", "tiny"), clock, effort)
    assert sorted(clock.order[3:]) == [("fast", 20), ("slow", 1), ("tiny", 50)]


def test_measuring_ends_when_the_time_is_used_up():
    ticks = itertools.count(1)

    def clock(work, calls: int) -> float:
        return float(next(ticks))

    times = interleave(contenders("a"), clock, Effort(0.05, rounds=2, most_rounds=10**9))
    assert len(times.seconds["a"]) >= 2


def test_roofline_takes_the_binding_limit():
    roofline = Roofline(1000, cache_bandwidth=100.0, memory_bandwidth=10.0, flops=50.0)
    assert roofline.seconds(400, 0) == 4.0  # within half the cache
    assert roofline.seconds(600, 0) == 60.0
    assert roofline.seconds(400, 1000) == 20.0


def test_roofline_keeps_the_better_measurement():
    a, b = Roofline(1, 2.0, 9.0, 4.0), Roofline(1, 3.0, 8.0, 5.0)
    assert a.raised_by(b) == Roofline(1, 3.0, 9.0, 5.0)


def test_this_machine_can_be_described_and_measured():
    described = facts("cpu")
    assert {"revision", "cpu", "threads", "kernels", "versions", "load"} <= set(described)
    assert all("\n" not in text for text in described.values())
    assert folder_name("cpu").replace("-", "").isalnum()
    roofline = measure_roofline("cpu", seconds=0.0)
    assert min(roofline.cache_bandwidth, roofline.memory_bandwidth, roofline.flops) > 0
