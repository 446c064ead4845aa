"""The parts of training by themselves: rates, groups, averages, mixing, dealing, counting."""

import errno
import json
import math
import os
from itertools import pairwise

import pytest
import torch
from torch import nn

from vmf.training.batches import ChunkSampler, Replacing, training_batches
from vmf.training.config import TrainConfig
from vmf.training.distributed import Ranks
from vmf.training.files import atomic_write
from vmf.training.metrics import Scores
from vmf.training.mixing import mix_clips, mix_seeds, seeded
from vmf.training.optim import Ema, make_optimizer, parameter_groups
from vmf.training.schedule import learning_rate
from vmf.training.step import Stepper

ALONE = Ranks(0, 1, torch.device("cpu"))


def test_learning_rate_rises_linearly_then_falls_as_a_cosine():
    rates = [learning_rate(step, 14, 4, peak=1.0, final=0.1) for step in range(14)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert math.isclose(rates[13], 0.1)
    assert math.isclose(learning_rate(8, 13, 4, 1.0, 0.1), 0.55)  # half way down
    assert all(a > b for a, b in pairwise(rates[4:]))


def test_learning_rate_of_a_single_step_and_without_warm_up():
    assert learning_rate(0, 1, 0, 0.3, 0.0) == 0.3
    assert learning_rate(0, 10, 0, 0.3, 0.0) == 0.3
    assert 0 < learning_rate(0, 10, 2.5, 0.3, 0.0) < 0.3


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(2, 4))
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.frozen = nn.Parameter(torch.randn(3, 3), requires_grad=False)

    def no_weight_decay(self):
        return {"tokens"}


def test_only_matrices_decay():
    decayed, plain = parameter_groups(model := Tokens(), 0.1)
    assert [decayed["weight_decay"], plain["weight_decay"]] == [0.1, 0.0]
    assert [id(p) for p in decayed["params"]] == [id(model.linear.weight)]
    others = [model.tokens, model.linear.bias, model.norm.weight, model.norm.bias]
    assert {id(p) for p in plain["params"]} == {id(p) for p in others}


def test_optimizer_reads_a_gradient_of_another_layout():
    """The trap that keeps the fused CPU kernel out: it ignores strides."""
    values, gradient = torch.randn(4, 3, 2, 2, 2), torch.randn(4, 3, 2, 2, 2)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        model = nn.Conv3d(3, 4, 2, bias=False)
        model.weight = nn.Parameter(values.clone().contiguous(memory_format=layout))
        model.weight.grad = gradient.clone()
        make_optimizer(model, 0.1, 0.0, (0.9, 0.999)).step()
        results.append(model.weight.detach())
    assert torch.equal(results[0], results[1])


def test_ema_is_the_running_mean_of_parameters_and_buffers():
    model = nn.BatchNorm1d(2)
    ema = Ema(model, decay=0.9)
    expected_weight, expected_mean = torch.ones(2), torch.zeros(2)
    for step in range(200):
        with torch.no_grad():
            model.weight.fill_(step)
            model.running_mean.fill_(2 * step)
            model.num_batches_tracked.fill_(step)
        ema.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected_weight = decay * expected_weight + (1 - decay) * step
        expected_mean = decay * expected_mean + (1 - decay) * 2 * step
    torch.testing.assert_close(ema.model.weight.detach(), expected_weight)
    torch.testing.assert_close(ema.model.running_mean, expected_mean)
    assert ema.model.num_batches_tracked == 199
    assert not ema.model.training
    assert not ema.model.weight.requires_grad
    assert model.training and model.weight.requires_grad


def test_mixup_and_cutmix_move_labels_as_far_as_pixels():
    label = torch.arange(4)
    clip = label.float().view(4, 1, 1, 1, 1).expand(4, 3, 2, 16, 16).contiguous()
    kinds = set()
    for seed in range(20):
        mixed, target = mix_clips(clip, label, 4, 0.8, 1.0, seeded(seed))
        torch.testing.assert_close(target.sum(1), torch.ones(4))
        # The mean pixel is the mean label, whichever way clips were mixed.
        means = mixed.mean((1, 2, 3, 4))
        torch.testing.assert_close(means, target @ torch.arange(4.0), atol=1e-5, rtol=0)
        is_cutmix = bool((mixed == mixed.round()).all())
        kinds.add(is_cutmix)
        if is_cutmix:  # the same box in all frames
            assert torch.equal(mixed[:, :, 0], mixed[:, :, 1])
    assert kinds == {False, True}


