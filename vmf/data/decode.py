"""Reading chosen frames of a video file, small and early.

A video is treated as a timeline of ``num_frames = duration x average rate`` ticks; frame ``i`` is
the picture on screen at tick ``i``. For files of constant rate that is simply the i-th frame, and
files of variable rate come out evenly spaced in time.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter

# Reading on is cheaper than seeking back to the last key frame for gaps up to about this long.
_SEEK_GAP = 128
# A seek aims this many frames early: containers index decode times, which run ahead of display.
_SEEK_MARGIN = 8
# A header may promise a frame or two more than the file holds; more than that is a truncated file.
_HEADER_SLACK = 2

Choose = Callable[[int], Iterable[int]]


class VideoError(ValueError):
    """A video file cannot serve. The message is one line: the file, and what is wrong with it."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {' '.join(reason.split())}")


def read_frames(path: str | Path, choose: Choose, short_side: int | None = None) -> torch.Tensor:
    """Decodes the chosen frames of a video.

    Args:
        path: The file.
        choose: Called with the number of frames of the video; returns the wanted frame numbers, in
            any order and with repeats.
        short_side: Shrink the frames to this short side, in pixels, while they are converted to
            RGB. Frames are never enlarged. Default: native size.

    Returns:
        (n, H, W, 3) uint8 RGB, in the order asked for.

    Raises:
        VideoError: The file is missing, empty, damaged, truncated, or has no video stream.
    """
    codec = _torchcodec()
    if codec is not None:
        try:
            return _read_with_torchcodec(codec, path, choose, short_side)
        except VideoError:
            raise
        except Exception as error:  # PyAV reads more kinds of file, and words what is wrong.
            logging.getLogger(__name__).debug("torchcodec failed on %s: %s", path, error)
    return _read_with_pyav(path, choose, short_side)


def _read_with_pyav(path: str | Path, choose: Choose, short_side: int | None) -> torch.Tensor:
    if not os.path.isfile(path):
        raise VideoError(path, "is a folder" if os.path.isdir(path) else "there is no such file")
    if os.path.getsize(path) == 0:
        raise VideoError(path, "the file is empty (0 bytes)")
    try:
        # Names and comments inside the file may be in any encoding; nobody reads them here.
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = _video_stream(container, path)
            wanted = [int(number) for number in choose(_count(container, stream, path))]
            pictures = dict(_decode(container, stream, sorted(set(wanted)), short_side, path))
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(path, f"cannot be read as a video ({reason})") from None
    return torch.from_numpy(np.stack([pictures[number] for number in wanted]))


def _video_stream(container: av.container.InputContainer, path: str | Path) -> av.VideoStream:
    # The cover picture of a music file also calls itself a video stream.
    cover = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & cover]
    if not streams:
        kinds = sorted({str(stream.type) for stream in container.streams})
        raise VideoError(path, f"there is no video stream (only {', '.join(kinds) or 'nothing'})")
    stream = streams[0]
    # Clips are short and workers many: starting decoder threads costs more than they bring.
    stream.codec_context.thread_count = 1
    return stream


def _ticks(stream: av.VideoStream) -> float:
    """Frames per unit of the stream's time stamps."""
    return float(stream.time_base or 0) * float(stream.average_rate or stream.guessed_rate or 25)


def _count(container: av.container.InputContainer, stream: av.VideoStream, path: str | Path) -> int:
    if stream.duration:
        return max(1, round(stream.duration * _ticks(stream)))
    # Matroska keeps no duration per stream: walk over the packets, which decodes nothing.
    last, end = -1, 0.0
    for packet in container.demux():
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index == stream.index:
                last = max(last, packet.pts)
    if last < 0:
        raise VideoError(path, "the video stream holds no frame")
    if container.duration and container.duration / av.time_base - end > 0.5:
        promised = container.duration / av.time_base
        raise VideoError(path, f"truncated: {end:.2f} s of {promised:.2f} s are there")
    container.seek(0)
    return round((last - (stream.start_time or 0)) * _ticks(stream)) + 1


