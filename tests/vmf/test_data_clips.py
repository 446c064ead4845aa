"""Clips: sampling, augmentation, views and crops, lists of files."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from vmf.data import (
    AugmentOptions,
    ClipSpec,
    EvalClips,
    TrainClips,
    load_clip,
    read_list,
    scan_folder,
    write_video,
)
from vmf.data.color import color_jitter
from vmf.data.randaugment import OPERATIONS, randaugment
from vmf.data.sampling import train_indices, view_indices
from vmf.data.transforms import augment_clip, random_box, view_boxes

PLAIN = AugmentOptions(crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, color_jitter=0)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of two clips: a bright half on the left or on the right, growing brighter."""
    root = tmp_path_factory.mktemp("clips")
    for split in ("train", "val"):
        for name, columns in (("left", slice(0, 32)), ("right", slice(32, 64))):
            for number in range(2):
                frames = np.full((20, 48, 64, 3), 30, np.uint8)
                frames[:, :, columns] = 120 + 5 * np.arange(20)[:, None, None, None]
                write_video(root / split / name / f"{number}.mp4", frames)
    return root


# Sampling


def test_train_indices_cover_every_start_and_keep_the_stride():
    spec = ClipSpec(frames=4, stride=3)
    starts = set()
    for seed in range(200):
        indices = train_indices(14, spec, rng(seed))
        assert np.diff(indices).tolist() == [3, 3, 3]
        starts.add(int(indices[0]))
    assert starts == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("count, expected", [(9, [0, 3, 5, 8]), (4, [0, 1, 2, 3])])
def test_short_videos_spread_their_frames(count, expected):
    spec = ClipSpec(frames=4, stride=3)
    assert train_indices(count, spec, rng()).tolist() == expected
    assert view_indices(count, spec, 2).tolist() == [expected, expected]


@pytest.mark.parametrize("views, starts", [(1, [5]), (2, [0, 10]), (3, [0, 5, 10])])
def test_views_are_evenly_spaced(views, starts):
    indices = view_indices(20, ClipSpec(frames=4, stride=3), views)
    assert indices[:, 0].tolist() == starts and (np.diff(indices) == 3).all()


def test_view_of_exact_length_and_of_one_frame():
    assert view_indices(10, ClipSpec(frames=4, stride=3), 1).tolist() == [[0, 3, 6, 9]]
    assert view_indices(1, ClipSpec(frames=1, stride=3), 2).tolist() == [[0], [0]]


# Options


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ClipSpec(frames=0), "frames must be at least 1 (got frames=0)"),
        (lambda: ClipSpec(stride=0), "stride must be at least 1"),
        (lambda: ClipSpec(size=-3), "size must be at least 1"),
        (lambda: ClipSpec(mean=(0.5,)), "mean takes three values"),
        (lambda: ClipSpec(std=(0.2, 0.0, 0.2)), "std must be positive"),
        (lambda: AugmentOptions(crop_scale=(0.5, 1.2)), "crop_scale"),
        (lambda: AugmentOptions(crop_ratio=(2, 1)), "crop_ratio"),
        (lambda: AugmentOptions(flip=1.5), "flip is a probability"),
        (lambda: AugmentOptions(flip_pairs=(("a", "b"), ("b", "c"))), "each name once"),
        (lambda: AugmentOptions(color_jitter=2), "color_jitter"),
        (lambda: AugmentOptions(randaugment=11), "randaugment must lie in 0 to 10"),
        (lambda: AugmentOptions(randaugment_ops=0), "randaugment_ops"),
    ],
)
def test_options_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value) and "(got " in str(caught.value)


@pytest.mark.parametrize(
    "options", [ClipSpec(16, 4, 112), AugmentOptions(flip_pairs=(("a", "b"),))]
)
def test_options_survive_json(options):
    again = json.loads(json.dumps(dataclasses.asdict(options)))
    assert type(options)(**again) == options


# Training clips


def test_items_follow_from_seed_epoch_and_index_alone(folder):
    samples, classes = scan_folder(folder, "train")
    options = AugmentOptions(randaugment=5)
    clips = TrainClips(samples, classes, ClipSpec(4, 2, 32), options, seed=3)
    first = clips[1, 2]
    for key in [(0, 0), (1, 3), (2, 2)]:
        assert not torch.equal(clips[key]["clip"], first["clip"])
    again = TrainClips(samples, classes, ClipSpec(4, 2, 32), options, seed=3)[1, 2]
    assert torch.equal(first["clip"], again["clip"]) and first["label"] == again["label"]
    other = TrainClips(samples, classes, ClipSpec(4, 2, 32), options, seed=4)[1, 2]
    assert not torch.equal(first["clip"], other["clip"])


