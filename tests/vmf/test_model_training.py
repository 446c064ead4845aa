"""Gradients, regularisation, initialisation, memory, and what PyTorch does to a whole network."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import vmf
from vmf.models.layers import DepthwiseStage, DropPath, PointwiseConv3d, channel_shuffle

SMALL = {"blocks": "L2-8 | D4-16 M3-16", "num_tokens": 2, "token_dim": 32, "head_features": 24}


def small(num_classes=5, **overrides):
    torch.manual_seed(0)
    return vmf.create_model("vmf_tiny", num_classes, **{**SMALL, **overrides})


def stirred(model):
    """Moves parameters off their start, where tokens hardly matter yet."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def gradients(model, clip, target=None):
    model.zero_grad()
    torch.manual_seed(7)
    logits = model(clip)
    target = torch.arange(len(clip)) % logits.shape[1] if target is None else target
    nn.functional.cross_entropy(logits, target).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("overrides", [{}, {"num_tokens": 0}, {"groups": 4}])
def test_every_parameter_receives_a_gradient(overrides):
    # In training mode batch norms subtract most biases again.
    model = stirred(small(**overrides)).double().eval()
    found = gradients(model, torch.randn(4, 3, 4, 32, 32, dtype=torch.float64))
    for name, gradient in found.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        if not name.endswith("from_tokens.key.bias"):  # the same for all tokens: softmax drops it
            assert gradient.abs().max() > 1e-9, name


def test_gradients_are_those_of_finite_differences():
    model = stirred(small()).double()
    clip = torch.randn(3, 3, 3, 16, 16, dtype=torch.float64)
    found = gradients(model, clip)
    loss = nn.CrossEntropyLoss()
    target, step = torch.arange(3), 1e-6
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        values = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                parameter.add_(direction, alpha=sign * step)
                values.append(loss(model(clip), target))
        slope = (values[0] - values[1]) / (2 * step)
        assert (found[name] * direction).sum().item() == pytest.approx(
            slope.item(), rel=1e-3, abs=1e-6
        ), name


def test_checkpointing_gives_the_same_gradients_and_statistics():
    plain = stirred(small(drop_path_rate=0.5, drop_rate=0.5))
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    clip = torch.randn(4, 3, 4, 32, 32)
    expected, found = gradients(plain, clip), gradients(saving, clip)
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name
    statistics = dict(plain.named_buffers())
    for name, buffer in saving.named_buffers():
        assert torch.equal(buffer, statistics[name]), name
    saving.set_grad_checkpointing(False)
    assert not saving.grad_checkpointing


def test_checkpointing_keeps_fewer_activations():
    def kept(model):
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(2, 3, 4, 32, 32))
        return sum(sizes)

    model = small()
    plain = kept(model)
    model.set_grad_checkpointing()
    assert kept(model) < 0.5 * plain


def test_a_step_lowers_the_loss():
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    clip, target = torch.randn(6, 3, 4, 32, 32), torch.arange(6) % 5
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(clip), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_training_on_one_clip_says_why_not():
    with pytest.raises(ValueError, match="at least 2 clips a batch"):
        small()(torch.randn(1, 3, 4, 32, 32))


