"""Decoding: the right frames come out, and every kind of bad file gets one worded line."""

import sys
from fractions import Fraction
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest
import torch

from vmf.data import (
    AugmentOptions,
    ClipSpec,
    EvalClips,
    TrainClips,
    VideoError,
    collate,
    decode,
    load_clip,
    read_frames,
    write_video,
)

NUM_FRAMES = 40


def counting_frames(count=NUM_FRAMES, height=48, width=64):
    """Grey frames whose brightness tells their number: 5 levels a frame survive the codec."""
    levels = 20 + 5 * (np.arange(count) % NUM_FRAMES)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def numbers(frames):
    """Undoes counting_frames."""
    return [round((float(value) - 20) / 5) for value in frames.double().mean((1, 2, 3))]


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, counting_frames())
    return path


def audio_file(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        samples = np.zeros((1, 1024), np.float32)
        for start in range(0, 8192, 1024):
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    "wanted",
    [[0], [39], [0, 1, 2], [3, 11, 19, 27, 35], [30, 10, 20], [5, 5, 7], list(range(40))],
    ids=str,
)
def test_wanted_frames_in_wanted_order(video, wanted):
    assert numbers(read_frames(video, lambda count: wanted)) == wanted


@pytest.mark.parametrize(
    "suffix, codec",
    [(".mp4", "libx264"), (".mov", "libx264"), (".mkv", "libx264"), (".avi", "mpeg4"),
     (".webm", "libvpx")],
)  # fmt: skip
def test_containers(tmp_path, suffix, codec):
    path = tmp_path / f"clip{suffix}"
    write_video(path, counting_frames(), codec=codec)
    seen = []
    frames = read_frames(path, lambda count: seen.append(count) or [0, 13, 26, 39])
    assert seen == [NUM_FRAMES]
    assert numbers(frames) == [0, 13, 26, 39]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_seeking_in_a_long_video_finds_the_same_frames(tmp_path, suffix):
    path = tmp_path / f"long{suffix}"
    write_video(path, counting_frames(600, 32, 32))
    wanted = [9, 10, 250, 251, 252, 399, 580, 599]
    everything = read_frames(path, lambda count: range(count))
    assert torch.equal(read_frames(path, lambda count: wanted), everything[wanted])
    assert numbers(everything[wanted]) == [number % NUM_FRAMES for number in wanted]


def test_variable_frame_rate_is_even_in_time(tmp_path):
    path = tmp_path / "variable.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.options = {"tune": "zerolatency"}  # frames in order of display: honest durations
        # The picture stands still for half of the film's twenty ticks.
        for number, tick in enumerate([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 19]):
            frame = av.VideoFrame.from_ndarray(counting_frames()[number], format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 20)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = numbers(read_frames(path, lambda count: range(count)))
    assert len(frames) == 11 and frames == sorted(frames)
    assert frames[0] == 0 and 4 <= frames.count(9) <= 6


@pytest.mark.parametrize("height, width, short", [(48, 64, 24), (64, 48, 24), (48, 64, 100)])
def test_frames_shrink_to_the_short_side_and_never_grow(tmp_path, height, width, short):
    path = tmp_path / "clip.mp4"
    write_video(path, counting_frames(4, height, width))
    shape = read_frames(path, lambda count: [0, 3], short).shape
    scale = min(1, short / min(height, width))
    assert shape == (2, round(height * scale), round(width * scale), 3)


def test_colours_survive(tmp_path):
    path = tmp_path / "colours.mp4"
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)
    write_video(path, np.broadcast_to(colours[:, None, None], (3, 32, 32, 3)))
    found = read_frames(path, lambda count: range(3)).double().mean((1, 2)).numpy()
    assert np.abs(found - colours).max() < 8


