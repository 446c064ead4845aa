"""Building, naming and calling the networks."""

import copy
import dataclasses
import json

import pytest
import torch

import vmf
from vmf.models import Config

SMALL = {"blocks": "L2-8 | D4-16 M3-16", "num_tokens": 2, "token_dim": 16, "head_features": 24}


def small(num_classes=5, **overrides):
    torch.manual_seed(0)
    return vmf.create_model("vmf_tiny", num_classes, **{**SMALL, **overrides})


def randomised(model):
    """Gives every parameter and statistic a value that shows when it is ignored."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, entry in model.state_dict().items():
            if name.endswith(("running_var", "norm.weight")):
                entry.copy_(torch.rand(entry.shape, generator=generator) + 0.5)
            elif entry.is_floating_point():
                scale = 0.3 if entry.ndim < 2 else entry[0].numel() ** -0.5
                entry.copy_(torch.randn(entry.shape, generator=generator) * scale)
    return model


def test_every_name_is_listed():
    bases = [f"vmf_{size}m" for size in (26, 52, 96, 151, 214, 294, 508)]
    presets = ["vmf_0p5g", "vmf_1g", "vmf_3g", "vmf_6g"]
    assert vmf.list_models() == [*bases, *presets, "vmf_tiny"]


@pytest.mark.parametrize("name", vmf.list_models())
def test_every_model_classifies_a_clip_of_an_odd_size(name):
    model = vmf.create_model(name, num_classes=7).eval()
    with torch.no_grad():
        logits = model(torch.randn(1, 3, 3, 33, 47))
    assert logits.shape == (1, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 64, 64), (2, 5, 70), (9, 32, 31)])
def test_any_clip_size_from_one_up(size):
    model = small().eval()
    assert model(torch.randn(2, 3, *size)).shape == (2, 5)


def test_an_empty_batch_gives_empty_logits():
    assert small().eval()(torch.randn(0, 3, 4, 32, 32)).shape == (0, 5)


def test_config_is_json_and_builds_the_same_network_again():
    model = small(in_chans=2, drop_rate=0.1, drop_path_rate=0.2, kernel_size_t=5)
    record = json.loads(json.dumps(dataclasses.asdict(model.config)))
    again = vmf.create_model(**record)
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    clip = torch.randn(1, 2, 4, 32, 32)
    assert torch.equal(again.eval()(clip), model.eval()(clip))


def test_presets_carry_their_clip():
    clips = {name: vmf.create_model(name).default_clip for name in ("vmf_1g", "vmf_6g")}
    assert clips == {"vmf_1g": (8, 224), "vmf_6g": (12, 208)}
    assert vmf.create_model("vmf_1g", frames=16, size=160).default_clip == (16, 160)


def test_features_and_head_compose():
    model = randomised(small()).eval()
    clip = torch.randn(2, 3, 4, 32, 32)
    features, tokens = model.forward_features(clip)
    assert features.shape == (2, 16, 4, 8, 8)
    assert features.is_contiguous(memory_format=torch.channels_last_3d)
    assert tokens.shape == (2, 2, 16)
    hidden = model.forward_head((features, tokens), pre_logits=True)
    assert hidden.shape == (2, model.num_features) == (2, 24)
    assert torch.equal(model.get_classifier()(hidden), model(clip))


def test_reset_classifier():
    model = small().double().eval()
    clip = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    hidden = model.forward_head(model.forward_features(clip), pre_logits=True)
    model.reset_classifier(11)
    assert model(clip).shape == (2, 11)
    assert model.num_classes == model.config.num_classes == 11
    model.reset_classifier(0)
    assert torch.equal(model(clip), hidden)


def test_without_tokens():
    model = randomised(small(num_tokens=0)).eval()
    features, tokens = model.forward_features(torch.randn(2, 3, 4, 32, 32))
    assert tokens is None
    assert model.forward_head((features, tokens)).shape == (2, 5)
    assert model.no_weight_decay() == set()
    names = [name for name, _ in model.named_modules()]
    assert not [name for name in names if "token" in name or "former" in name]
    with pytest.raises(ValueError, match="without tokens"):
        model.token_attention(torch.randn(2, 3, 4, 32, 32))


def test_no_weight_decay_names_parameters():
    model = small()
    assert model.no_weight_decay() == {"tokens"} <= dict(model.named_parameters()).keys()


def test_token_attention_is_the_weights_of_the_last_bridge():
    model = randomised(small()).double().eval()
    clip = torch.randn(2, 3, 4, 40, 32, dtype=torch.float64)
    weights = model.token_attention(clip)
    assert weights.shape == (2, 2, 4, 10, 8)
    assert torch.allclose(weights.sum((2, 3, 4)), torch.ones(2, 2, dtype=torch.float64))
    # Two heads of the same width, so that the mean of the heads' results can be taken apart.
    features, tokens = model.forward_features(clip)
    bridge = model.head.to_tokens
    query, half = bridge.query(tokens), features.shape[1] // 2
    for head in (slice(0, half), slice(half, None)):
        scores = torch.einsum("bmc,bcthw->bmthw", query[..., head], features[:, head])
        weights = weights - (scores * half**-0.5).flatten(2).softmax(-1).view_as(scores) / 2
    assert weights.abs().max() < 1e-12


def test_one_time_tap_cannot_tell_a_clip_from_its_reverse():
    clip = torch.randn(2, 3, 6, 32, 32, dtype=torch.float64)
    blind = randomised(small(kernel_size_t=1)).double().eval()
    seeing = randomised(small(kernel_size_t=3)).double().eval()
    assert torch.allclose(blind(clip), blind(clip.flip(2)), rtol=0, atol=1e-12)
    assert (seeing(clip) - seeing(clip.flip(2))).abs().max() > 1e-3


def test_input_layout_changes_nothing():
    model = randomised(small()).double().eval()
    clip = torch.randn(2, 3, 4, 32, 32, dtype=torch.float64)
    last = clip.contiguous(memory_format=torch.channels_last_3d)
    sliced = torch.randn(2, 3, 8, 32, 64, dtype=torch.float64)[:, :, ::2, :, ::2].copy_(clip)
    assert torch.equal(model(clip), model(last))
    assert torch.equal(model(clip), model(sliced))


def test_deepcopy_is_independent():
    model = small().eval()
    clip = torch.randn(1, 3, 4, 32, 32)
    twin, before = copy.deepcopy(model), model(clip)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(twin(clip), before)


def test_state_dict_round_trip():
    model, other = randomised(small()).eval(), small().eval()
    clip = torch.randn(2, 3, 4, 32, 32)
    assert not torch.equal(other(clip), model(clip))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(clip), model(clip))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": "vmf_151"}, ValueError, "did you mean vmf_151m"),
        ({"name": "resnet"}, ValueError, "known: vmf_26m"),
        ({"num_token": 3}, ValueError, "did you mean num_tokens"),
        ({"zzz": 3}, ValueError, "known: name, stem"),
        ({"num_classes": -1}, ValueError, "num_classes must not be negative"),
        ({"num_classes": 2.5}, TypeError, "num_classes must be of type int"),
        ({"num_tokens": True}, TypeError, "num_tokens must be of type int"),
        ({"kernel_size_t": 2}, ValueError, "kernel_size_t must be odd"),
        ({"drop_rate": 1.0}, ValueError, "drop_rate must be in"),
        ({"token_dim": 30}, ValueError, "token_dim must be a multiple of 4"),
        ({"blocks": "X3-8"}, ValueError, "a block is written"),
        ({"blocks": "M3-8s2"}, ValueError, "a block is written"),
        ({"blocks": ""}, ValueError, "at least one block"),
        ({"blocks": "L2-7"}, ValueError, "every width must be a multiple"),
        ({"groups": 3}, ValueError, "every width must be a multiple"),
        ({"in_chans": 0}, ValueError, "in_chans must be at least 1"),
    ],
)
def test_a_network_that_cannot_be_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        vmf.create_model(**{"name": "vmf_tiny", **change})


@pytest.mark.parametrize("shape", [(3, 4, 32, 32), (1, 4, 3, 32, 32), (1, 3, 0, 32, 32), (1, 3)])
def test_a_clip_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"a clip is \(batch, 3, frames, height, width\)"):
        small().eval()(torch.zeros(shape))


def test_a_clip_of_bytes_is_refused():
    with pytest.raises(TypeError, match="floating-point"):
        small().eval()(torch.zeros(1, 3, 4, 32, 32, dtype=torch.uint8))


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        vmf.create_model("vmf_tiny").config.stem = 3
    assert dataclasses.is_dataclass(Config)
