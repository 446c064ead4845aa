"""The networks of the model suite, and where their time goes."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench import breakdown, cases, networks
from bench.comparison import OURS
from bench.op import CHANNELS_LAST, CONTIGUOUS
from bench.report import breakdown_table
from bench.x3d import CLIP, X3D, squeezed
from vmf_kernels import DepthwiseConv3d


def test_x3d_s_is_as_large_as_published():
    # arXiv 2004.04730: 3.8M parameters (3.79M as released), 1.96 GMACs a view.
    with torch.device("meta"):
        network = X3D().eval()
        clip = torch.empty(1, 3, *CLIP)
    assert sum(p.numel() for p in network.parameters()) == 3_794_274
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert network(clip).shape == (1, 400)
    assert round(counter.get_total_flops() / 2e9, 2) == 1.96


def test_x3d_s_has_the_depthwise_layers_of_the_list():
    with torch.device("meta"):
        network = X3D()
        clip = torch.empty(1, 3, *CLIP)
    found: dict[tuple, int] = {}

    def note(layer: nn.Conv3d, inputs, output):
        kernel, stride = tuple(layer.kernel_size), tuple(layer.stride)
        which = (layer.in_channels, *inputs[0].shape[2:], *kernel, *stride, *layer.padding)
        found[which] = found.get(which, 0) + 1

    for module in network.modules():
        if isinstance(module, nn.Conv3d) and 1 < module.groups == module.in_channels:
            module.register_forward_hook(note)
    network(clip)
    listed = {
        (c.in_channels, *c.size, *c.kernel, *c.stride, *c.padding): c.count
        for c in cases.depthwise_conv3d()
        if c.model == "x3d_s"
    }
    assert found == listed


@pytest.mark.parametrize(("channels", "width"), [(54, 8), (108, 8), (216, 16), (432, 32)])
def test_width_of_the_squeeze(channels: int, width: int):
    assert squeezed(channels) == width


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(3, 8, 1),
        nn.BatchNorm3d(8),
        nn.ReLU(),
        nn.Sequential(nn.Conv3d(8, 16, 3, (1, 2, 2), 1, groups=8, bias=False)),
        nn.Flatten(),
        nn.LazyLinear(2),
    )


def test_only_depthwise_layers_are_replaced_and_parameters_stay():
    network = small()
    clip = torch.randn(2, 3, 4, 6, 6)
    expected = network(clip)
    parameters = list(network.parameters())
    names = list(network.state_dict())
    networks.replace_depthwise(network)
    replaced = [m for m in network.modules() if isinstance(m, DepthwiseConv3d)]
    assert len(replaced) == 1 and replaced[0] is network[3][0]
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert list(network.state_dict()) == names
    torch.testing.assert_close(network(clip), expected)


def test_every_network_is_run_by_ours_and_eager_in_both_layouts_and_by_inductor():
    for case in networks.CASES["cpu"]:
        ways = networks.ways(case.model)
        both = {(who, layout) for who in (OURS, "eager") for layout in (CONTIGUOUS, CHANNELS_LAST)}
        assert set(ways) == {*both, ("inductor", CHANNELS_LAST)}
        assert {key[0] for key, way in ways.items() if way.compiled} == {"inductor"}
        assert {key[0] for key, way in ways.items() if way.backend == "auto"} == {OURS}
    ours = X3D(5)
    networks.ways("x3d_s")[OURS, CHANNELS_LAST].change(ours)
    assert sum(isinstance(m, DepthwiseConv3d) for m in ours.modules()) == 27
    eager = X3D(5)
    networks.ways("x3d_s")["eager", CHANNELS_LAST].change(eager)
    assert not any(isinstance(m, DepthwiseConv3d) for m in eager.modules())


@pytest.mark.parametrize("ours", [False, True])
def test_a_training_step_is_told_apart_by_part_and_direction(ours: bool):
    network = small()
    if ours:
        networks.replace_depthwise(network)
    clip = torch.randn(2, 3, 4, 6, 6)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def step() -> None:
        (network(clip) * 2).sum().backward()
        optimizer.step()

    step()
    begin = time.perf_counter()
    found = breakdown.breakdown(network, step, steps=2)
    spent = (time.perf_counter() - begin) / 2
    for part in (breakdown.DEPTHWISE, breakdown.CONVOLUTION, breakdown.NORM, breakdown.ELEMENTWISE):
        for direction in (breakdown.FORWARD, breakdown.BACKWARD):
            assert found[part, direction] > 0, (part, direction)
    assert found[breakdown.OPTIMIZER, breakdown.FORWARD] > 0
    assert (breakdown.OPTIMIZER, breakdown.BACKWARD) not in found
    assert (breakdown.ATTENTION, breakdown.FORWARD) not in found
    assert sum(found.values()) < spent
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_a_node_belongs_to_the_last_operator_before_its_number_is_used():
    def event(name, start, number=-1, parent=None):
        return SimpleNamespace(
            name=name,
            time_range=SimpleNamespace(start=start),
            sequence_nr=number,
            cpu_parent=parent,
            self_cpu_time_total=1.0,
        )

    norm, conv = event("part: norm", 0), event("part: depthwise convolution", 2)
    node = event("autograd::engine::evaluate_function: ConvolutionBackward0", 5, 7)
    events = [
        norm,
        event("aten::view", 1, 7, norm),  # makes no node: the number stays
        conv,
        event("aten::conv3d", 3, 7, conv),
        event("aten::mul", 4, 8),
        node,
        event("aten::convolution_backward", 6, -1, node),
        event("autograd::engine::evaluate_function: AccumulateGrad", 7),
    ]
    found = [(part, direction) for _, part, direction in breakdown._attributed(events)]
    depthwise, forward, backward = breakdown.DEPTHWISE, breakdown.FORWARD, breakdown.BACKWARD
    assert found == [
        (breakdown.NORM, forward),
        (breakdown.NORM, forward),
        (depthwise, forward),
        (depthwise, forward),
        (breakdown.ELEMENTWISE, forward),
        (depthwise, backward),
        (depthwise, backward),
        (breakdown.REST, backward),
    ]


def test_shares_are_of_each_contenders_own_time():
    common = {"model": "net", "clips": "1x3", "phase": "training step", "dtype": "float32"}
    rows = [
        {**common, "contender": who, "part": part, "direction": "backward", "ms": ms}
        for who, part, ms in (("ours", "norm", "1"), ("eager", "norm", "1"), ("eager", "rest", "3"))
    ]
    lines = breakdown_table(rows).splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert cells[2][3:] == ["norm, backward", "1.0", "100", "1.0", "25"]
    assert cells[3][3:] == ["rest, backward", "0.0", "0", "3.0", "75"]
