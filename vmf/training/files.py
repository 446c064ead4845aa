"""Files that are either the old one or the new one, never half of either."""

import os
from pathlib import Path


def atomic_write(path: str | Path, data: bytes | str) -> Path:
    """Replaces a file in one step.

    The bytes go to a temporary file beside the target and are flushed to the disk; only then does
    the temporary file take the target's name. A full disk, a kill or a power cut leaves the old
    file as it was.

    Args:
        path: The file. Its folder must exist.
        data: All of its new content; text is written as UTF-8.

    Returns:
        `path`.

    Raises:
        OSError: The content could not be written (`filename` names the target).
    """
    path = Path(path)
    # One fixed name per target: what a kill leaves behind is overwritten by the next write.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    sync_folder(path.parent)
    return path


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
