"""The list of layer shapes, and the least traffic of each op on them."""

import json
from pathlib import Path

import pytest

from bench import cases
from bench.cases import AttentionCase, Case, DepthwiseCase, ReluCase, TransposeCase
from bench.op import FORWARD, TRAINING
from bench.ops import BENCHES

SMALL = DepthwiseCase("m", 2, 1, 3, 2, (4, 5, 6), (3, 3, 3), (1, 2, 2), (1, 1, 1))
SPREAD = TransposeCase("m", 2, 1, 3, 2, (4, 3, 3), (3, 3, 3), (1, 2, 2), (1, 1, 1))
BRIDGE = AttentionCase("m", 2, 1, 8, (8, 2, 2), 6, 2)
RELU = ReluCase("m", 2, 1, 3, (8, 2, 2))


@pytest.mark.parametrize(
    ("name", "number"), [("depthwise_conv3d", 100), ("depthwise_conv_transpose3d", 8)]
)
def test_every_row_of_a_list_of_convolutions_is_loaded(name: str, number: int):
    rows = json.loads((Path(cases.__file__).parent / f"{name}.json").read_text())["rows"]
    loaded = getattr(cases, name)()
    assert len(loaded) == len(rows) >= number
    for case, row in zip(loaded, rows, strict=True):
        assert (case.model, case.batch, case.count) == (row["model"], row["batch"], row["count"])
        assert [*case.size, *case.kernel] == [*row["size"], *row["kernel"]]
        assert [*case.stride, *case.padding] == [*row["stride"], *row["padding"]]
        assert case.out_channels == row["in_channels"] * row["multiplier"]


def test_bridges_are_counted_once_each_and_none_is_lost():
    rows = json.loads((Path(cases.__file__).parent / "bridges.json").read_text())["rows"]
    relus = sum(len(row["dynamic_relu"]) for row in rows)
    for loaded, number in (
        (cases.few_query_attention(), len(rows)),
        (cases.few_key_attention(), len(rows)),
        (cases.dynamic_relu(), relus),
    ):
        assert sum(case.count for case in loaded) == number
        assert len({(case.model, case.label) for case in loaded}) == len(loaded)
    assert cases.few_query_attention()[0].size == (8, 56, 56)  # 25088 positions


def test_output_size():
    assert SMALL.output_size == (4, 3, 3)
    assert SMALL.elements == 3 * 4 * 5 * 6 + 6 * 4 * 3 * 3
    assert SMALL.label == "2x3x4x5x6 k3x3x3 s1x2x2 m2"
    assert SPREAD.output_size == (4, 5, 5)
    assert SPREAD.elements == 3 * 4 * 3 * 3 + 6 * 4 * 5 * 5


def test_shrinking_touches_the_batch_alone_and_leaves_one():
    assert SMALL.shrunk(10**9) == SMALL
    assert SMALL.shrunk(SMALL.elements).batch == 1
    assert SMALL.shrunk(1).batch == 1
    assert SMALL.shrunk(1).label == "1" + SMALL.label[1:]


def test_quick_has_every_3x3x3_case_and_every_other_kernel():
    everything = cases.depthwise_conv3d()
    quick = BENCHES["depthwise_conv3d"].quick(everything)
    cubes = [case for case in everything if case.kernel == (3, 3, 3)]
    assert [case for case in quick if case.kernel == (3, 3, 3)] == cubes
    assert {case.kernel for case in quick} == {case.kernel for case in everything}
    for name in BENCHES.keys() - {"depthwise_conv3d"}:
        chosen = BENCHES[name].quick(BENCHES[name].cases())
        assert len(chosen) == 4
        assert chosen[0] == BENCHES[name].cases()[0]
        assert chosen[-1] == BENCHES[name].cases()[-1]


# Depthwise: input 2*3*120 = 720 elements, output 2*6*36 = 432, weight 6*27 = 162. Taps on real
# values: T of 4 with 3 taps and padding 1: 10 of 12; H of 5 at stride 2: 2 + 3 + 2 = 7 of 9; W of
# 6 at stride 2: 2 + 3 + 3 = 8 of 9. So 10 * 7 * 8 = 560 multiply-adds for each of 12 planes.
# Spread: input 2*3*36 = 216 elements, output 2*6*100 = 1200, weight 162, bias 6; H and W of 5 from
# 3: the taps of 3 positions at stride 2 fall on 2 + 3 + 2 = 7 real outputs each. So 10 * 7 * 7.
# Bridge: features 2*8*32 = 512 elements, tokens 2*6*8 = 96, one product 96 * 32 = 3072
# multiply-adds.
@pytest.mark.parametrize(
    ("op", "case", "mode", "elements", "flops"),
    [
        ("depthwise_conv3d", SMALL, FORWARD, 720 + 432 + 162, 2 * 12 * 560),
        ("depthwise_conv3d", SMALL, TRAINING, 3 * 720 + 2 * 432 + 3 * 162, 3 * 2 * 12 * 560),
        ("depthwise_conv_transpose3d", SPREAD, FORWARD, 216 + 1200 + 168, 2 * 12 * 490),
        ("depthwise_conv_transpose3d", SPREAD, TRAINING, 648 + 2400 + 498, 3 * 2 * 12 * 490),
        ("few_query_attention", BRIDGE, FORWARD, 512 + 2 * 96, 2 * 2 * 3072),
        ("few_query_attention", BRIDGE, TRAINING, 3 * 512 + 6 * 96, 7 * 2 * 3072),
        ("few_key_attention", BRIDGE, FORWARD, 2 * 512 + 2 * 96, 2 * 2 * 3072),
        ("few_key_attention", BRIDGE, TRAINING, 5 * 512 + 6 * 96, 7 * 2 * 3072),
        ("dynamic_relu", RELU, FORWARD, 2 * 192 + 2 * 6, 3 * 192),
        ("dynamic_relu", RELU, TRAINING, 5 * 192 + 6 * 6, 9 * 192),
    ],
)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_least_traffic_and_arithmetic(
    op: str, case: Case, mode: str, elements: int, flops: int, itemsize: int
):
    traffic = BENCHES[op].traffic(case, mode, itemsize)
    assert (traffic.bytes, traffic.flops) == (elements * itemsize, flops)
