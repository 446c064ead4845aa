"""Which videos there are, and which class each belongs to: class folders and list files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".webm", ".mov"})

Sample = tuple[str, int]


def scan_folder(
    root: str | Path, split: str, classes: Sequence[str] | None = None
) -> tuple[list[Sample], list[str]]:
    """Lists the videos of ``root/split/class/*``.

    Args:
        root: Folder of the data set.
        split: Name of the split's folder, such as ``"train"``.
        classes: The class names in label order. Default: the folder names, sorted.

    Returns:
        ``(path, label)`` of every video, sorted by class and name, and the class names.

    Raises:
        ValueError: The folder is missing or holds no class folder, a class folder holds no video,
            or a class folder is not among ``classes``.
    """
    folder = Path(root) / split
    if not folder.is_dir():
        raise ValueError(f"data folder: there must be a folder {folder}/CLASS/*.mp4 (found none)")
    found = sorted(item.name for item in folder.iterdir() if item.is_dir() and item.name[0] != ".")
    if not found:
        raise ValueError(f"data folder: {folder} must hold one folder per class (found none)")
    names = list(found if classes is None else classes)
    unknown = [name for name in found if name not in names]
    if unknown:
        raise ValueError(
            f"data folder: {folder} holds unknown labels (got {', '.join(unknown)}; "
            f"known: {_shorten(names)})"
        )
    samples: list[Sample] = []
    empty = []
    for name in found:
        videos = sorted(
            item
            for item in (folder / name).iterdir()
            if item.suffix.lower() in VIDEO_SUFFIXES and item.name[0] != "."
        )
        if not videos:
            empty.append(str(folder / name))
        samples += [(str(video), names.index(name)) for video in videos]
    if empty:
        raise ValueError(f"data folder: a class folder must hold videos (empty: {_shorten(empty)})")
    return samples, names


def read_list(
    file: str | Path, root: str | Path, classes: Sequence[str] | None = None
) -> list[Sample]:
    """Reads a list file of lines ``relative/path label``, as mmaction2 and PyTorchVideo have them.

    Args:
        file: The list. Blank lines are passed over; a path may contain spaces.
        root: Folder that the paths are relative to.
        classes: Class names in label order. With them a label may be a name or a number below
            their count; without them it is a number.

    Raises:
        ValueError: The list cannot be read or holds no line, or a line has no label or an unknown
            one; the message names file and line.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(f"{file}: cannot be read as a list ({reason})") from None
    samples: list[Sample] = []
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, _, label = line.strip().replace("\t", " ").rpartition(" ")
        where = f"{file}:{line_number}"
        if not path.strip():
            raise ValueError(f"{where}: a line must read 'relative/path label' (got {line!r})")
        samples.append((str(Path(root) / path.strip()), _label(label, classes, where)))
    if not samples:
        raise ValueError(f"{file}: the list must name at least one video (got an empty list)")
    return samples


def _label(text: str, classes: Sequence[str] | None, where: str) -> int:
    if classes is not None and text in classes:
        return list(classes).index(text)
    is_number = text.isascii() and text.isdigit()
    if is_number and (classes is None or int(text) < len(classes)):
        return int(text)
    known = "0, 1, 2, ..." if classes is None else _shorten(classes)
    raise ValueError(f"{where}: unknown label (got {text!r}; known: {known})")


def _shorten(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