def test_initialisation():
    torch.manual_seed(0)
    model = vmf.create_model("vmf_151m")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv3d):
            taps = module.weight[0, 0].numel()
            expected = (2 / (taps * module.out_channels)) ** 0.5
            # The spread of n values is known to about 1 / sqrt(2 n).
            slack = 5 / (2 * module.weight.numel()) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=slack), name
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.1), name
            assert not module.bias.any(), name
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm3d | nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any(), name
    assert model.tokens.std().item() == pytest.approx(1, rel=0.1)
    # Nearly a plain ReLU: slopes near 1 and 0.
    act = model.blocks[1].mobile.stage1.act_out
    ones = torch.ones(1, act.slopes.out_features // 2, 1, 1, 1)
    token = torch.randn(1, 192)
    assert (act(ones, token) - 1).abs().max() < 0.05
    assert act(-ones, token).abs().max() < 0.05


def test_drop_path_rises_linearly_and_keeps_the_mean():
    model = vmf.create_model("vmf_151m", drop_path_rate=0.11)
    rates = [block.from_tokens.drop_path.rate for block in model.blocks if block.has_tokens]
    assert rates == pytest.approx([0.01 * i for i in range(1, 12)])
    assert model.head.to_tokens.drop_path.rate == 0.11
    drop = DropPath(0.25)
    dropped = drop(torch.ones(20000, 2, 3))
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (dropped == dropped[:, :1, :1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(drop.eval()(dropped), dropped)


def test_drop_path_and_dropout_act_in_training_only():
    model = stirred(small(drop_path_rate=0.5, drop_rate=0.5))
    clip = torch.randn(4, 3, 4, 32, 32)
    assert not torch.equal(model(clip), model(clip))
    model.eval()
    assert torch.equal(model(clip), model(clip))


@pytest.mark.parametrize("name", ["vmf_tiny", "vmf_26m", "vmf_151m"])
def test_features_are_copied_once_in_the_stem(name):
    """Forward and backward, down to the copies that PyTorch's own ops make inside."""
    model, clip = vmf.create_model(name, 5), torch.randn(2, 3, 5, 64, 64)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        model(clip).square().sum().backward()
    rows = {2 * 5 * size * size for size in (32, 16, 8, 4, 2)}
    parameters = {tuple(parameter.shape) for parameter in model.parameters()}
    copies = Counter()
    for event in record.events():
        shape = tuple(event.input_shapes[0]) if event.name == "aten::copy_" else ()
        # Features are (B, C, T, H, W), and (B T H W, C) in pointwise convolutions.
        if len(shape) == 5 or (len(shape) == 2 and shape[0] in rows):
            copies[shape] += shape not in parameters
    assert +copies == {(2, 3, 5, 64, 64): 1}


def test_all_features_are_channels_last():
    model = small().eval()
    layouts = []

    def note(module, inputs, output):
        for tensor in (*inputs, output):
            if tensor is not None and tensor.ndim == 5:
                layouts.append(tensor.is_contiguous(memory_format=torch.channels_last_3d))

    for module in model.modules():
        if isinstance(module, DepthwiseStage | PointwiseConv3d | nn.BatchNorm3d):
            module.register_forward_hook(note)
    model(torch.randn(2, 3, 4, 32, 32))
    assert len(layouts) > 20
    assert all(layouts)


def test_the_depthwise_stage_is_one_replaceable_part():
    """Everything between the pointwise convolutions is the stage's, in every kind of block."""

    class Recorder(nn.Module):
        def __init__(self, stage):
            super().__init__()
            self.stage = stage

        def forward(self, features, token):
            called.append(True)
            return self.stage(features, token)

    model = stirred(small()).eval()
    clip, called = torch.randn(2, 3, 4, 32, 32), []
    before = model(clip)
    stages = [name for name, m in model.named_modules() if isinstance(m, DepthwiseStage)]
    for name in stages:
        model.set_submodule(name, Recorder(model.get_submodule(name)))
    assert torch.equal(model(clip), before)
    assert len(called) == len(stages) == 4


def test_channel_shuffle():
    x = torch.arange(12)
    shuffled = channel_shuffle(x, 3, dim=0)
    assert [shuffled[i * 3 + j] for i in range(4) for j in range(3)] == [
        x[j * 4 + i] for i in range(4) for j in range(3)
    ]
    assert torch.equal(channel_shuffle(shuffled, 4, dim=0), x)


@pytest.mark.parametrize(("shuffle_in", "shuffle_out"), [(1, 1), (3, 1), (1, 2), (4, 2)])
def test_grouped_pointwise_convolution_is_conv3d_between_shuffles(shuffle_in, shuffle_out):
    layer = PointwiseConv3d(12, 8, 2, shuffle_in, shuffle_out).double()
    x = torch.randn(2, 12, 3, 4, 5, dtype=torch.float64)
    expected = nn.functional.conv3d(channel_shuffle(x, shuffle_in, 1), layer.weight, groups=2)
    expected = channel_shuffle(expected, shuffle_out, 1)
    found = layer(x.contiguous(memory_format=torch.channels_last_3d))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)


def test_autocast_trains_in_bfloat16():
    model = stirred(small())
    clip = torch.randn(4, 3, 4, 32, 32)
    expected = gradients(model, clip)["stem.conv.weight"].clone()
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = model.eval().forward_features(clip)
        assert features.dtype == torch.bfloat16
        found = gradients(model.train(), clip)["stem.conv.weight"]
    assert found.dtype == torch.float32
    assert nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.95


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_whole_network_in_16_bits(dtype):
    model = stirred(small()).eval()
    clip = torch.randn(2, 3, 4, 32, 32)
    expected = model(clip)
    found = copy.deepcopy(model).to(dtype)(clip.to(dtype))
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_is_one_graph(checkpointing):
    model = stirred(small())
    model.set_grad_checkpointing(checkpointing)
    twin, clip = copy.deepcopy(model), torch.randn(2, 3, 3, 32, 32)
    expected = gradients(twin, clip)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for name, gradient in gradients(compiled, clip).items():
        twins = expected[name.removeprefix("_orig_mod.")]
        assert torch.allclose(gradient, twins, rtol=1e-3, atol=1e-5), name
    statistics = dict(twin.named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.allclose(buffer, statistics[name], rtol=1e-4, atol=1e-6), name


def test_inductor_computes_the_same():
    """One block, as Inductor builds some 25 kernels for it, a second each."""
    model = stirred(small(blocks="M2-8")).eval()
    clip = torch.randn(2, 3, 3, 32, 32)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(clip), model(clip), rtol=1e-4, atol=1e-5)


def test_exports_with_any_batch():
    model = stirred(small()).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        model, (torch.randn(2, 3, 4, 32, 32),), dynamic_shapes=({0: batch},)
    )
    for size in (1, 5):
        clip = torch.randn(size, 3, 4, 32, 32)
        assert torch.allclose(exported.module()(clip), model(clip), rtol=1e-4, atol=1e-5)
