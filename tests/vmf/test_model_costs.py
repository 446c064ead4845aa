"""Parameters and multiply-adds of every network, against the published and computed tables."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vmf
import vmf_kernels


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "image", "video"),
    [
        ("vmf_26m", 3.23, None),
        ("vmf_52m", 3.47, 2.90),
        ("vmf_96m", 4.59, 3.88),
        ("vmf_151m", 7.60, 6.91),
        ("vmf_214m", 9.43, 8.57),
        ("vmf_294m", 11.42, 10.40),
        ("vmf_508m", 13.98, 12.99),
    ],
)
def test_parameters_in_millions(name, image, video):
    assert parameters(vmf.create_model(name, 1000, kernel_size_t=1)) / 1e6 == pytest.approx(
        image, abs=0.005
    )
    if video is not None:
        assert parameters(vmf.create_model(name)) / 1e6 == pytest.approx(video, abs=0.005)


CLIPS = [(4, 160), (8, 160), (8, 224), (16, 224)]


@pytest.mark.parametrize(
    ("name", "giga"),
    [
        ("vmf_52m", (0.117, 0.229, 0.444, 0.883)),
        ("vmf_96m", (0.226, 0.446, 0.868, 1.729)),
        ("vmf_151m", (0.332, 0.642, 1.236, 2.451)),
        ("vmf_214m", (0.467, 0.910, 1.760, 3.496)),
        ("vmf_294m", (0.643, 1.260, 2.444, 4.861)),
        ("vmf_508m", (1.109, 2.189, 4.263, 8.496)),
    ],
)
def test_macs_of_the_bases(name, giga):
    model = vmf.create_model(name)
    counted = [model.count_macs((3, frames, size, size)) / 1e9 for frames, size in CLIPS]
    assert counted == pytest.approx(giga, abs=0.0006)


@pytest.mark.parametrize(
    ("name", "budget"), [("vmf_0p5g", 0.5), ("vmf_1g", 1.0), ("vmf_3g", 3.0), ("vmf_6g", 6.0)]
)
def test_a_preset_stays_under_its_name(name, budget):
    model = vmf.create_model(name)
    frames, size = model.default_clip
    assert 0.8 * budget < vmf.count_macs(model, (3, frames, size, size)) / 1e9 <= budget


@pytest.mark.parametrize(
    ("tokens", "giga"),
    [(0, 2.336), (1, 2.355), (6, 2.444), (16, 2.622), (64, 3.488), (392, 9.930)],
)
def test_macs_rise_with_tokens(tokens, giga):
    model = vmf.create_model("vmf_294m", num_tokens=tokens)
    assert model.count_macs((3, 8, 224, 224)) / 1e9 == pytest.approx(giga, abs=0.0006)
    if tokens == 0:
        assert parameters(model) / 1e6 == pytest.approx(5.12, abs=0.005)


def test_pytorch_counts_the_same():
    model = vmf.create_model("vmf_tiny").eval().requires_grad_(False)
    clip = torch.randn(1, 3, 4, 40, 48)
    counter = FlopCounterMode(display=False)
    with vmf_kernels.use_backend("reference"), counter:
        model(clip)
    assert counter.get_total_flops() == 2 * model.count_macs((3, 4, 40, 48))


def test_counting_leaves_the_model_alone():
    model = vmf.create_model("vmf_tiny", in_chans=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.count_macs((2, 4, 32, 32))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("shape", [(3, 8, 224), (3, 0, 32, 32)])
def test_a_wrong_clip_shape_is_refused(shape):
    with pytest.raises(ValueError, match="clip_shape is"):
        vmf.count_macs(vmf.create_model("vmf_tiny"), shape)