def bad_files(folder):
    """(file, words its error must have) for every kind of file that cannot serve."""
    good = folder / "good.mp4"
    write_video(good, np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), np.uint8))
    whole = good.read_bytes()

    front = folder / "front.mp4"  # index in front of the frames: opens even when cut off
    with (
        av.open(str(good)) as source,
        av.open(str(front), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)

    def file(name, content):
        (folder / name).write_bytes(content)
        return folder / name

    short = folder / "short.mp4"
    write_video(short, counting_frames(5))
    matroska = folder / "whole.mkv"
    write_video(matroska, np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), np.uint8))
    (folder / "folder.mp4").mkdir()
    return [
        (folder / "missing.mp4", "no such file"),
        (folder / "folder.mp4", "is a folder"),
        (file("empty.mp4", b""), "empty"),
        (file("text.mp4", b"this is no video\n" * 50), "cannot be read"),
        (file("noise.mp4", np.random.default_rng(1).bytes(5000)), "cannot be read"),
        (file("cut.mp4", whole[: len(whole) // 2]), "cannot be read"),
        (file("cut_front.mp4", front.read_bytes()[: front.stat().st_size // 2]), "truncated"),
        (file("cut.mkv", matroska.read_bytes()[: matroska.stat().st_size // 2]), "truncated"),
        (audio_file(folder / "audio.mp4"), "no video stream"),
        (short, "at least as many frames as the clip (got 5, asked for 8)"),
    ]


def test_bad_files_get_one_line_that_names_them(tmp_path, capfd):
    for path, words in bad_files(tmp_path):
        with pytest.raises(VideoError) as caught:
            load_clip(path, ClipSpec(frames=8, stride=5, size=32))
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and words in message, message
        assert "\n" not in message
    assert capfd.readouterr().err == "", "FFmpeg must not print beside the error"


def test_data_sets_report_bad_files_and_go_on(tmp_path):
    spec = ClipSpec(frames=8, stride=5, size=32)
    bad = bad_files(tmp_path)
    samples = [(str(path), 0) for path, _ in bad] + [(str(tmp_path / "good.mp4"), 1)]
    train = TrainClips(samples, ["a", "b"], spec, AugmentOptions())
    evaluate = EvalClips(samples, spec, views=2)
    numbers = range(len(samples))
    for items in ([train[0, i] for i in numbers], [evaluate[i] for i in numbers]):
        batch = collate(items)
        assert batch["clip"].shape[0] == 1
        assert batch["label"].tolist() == [1] and batch["index"].tolist() == [len(bad)]
        assert [error.split(": ")[0] for error in batch["errors"]] == [str(path) for path, _ in bad]


def test_collate_of_failures_only():
    batch = collate([{"error": "a.mp4: gone", "index": 3}])
    assert batch["clip"] is None and batch["errors"] == ["a.mp4: gone"]
    assert batch["label"].shape == batch["index"].shape == (0,)


def test_the_same_frames_make_the_same_file(tmp_path):
    t, y, x, channel = np.meshgrid(*map(np.arange, (18, 32, 32, 3)), indexing="ij")
    frames = ((x * (3 + channel) + y * (2 + 5 * channel) + t * (5 + 3 * channel)) % 256).astype(
        np.uint8
    )
    path, files = tmp_path / "clip.mp4", set()
    for _ in range(60):
        write_video(path, frames)
        files.add(path.read_bytes())
    assert len(files) == 1


def test_half_written_video_leaves_nothing(tmp_path):
    with pytest.raises(Exception):  # noqa: B017  whatever FFmpeg makes of an unknown codec
        write_video(tmp_path / "clip.mp4", counting_frames(), codec="no_such_codec")
    assert list(tmp_path.iterdir()) == []


class FakeDecoder:
    """Stands in for torchcodec.decoders.VideoDecoder: six 48 x 64 frames of counted brightness."""

    def __init__(self, path, num_ffmpeg_threads):
        if "unreadable" in path:
            raise RuntimeError("Could not open input file")
        self.metadata = SimpleNamespace(num_frames=6)

    def get_frames_at(self, indices):
        frames = torch.from_numpy(counting_frames()[indices].copy()).permute(0, 3, 1, 2)
        return SimpleNamespace(data=frames)


def test_torchcodec_is_used_where_it_is_installed(monkeypatch, tmp_path):
    module = ModuleType("torchcodec.decoders")
    module.VideoDecoder = FakeDecoder
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    decode._torchcodec.cache_clear()
    try:
        frames = read_frames("anything.mp4", lambda count: [count - 1, 0], short_side=24)
        assert frames.shape == (2, 24, 32, 3) and numbers(frames) == [5, 0]
        with pytest.raises(VideoError, match=r"frames as the clip \(got 6, asked for 8\)"):
            load_clip("anything.mp4", ClipSpec(frames=8))
        with pytest.raises(VideoError, match=r"unreadable\.mp4: there is no such file"):
            read_frames("unreadable.mp4", lambda count: [0])
        # What torchcodec cannot read, PyAV may.
        write_video(tmp_path / "unreadable.mp4", counting_frames())
        assert numbers(read_frames(tmp_path / "unreadable.mp4", lambda count: [7])) == [7]
    finally:
        decode._torchcodec.cache_clear()


def test_torchcodec_without_its_libraries_is_passed_over(monkeypatch, video):
    def broken(name):
        raise RuntimeError("Could not load libtorchcodec")

    monkeypatch.setattr(decode.importlib, "import_module", broken)
    decode._torchcodec.cache_clear()
    try:
        assert numbers(read_frames(video, lambda count: [3])) == [3]
    finally:
        decode._torchcodec.cache_clear()