def test_clip_is_normalised(folder):
    samples, classes = scan_folder(folder, "train")
    spec = ClipSpec(4, 2, 48, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    clip = TrainClips(samples, classes, spec, PLAIN)[0, 0]["clip"]
    assert clip.shape == (3, 4, 48, 48) and clip.dtype == torch.float32 and clip.is_contiguous()
    grey = 30 / 255
    dark = clip[:, 0, :, -8:].mean((1, 2))
    expected = [(grey - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True)]
    assert torch.allclose(dark, torch.tensor(expected), atol=0.1)


def test_flip_swaps_paired_labels_and_no_others(folder):
    samples, classes = scan_folder(folder, "train")
    flipping = dataclasses.replace(PLAIN, flip=1.0)
    spec = ClipSpec(4, 2, 48)
    for pairs, swaps in [((), False), ((("left", "right"),), True)]:
        options = dataclasses.replace(flipping, flip_pairs=pairs)
        clips = TrainClips(samples, classes, spec, options)
        for index, (_, label) in enumerate(samples):
            item = clips[0, index]
            bright_left = item["clip"][..., :16].mean() > item["clip"][..., -16:].mean()
            assert bright_left == (classes[label] == "right")
            assert item["label"] == (1 - label if swaps else label)


def test_flip_pairs_must_name_classes(folder):
    samples, classes = scan_folder(folder, "train")
    with pytest.raises(ValueError, match=r"known classes \(got 'up'"):
        TrainClips(samples, classes, ClipSpec(), AugmentOptions(flip_pairs=(("left", "up"),)))


def test_random_boxes_keep_their_promises():
    options = AugmentOptions(crop_scale=(0.3, 0.6), crop_ratio=(0.5, 2.0))
    source = rng()
    for height, width in [(48, 64), (64, 48), (200, 100)]:
        for _ in range(100):
            top, left, h, w = random_box(height, width, options, source)
            assert top >= 0 and left >= 0 and top + h <= height and left + w <= width
            assert 0.27 < h * w / (height * width) < 0.65 and 0.45 < w / h < 2.2


def test_random_box_of_an_extreme_frame_falls_back_to_the_centre():
    options = AugmentOptions(crop_scale=(0.9, 1.0), crop_ratio=(1.0, 1.0))
    assert random_box(10, 100, options, rng()) == (0, 45, 10, 10)


def test_all_frames_are_augmented_alike():
    still = torch.randint(0, 255, (1, 40, 60, 3), dtype=torch.uint8).expand(5, -1, -1, -1)
    for seed in range(20):
        options = AugmentOptions(randaugment=9, randaugment_ops=3)
        clip, _ = augment_clip(still, ClipSpec(5, 1, 24), options, rng(seed))
        assert torch.allclose(clip, clip[:, :1].expand_as(clip), atol=1e-6)


def test_color_jitter_changes_what_it_says():
    images = torch.rand(2, 3, 8, 8)
    jittered = color_jitter(images, 0.4, rng())
    assert jittered.shape == images.shape and not torch.equal(jittered, images)
    assert jittered.min() >= 0 and jittered.max() <= 1
    assert torch.allclose(color_jitter(images, 0.0, rng()), images, atol=1e-6)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_randaugment_operations(name):
    images = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    for level in (-1.0, 1.0):
        changed = OPERATIONS[name](images.clone(), level)
        assert changed.shape == images.shape and changed.isfinite().all()
        assert torch.equal(changed, images) == (name == "identity")


def test_rotation_turns_by_a_right_angle_without_distortion():
    images = torch.rand(1, 3, 15, 15)
    assert torch.allclose(
        OPERATIONS["rotate"](images, 3.0), torch.rot90(images, 1, (2, 3)), atol=1e-4
    )


def test_randaugment_draws_from_the_given_source():
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(randaugment(images, 9, 3, rng(5)), randaugment(images, 9, 3, rng(5)))
    results = [randaugment(images, 9, 3, rng(seed)) for seed in range(6)]
    assert len({round(float(result.sum()), 3) for result in results}) > 3


# Evaluation clips


@pytest.mark.parametrize("crops, boxes", [(1, [(0, 8)]), (3, [(0, 0), (0, 8), (0, 16)])])
def test_crops_along_the_longer_side(crops, boxes):
    assert [box[:2] for box in view_boxes(48, 64, crops)] == boxes
    assert [box[1::-1] for box in view_boxes(64, 48, crops)] == boxes
    assert all(box[2:] == (48, 48) for box in view_boxes(64, 48, crops))


def test_views_and_crops_of_a_video(folder):
    samples, _ = scan_folder(folder, "val")
    item = EvalClips(samples, ClipSpec(4, 2, 32), views=2, crops=3)[0]
    assert item["clip"].shape == (6, 3, 4, 32, 32) and item["label"] == 0 and item["index"] == 0
    left, right = item["clip"][0], item["clip"][2]  # the bright half is on the left
    assert left.mean() > right.mean()
    assert item["clip"][3].mean() > item["clip"][0].mean()  # the second view is later, so brighter


def test_pictures_are_the_frames_of_the_clip(folder):
    spec = ClipSpec(4, 2, 32)
    clips, pictures = load_clip(scan_folder(folder, "val")[0][0][0], spec, views=2)
    assert pictures.shape == (2, 4, 32, 32, 3) and pictures.dtype == torch.uint8
    undone = clips.permute(0, 2, 3, 4, 1) * 0.225 + 0.45
    assert torch.allclose(undone * 255, pictures.float(), atol=0.51)


def test_small_videos_are_enlarged_to_the_clip(folder):
    clips, _ = load_clip(scan_folder(folder, "val")[0][0][0], ClipSpec(4, 2, 100))
    assert clips.shape == (1, 3, 4, 100, 100)


@pytest.mark.parametrize("views, crops", [(0, 1), (1, 2), (1, 0)])
def test_views_and_crops_out_of_range(views, crops):
    with pytest.raises(ValueError, match=r"must be .*\(got \d\)"):
        EvalClips([], ClipSpec(), views, crops)


# Lists


def test_scan_folder(folder):
    samples, classes = scan_folder(folder, "train")
    assert classes == ["left", "right"] and [label for _, label in samples] == [0, 0, 1, 1]
    assert samples[2][0] == str(folder / "train" / "right" / "0.mp4")
    relabelled, names = scan_folder(folder, "val", classes=["up", "right", "left"])
    assert names == ["up", "right", "left"] and [label for _, label in relabelled] == [2, 2, 1, 1]


def test_scan_folder_errors(folder, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        scan_folder(folder, "nowhere")
    with pytest.raises(ValueError, match=r"unknown labels \(got right"):
        scan_folder(folder, "val", classes=["left"])
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="one folder per class"):
        scan_folder(tmp_path, "train")
    (tmp_path / "train" / "nothing_here").mkdir()
    (tmp_path / "train" / "nothing_here" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"empty: .*nothing_here"):
        scan_folder(tmp_path, "train")


def test_read_list(tmp_path):
    file = tmp_path / "train.txt"
    file.write_text("a/one.mp4 0\n\nb/a name with spaces.mp4 2\nb/tab.mp4\t1\n")
    assert read_list(file, "/data") == [
        ("/data/a/one.mp4", 0),
        ("/data/b/a name with spaces.mp4", 2),
        ("/data/b/tab.mp4", 1),
    ]
    file.write_text("one.mp4 run\ntwo.mp4 0\n")
    assert read_list(file, "/data", ["walk", "run"]) == [("/data/one.mp4", 1), ("/data/two.mp4", 0)]


@pytest.mark.parametrize(
    "content, classes, words",
    [
        ("a.mp4 0\nb.mp4\n", None, ":2: a line must read"),
        ("a.mp4 dog\n", None, ":1: unknown label (got 'dog'"),
        ("a.mp4 -1\n", None, "unknown label"),
        ("a.mp4 1.5\n", None, "unknown label"),
        ("a.mp4 2\n", ["x", "y"], "unknown label (got '2'; known: x, y)"),
        ("\n  \n", None, "empty list"),
    ],
)
def test_read_list_errors(tmp_path, content, classes, words):
    file = tmp_path / "train.txt"
    file.write_text(content)
    with pytest.raises(ValueError) as caught:
        read_list(file, "/data", classes)
    assert str(file) in str(caught.value) and words in str(caught.value)


def test_unreadable_lists(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        read_list(tmp_path / "none.txt", "/data")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_list(tmp_path / "binary.txt", "/data")