def _decode(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    wanted: list[int],
    short_side: int | None,
    path: str | Path,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (number, RGB picture) for the ascending frame numbers ``wanted``."""
    convert = _Converter(short_side)
    for run in _runs(wanted):
        position, shown = -1, None  # the frame on screen until the next one comes
        for following, frame in _frames_from(container, stream, run[0], path):
            while run and following >= run[0]:
                exact = following == run[0]
                yield run.pop(0), convert(frame if exact else shown or frame)
            if not run:
                break
            position, shown = following, frame
        if not run:
            continue
        if shown is None or run[-1] - position > _HEADER_SLACK:
            rule = f"truncated: only {position + 1} of at least {run[-1] + 1} frames are there"
            raise VideoError(path, rule)
        for number in run:
            yield number, convert(shown)


def _runs(wanted: list[int]) -> Iterator[list[int]]:
    """Splits ascending frame numbers wherever seeking to the next beats reading on."""
    cuts = [i for i in range(1, len(wanted)) if wanted[i] - wanted[i - 1] > _SEEK_GAP]
    for start, stop in zip([0, *cuts], [*cuts, len(wanted)], strict=True):
        if start < stop:
            yield wanted[start:stop]


def _frames_from(
    container: av.container.InputContainer, stream: av.VideoStream, number: int, path: str | Path
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decodes (position, frame) from at or before frame ``number`` to the end of the file."""
    ticks, origin = _ticks(stream), stream.start_time or 0
    position = -1
    if number > _SEEK_MARGIN:
        container.seek(origin + int((number - _SEEK_MARGIN) / ticks), stream=stream)
    try:
        for frame in container.decode(stream):
            if frame.pts is None:  # as raw streams have it
                position += 1
            else:
                position = round((frame.pts - origin) * ticks)
            yield position, frame
    except av.FFmpegError as error:
        rule = f"damaged or truncated at frame {position + 1} ({error.strerror})"
        raise VideoError(path, rule) from None


class _Converter:
    """Turns frames into RGB pictures, all of the size that suits the first one."""

    def __init__(self, short_side: int | None) -> None:
        self.short_side = short_side
        self.size: tuple[int, int] | None = None
        self.reformatter = VideoReformatter()  # keeps FFmpeg's scaler from frame to frame

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if self.size is None:
            self.size = shrunk_size(frame.width, frame.height, self.short_side)
        width, height = self.size
        # A thread per core, PyAV's default, costs small frames five times what it saves.
        rgb = self.reformatter.reformat(
            frame, width, height, "rgb24", interpolation=Interpolation.BILINEAR, threads=1
        )
        return rgb.to_ndarray()


def shrunk_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """The (width, height) of a frame whose short side was reduced to ``short_side`` pixels."""
    if short_side is None or min(width, height) <= short_side:
        return width, height
    scale = short_side / min(width, height)
    return max(short_side, round(width * scale)), max(short_side, round(height * scale))


@functools.cache
def _torchcodec() -> ModuleType | None:
    """The decoders of torchcodec, or None where they are missing or find no FFmpeg libraries."""
    try:
        return importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError):
        return None


def _read_with_torchcodec(
    codec: ModuleType, path: str | Path, choose: Choose, short_side: int | None
) -> torch.Tensor:
    decoder = codec.VideoDecoder(str(path), num_ffmpeg_threads=1)
    wanted = [int(number) for number in choose(decoder.metadata.num_frames)]
    frames = decoder.get_frames_at(indices=wanted).data
    width, height = shrunk_size(frames.shape[-1], frames.shape[-2], short_side)
    if frames.shape[-2:] != (height, width):
        frames = torch.nn.functional.interpolate(
            frames, size=(height, width), mode="bilinear", antialias=True
        )
    return frames.permute(0, 2, 3, 1).contiguous()
