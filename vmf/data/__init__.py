"""Videos to clips: lists of files, decoding, sampling, augmentation."""

from vmf.data.clips import EvalClips, TrainClips, collate, load_clip
from vmf.data.decode import VideoError, read_frames
from vmf.data.listing import read_list, scan_folder
from vmf.data.spec import AugmentOptions, ClipSpec
from vmf.data.write import write_video

__all__ = [
    "AugmentOptions",
    "ClipSpec",
    "EvalClips",
    "TrainClips",
    "VideoError",
    "collate",
    "load_clip",
    "read_frames",
    "read_list",
    "scan_folder",
    "write_video",
]
