"""Image checkpoints in the video network, against vectors and a literal image network."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import vmf
import vmf_kernels

VECTORS = Path(__file__).parent.parent / "data" / "mobile_former_tiny.npz"
TINY = {
    "stem": 8,
    "blocks": "L2-8 D6-12 M3-12 D6-16 M4-16 M4-20",
    "num_tokens": 3,
    "token_dim": 32,
    "head_features": 48,
}
GROUPED = {
    "stem": 8,
    "blocks": "L3-12s2 M3-12 D6-24 M3-24 D6-32 M4-32 M6-48",
    "num_tokens": 3,
    "token_dim": 32,
    "head_features": 40,
    "groups": 4,
}


@pytest.fixture(scope="module")
def vectors():
    with np.load(VECTORS) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def state(vectors):
    start = "state/"
    return {name.removeprefix(start): v for name, v in vectors.items() if name.startswith(start)}


@pytest.fixture
def model():
    return vmf.create_model("vmf_tiny", 10, **TINY).eval()


def still(image, frames=5):
    return image.double()[:, :, None].repeat(1, 1, frames, 1, 1)


def assert_still(features, expected):
    """Every frame of the video features is the image's."""
    assert features.shape[:2] == expected.shape[:2]
    assert (features - expected[:, :, None]).abs().max() < 1e-10


def test_a_still_clip_gives_the_image_networks_activations(vectors, state, model):
    vmf.load_mobile_former(model, state).double()
    clip = still(vectors["input"])
    with vmf_kernels.use_backend("reference"), torch.no_grad():
        features, tokens = model.stem(clip), model.tokens.expand(2, -1, -1)
        assert_still(features, vectors["stem"])
        for i, block in enumerate(model.blocks):
            features, tokens = block(features, tokens)
            assert_still(features, vectors[f"features/{i}"])
            # The checkpoint's tokens are token-major.
            assert (tokens - vectors[f"tokens/{i}"].transpose(0, 1)).abs().max() < 1e-10
        assert (model(clip) - vectors["logits"]).abs().max() < 1e-10


@pytest.mark.parametrize("kernel_size_t", [1, 5])
def test_every_time_size_keeps_the_image_networks_logits(vectors, state, kernel_size_t):
    model = vmf.create_model("vmf_tiny", 10, **TINY, kernel_size_t=kernel_size_t).eval()
    vmf.load_mobile_former(model, state).double()
    with vmf_kernels.use_backend("reference"), torch.no_grad():
        assert (model(still(vectors["input"], 3)) - vectors["logits"]).abs().max() < 1e-10


def test_float32_kernels_are_near_the_image_networks_logits(vectors, state, model):
    vmf.load_mobile_former(model, state)
    with torch.no_grad():
        error = model(still(vectors["input"]).float()) - vectors["logits"]
    assert error.abs().max() < 1e-4


