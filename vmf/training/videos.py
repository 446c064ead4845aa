"""From folders and list files to lists of videos, and how many processes should decode them."""

import os
from pathlib import Path

from vmf.data import read_list, scan_folder

Sample = tuple[str, int]


def videos(
    data: str | Path, split: str, list_file: str | Path | None, classes: list[str]
) -> list[Sample]:
    """Videos whose classes are already known, as (path, label).

    Raises:
        ValueError: Names what is missing, empty or unknown.
    """
    if list_file is not None:
        return read_list(list_file, data, classes)
    return scan_folder(data, split, classes)[0]


def training_videos(
    data: str | Path, split: str, list_file: str | Path | None, classes: str | Path | None
) -> tuple[list[Sample], list[str]]:
    """The training videos and the class names they define.

    Args:
        data: Folder of the videos.
        split: Folder under it.
        list_file: List to use instead.
        classes: File of class names; without it the class folders or the list's numbers name them.

    Raises:
        ValueError: Names what is missing, empty or unknown.
    """
    names = None if classes is None else read_classes(classes)
    if list_file is None:
        samples, names = scan_folder(data, split, names)
    else:
        samples = read_list(list_file, data, names)
        if names is None:
            names = [str(label) for label in range(1 + max(label for _, label in samples))]
    if len(names) < 2:
        raise ValueError(f"data: there must be at least 2 classes (got {', '.join(names)})")
    return samples, list(names)


def read_classes(path: str | Path) -> list[str]:
    """Class names, one a line.

    Raises:
        ValueError: The file cannot be read, is empty or repeats a name.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"{path}: cannot be read as class names ({reason})") from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ValueError(f"{path}: must name one class a line (got an empty file)")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: every class must be named once (twice: {', '.join(twice)})")
    return names


def default_workers(processes: int) -> int:
    """Decoding processes for each of `processes` training processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(8, (cores or 1) // processes))
