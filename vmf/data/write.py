"""Writing a video file, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter


def write_video(
    path: str | Path, frames: np.ndarray, rate: int = 25, codec: str = "libx264", crf: int = 18
) -> None:
    """Writes RGB frames to a video file; the suffix of the name chooses the container.

    Args:
        path: The file. Its folder is made if it is missing.
        frames: (T, H, W, 3) uint8 RGB; H and W even.
        rate: Frames per second.
        codec: FFmpeg's name of the encoder.
        crf: Quality of x264 and its kin, 0 (lossless) to 51.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    half_written = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with av.open(str(half_written), "w") as container:
            stream = container.add_stream(codec, rate=rate)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            if codec == "libx264":
                # Its macroblock tree would decide otherwise in some runs, from the same frames.
                params = {"x264-params": "mbtree=0"}
                stream.options = {"preset": "veryfast", "crf": str(crf), **params}
            reformatter = VideoReformatter()
            for picture in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                # With several threads, PyAV's default, FFmpeg's scaler gives other bits at times.
                yuv = reformatter.reformat(frame, format="yuv420p", threads=1)
                container.mux(stream.encode(yuv))
            container.mux(stream.encode())
        os.replace(half_written, path)
    finally:
        half_written.unlink(missing_ok=True)