def test_files_bare_and_under_a_key(tmp_path, vectors, state, model):
    from safetensors.torch import save_file

    torch.save(state, tmp_path / "bare.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "under.pth.tar")
    save_file(state, tmp_path / "weights.safetensors")
    expected = vmf.load_mobile_former(model, state).state_dict()
    for path in tmp_path.iterdir():
        fresh = vmf.create_model("vmf_tiny", 10, **TINY)
        loaded = vmf.load_mobile_former(fresh, str(path))
        assert loaded is fresh
        assert all(torch.equal(v, expected[name]) for name, v in fresh.state_dict().items())


def test_everything_wrong_is_listed_at_once_and_nothing_is_loaded(state, model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    broken = dict(state)
    del broken["stem.0.weight"], broken["features.3.hyper3.hyper.0.bias"]
    broken["features.9.conv.0.weight"] = torch.zeros(1)
    broken["tokens.weight"] = torch.zeros(6, 32)
    broken["stem.1.bias"] = "not a tensor"
    with pytest.raises(ValueError, match="does not fit vmf_tiny") as error:
        vmf.load_mobile_former(model, broken)
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "missing: stem.0.weight",
        "missing: features.3.hyper3.hyper.0.bias",
        "extra: features.9.conv.0.weight",
        "misshapen: tokens.weight is (6, 32), must be (3, 32)",
        "misshapen: stem.1.bias is a str, must be (8,)",
    ]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_number_of_classes(vectors, state):
    model = vmf.create_model("vmf_tiny", 4, **TINY).eval()
    with pytest.raises(ValueError, match=r"skip_classifier=True") as error:
        vmf.load_mobile_former(model, state)
    assert str(error.value).count("misshapen") == 2
    own = model.get_classifier().weight.clone()
    vmf.load_mobile_former(model, state, skip_classifier=True)
    assert torch.equal(model.get_classifier().weight, own)
    assert torch.equal(model.head.hidden.weight, state["classifier.fc.0.weight"])
    assert model(still(vectors["input"]).float()).shape == (2, 4)


def test_a_network_without_classes_or_tokens(state):
    headless = vmf.create_model("vmf_tiny", 0, **TINY)
    with pytest.raises(ValueError, match="extra: classifier") as error:
        vmf.load_mobile_former(headless, state)
    assert str(error.value).endswith("skip_classifier=True leaves the last layer out")
    vmf.load_mobile_former(headless, state, skip_classifier=True)
    with pytest.raises(ValueError, match=r"extra: tokens\.weight"):
        vmf.load_mobile_former(vmf.create_model("vmf_tiny", 10, **{**TINY, "num_tokens": 0}), state)


class Surprise:
    """What a pickle must not be able to bring in."""


def test_files_that_are_no_checkpoint(tmp_path, model):
    for name, content in {"a.pth": b"no", "b.safetensors": b"no", "c.pth": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not a checkpoint"):
            vmf.load_mobile_former(model, tmp_path / name)
    torch.save({"state_dict": Surprise()}, tmp_path / "d.pth")
    with pytest.raises(ValueError, match=r"d\.pth is not a checkpoint"):
        vmf.load_mobile_former(model, tmp_path / "d.pth")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        vmf.load_mobile_former(model, tmp_path / "e.pth")


def test_arguments_of_another_type(state, model):
    with pytest.raises(TypeError, match="a checkpoint is a dict"):
        vmf.load_mobile_former(model, [state])
    with pytest.raises(TypeError, match="model must be"):
        vmf.load_mobile_former(torch.nn.Linear(2, 2), state)


class Weights(dict):
    """A checkpoint that grows as a network asks it for entries."""

    def entry(self, name, *shape):
        if name not in self:
            scale = 1 if len(shape) < 2 else shape[1] ** -0.5
            self[name] = torch.randn(shape, dtype=torch.float64) * scale
        assert self[name].shape == shape, name
        return self[name].double()

    def norm(self, x, name):
        n = x.shape[1]
        self.setdefault(f"{name}.num_batches_tracked", torch.tensor(7))
        self.setdefault(f"{name}.running_var", torch.rand(n, dtype=torch.float64) + 0.5)
        mean, var = (self.entry(f"{name}.running_{part}", n) for part in ("mean", "var"))
        weight, bias = (self.entry(f"{name}.{part}", n) for part in ("weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias)

    def linear(self, x, name, out):
        weight = self.entry(f"{name}.weight", out, x.shape[-1])
        return F.linear(x, weight, self.entry(f"{name}.bias", out))

    def depthwise(self, x, name, multiplier, stride=1):
        weight = self.entry(f"{name}.weight", x.shape[1] * multiplier, 1, 3, 3)
        return F.conv2d(x, weight, stride=stride, padding=1, groups=x.shape[1])

    def pointwise(self, x, name, out, groups):
        weight = self.entry(f"{name}.weight", out, x.shape[1] // groups, 1, 1)
        return F.conv2d(x, weight, groups=groups)

    def layer_norm(self, x, name):
        d = x.shape[-1]
        return F.layer_norm(x, (d,), *(self.entry(f"{name}.{p}", d) for p in ("weight", "bias")))

    def dynamic_relu(self, x, z, name):
        hidden = F.relu(self.linear(z[:, 0], f"{name}.hyper.0", z.shape[-1] // 4))
        theta = F.relu6(self.linear(hidden, f"{name}.hyper.2", 2 * x.shape[1]) + 3) / 6
        a1, a2 = (2 * theta).chunk(2, dim=1)
        return torch.maximum(a1[..., None, None] * x, (a2 - 1)[..., None, None] * x)

    def to_tokens(self, x, z, name):
        channels = x.shape[1]
        o = attention(self.linear(z, f"{name}.q", channels), x.flatten(2).mT, x.flatten(2).mT, 2)
        gate = F.relu6(self.linear(z, f"{name}.alpha.0", channels) + 3) / 3
        o = self.linear(o * gate, f"{name}.proj", z.shape[-1])
        return self.layer_norm(z + o, f"{name}.layer_norm")

    def former(self, z, name):
        d = z.shape[-1]
        o = attention(self.linear(z, f"{name}.q", d), z, z, 4)
        o = self.linear(o, f"{name}.channel_mlp", d)
        z = self.layer_norm(z + o, f"{name}.layer_norm")
        o = self.linear(F.gelu(self.linear(z, f"{name}.ffn.0", 2 * d)), f"{name}.ffn.2", d)
        return self.layer_norm(z + o, f"{name}.ffn_norm")

    def from_tokens(self, x, z, name):
        key, value = (self.linear(z, f"{name}.{part}", x.shape[1]) for part in ("k", "proj"))
        return x + attention(x.flatten(2).mT, key, value, 2).mT.view_as(x)


def attention(query, key, value, heads):
    split = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (query, key, value)]
    scores = split[0] @ split[1].mT * split[0].shape[-1] ** -0.5
    return (scores.softmax(-1) @ split[2]).transpose(1, 2).flatten(2)


def shuffle(x, groups):
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def image_network(w, config, classes, image):
    """The image network, shuffles and all, as the description of the checkpoints has it."""
    g = config.groups
    shuffled = shuffle if g > 1 else lambda x, groups: x
    weight = w.entry("stem.0.weight", config.stem, 3, 3, 3)
    x = F.relu6(w.norm(F.conv2d(image, weight, stride=2, padding=1), "stem.1"))
    tokens = w.entry("tokens.weight", config.num_tokens, config.token_dim)
    z = tokens.expand(len(image), -1, -1)
    for i, block in enumerate(config.parse_blocks()):
        name, c, out, e = f"features.{i}", x.shape[1], block.channels, block.expansion
        if block.kind == "L":
            y = F.relu6(w.norm(w.depthwise(x, f"{name}.conv.0", e, block.stride), f"{name}.conv.1"))
            y = w.norm(w.pointwise(shuffled(y, c), f"{name}.conv.4", out, g), f"{name}.conv.5")
            x = x + y if y.shape == x.shape else y
            continue
        z = w.former(w.to_tokens(x, z, f"{name}.local_global"), f"{name}.global_block")
        if block.kind == "M":
            y = w.norm(w.pointwise(x, f"{name}.conv1.0", e * c, g), f"{name}.conv1.1")
            y = w.dynamic_relu(shuffled(y, g), z, f"{name}.hyper1")
            y = w.norm(w.depthwise(y, f"{name}.conv2.0", 1), f"{name}.conv2.1")
            y = w.dynamic_relu(y, z, f"{name}.hyper2")
            y = w.norm(w.pointwise(y, f"{name}.conv3.0", out, g), f"{name}.conv3.1")
            y = shuffled(y, g)
            x = x + y if out == c else y
        else:
            y = shuffled(w.norm(w.depthwise(x, f"{name}.conv1.0", e, 2), f"{name}.conv1.1"), c)
            y = w.dynamic_relu(y, z, f"{name}.hyper1")
            u = w.norm(w.pointwise(y, f"{name}.conv2.0", out, g), f"{name}.conv2.1")
            y = shuffled(w.norm(w.depthwise(u, f"{name}.conv3.0", 4), f"{name}.conv3.1"), out)
            y = w.dynamic_relu(y, z, f"{name}.hyper3")
            x = u + w.norm(w.pointwise(y, f"{name}.conv4.0", out, g), f"{name}.conv4.1")
        x = w.from_tokens(x, z, f"{name}.global_local")
    z = w.to_tokens(x, z, "local_global")
    y = w.pointwise(shuffled(x, g), "classifier.conv.1", 6 * x.shape[1], g)
    y = F.hardswish(F.relu6(w.norm(y, "classifier.conv.2")).mean((2, 3)))
    y = w.linear(torch.cat([y, z[:, 0]], 1), "classifier.fc.0", config.head_features)
    y = F.hardswish(w.norm(y, "classifier.fc.1"))
    return w.linear(y, "classifier.classifier.1", classes)


def test_the_literal_image_network_is_right(vectors, state, model):
    logits = image_network(Weights(state), model.config, 10, vectors["input"].double())
    assert (logits - vectors["logits"]).abs().max() < 1e-10


def test_grouped_networks_match_the_image_network_with_shuffles():
    torch.manual_seed(3)
    model = vmf.create_model("vmf_26m", 6, **GROUPED).double().eval()
    image = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    weights = Weights()
    expected = image_network(weights, model.config, 6, image)
    vmf.load_mobile_former(model, weights)
    with vmf_kernels.use_backend("reference"), torch.no_grad():
        assert (model(still(image, 3)) - expected).abs().max() < 1e-10