def test_mixing_follows_from_its_seed_and_is_off_at_zero():
    clip, label = torch.randn(4, 3, 2, 8, 8), torch.arange(4)
    first, again, other = (mix_clips(clip, label, 4, 1.0, 1.0, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    assert mix_clips(clip, label, 4, 0.0, 0.0, seeded(1))[0] is clip


def test_seeds_differ_where_any_number_does():
    seeds = [mix_seeds(*n) for n in ((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def chunks_of(ranks: Ranks, accumulate: int, start: int = 0, stop: int = 6) -> list:
    return list(ChunkSampler(10, 4, accumulate, ranks, seed=7, start=start, stop=stop))


def test_an_epoch_deals_each_clip_at_most_once_and_shuffles_anew():
    chunks = chunks_of(ALONE, 1)
    assert len(chunks) == 6  # 2 whole batches in each of 3 epochs
    for epoch in range(3):
        dealt = [pair for chunk in chunks[2 * epoch : 2 * epoch + 2] for pair in chunk]
        assert {e for e, _ in dealt} == {epoch}
        assert len({i for _, i in dealt}) == 8
    assert [i for _, i in chunks[0]] != [i for _, i in chunks[2]]


def test_processes_and_parts_compute_the_same_chunks():
    one = chunks_of(ALONE, 2)
    two = [chunks_of(Ranks(rank, 2, ALONE.device), 1) for rank in range(2)]
    assert one == [chunk for pair in zip(*two, strict=True) for chunk in pair]


def test_dealing_goes_on_in_mid_epoch():
    assert chunks_of(ALONE, 1, start=3) == chunks_of(ALONE, 1)[3:]


class Unreadable(torch.utils.data.Dataset):
    """Clips 1 and 2 of 4 cannot be read."""

    def __len__(self):
        return 4

    def __getitem__(self, key):
        _, index = key
        if index in (1, 2):
            return {"error": f"{index}.mp4: broken", "index": index}
        return {"clip": torch.full((1,), float(index)), "label": index, "index": index}


def test_an_unreadable_clip_is_replaced_by_the_next():
    assert [item["index"] for item in Replacing(Unreadable())[(0, 1)]] == [1, 2, 3]
    sampler = [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]
    first, second = training_batches(Unreadable(), sampler, workers=0, pin=False)
    assert first["index"].tolist() == [0, 3]
    assert first["errors"] == ["1.mp4: broken", "2.mp4: broken"]
    assert second["index"].tolist() == [3, 3]


def test_scores_of_a_known_case():
    probability = torch.eye(7)[[0, 1, 1, 6]] * 0.4 + 0.6 / 7
    scores = Scores.empty(7)
    scores.add(probability[:2], torch.tensor([0, 1]))
    scores.add(probability[2:], torch.tensor([0, 5]))
    assert (scores.count, scores.top1) == (4, 0.5)
    assert scores.confusion[0].tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert scores.per_class() == [0.5, 1.0, None, None, None, 0.0, None]
    right, wrong = -math.log(0.4 + 0.6 / 7), -math.log(0.6 / 7)
    assert math.isclose(scores.loss, (2 * right + 2 * wrong) / 4, rel_tol=1e-6)


def test_top5_counts_the_five_best():
    probability = torch.tensor([[0.3, 0.25, 0.2, 0.1, 0.08, 0.07]]).repeat(2, 1)
    scores = Scores.empty(6)
    scores.add(probability, torch.tensor([4, 5]))
    assert (scores.top1, scores.top5) == (0.0, 0.5)


class Plain(nn.Module):
    """No batch norm, so that parts of a batch do not see each other."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, padding=1)
        self.linear = nn.Linear(4, 3)

    def forward(self, clip):
        return self.linear(self.conv(clip).relu().mean((2, 3, 4)))


@pytest.mark.parametrize("clip_grad", [0.0, 0.05])
def test_accumulating_parts_equals_a_large_batch(clip_grad):
    clips, labels = torch.randn(3, 8, 3, 2, 8, 8), torch.randint(3, (3, 8))
    results = []
    for parts in (1, 4):
        torch.manual_seed(1)
        model = Plain().double()
        optimizer = make_optimizer(model, 0.01, 0.05, (0.9, 0.999))
        config = TrainConfig(accumulate=parts, clip_grad=clip_grad)
        stepper = Stepper(model, optimizer, config, 3, "fp32", ALONE)
        figures = []
        for step in range(3):
            clip, label = clips[step].double().chunk(parts), labels[step].chunk(parts)
            figures.append(torch.stack(stepper(step, 0.01, zip(clip, label, strict=True))))
        results.append([*figures, *model.parameters()])
    for one, four in zip(*results, strict=True):
        torch.testing.assert_close(one, four, rtol=1e-5, atol=1e-6)


def test_a_step_depends_on_its_number_and_not_on_what_was_drawn_before():
    clip, label = torch.randn(4, 3, 2, 8, 8), torch.tensor([0, 1, 2, 0])

    def loss(step, draws):
        torch.manual_seed(1)
        model = nn.Sequential(Plain(), nn.Dropout(0.5))
        optimizer = make_optimizer(model, 0.01, 0.05, (0.9, 0.999))
        torch.rand(draws)
        stepper = Stepper(model, optimizer, TrainConfig(mixup=0.8), 3, "fp32", ALONE)
        return stepper(step, 0.01, iter([(clip, label)]))[0].item()

    assert loss(5, draws=0) == loss(5, draws=3)
    assert loss(5, draws=0) != loss(6, draws=0)


def test_atomic_write_keeps_the_old_file_on_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic_write(path, "old")

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        atomic_write(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("lr", math.nan),
        ("lr", 1e38),
        ("ema", 1.0),
        ("label_smoothing", -0.1),
        ("batch_size", 1),
        ("workers", -1),
        ("betas", (0.9, 1.0)),
    ],
)
def test_impossible_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        TrainConfig(data="x", **{name: value}).check(1)


def test_batches_must_divide_among_processes_and_parts():
    with pytest.raises(ValueError, match=r"batch_size: must be a multiple .* \(got 32, 3 x 2\)"):
        TrainConfig(data="x", accumulate=2).check(3)


def test_settings_survive_json():
    config = TrainConfig(data="x", overrides={"num_tokens": 0}, betas=(0.8, 0.9))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match=r"every key must be a setting \(got lrr\)"):
        TrainConfig.from_dict({"lrr": 1})
