"""Tensors and a JSON record in one safetensors file, whole or refused."""

import json
import zlib
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vmf.training.files import atomic_write


def write_tensors(
    path: str | Path, kind: str, tensors: dict[str, Tensor], record: dict[str, Any]
) -> Path:
    """Writes one file, atomically.

    Args:
        path: The file.
        kind: Key of the record in the file's metadata; says what the file is.
        tensors: Written contiguous, from any device.
        record: JSON-able values.

    Returns:
        `path`.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    record = {**record, "crc32": _checksum(plain)}
    # Serialised in memory first, so that a full disk is met in one place: atomic_write.
    return atomic_write(path, safetensors.torch.save(plain, {kind: json.dumps(record)}))


def read_record(path: str | Path, kind: str) -> dict[str, Any]:
    """The record of a file, without reading its tensors.

    Raises:
        ValueError: The file is missing, unreadable or of another kind.
    """
    return _open(path, kind)[1]


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, on the CPU, and the record of a file.

    Raises:
        ValueError: The file is missing, unreadable, damaged or of another kind.
    """
    file, record = _open(path, kind)
    try:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    if _checksum(tensors) != record.get("crc32"):
        raise ValueError(f"{path}: damaged (its tensors do not match its checksum)")
    return tensors, record


def is_kind(path: str | Path, kind: str) -> bool:
    """Whether `path` is a readable safetensors file of that kind."""
    try:
        read_record(path, kind)
    except ValueError:
        return False
    return True


def _open(path: str | Path, kind: str) -> tuple[Any, dict[str, Any]]:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file")
    try:
        file = safetensors.safe_open(str(path), framework="pt")
        record = (file.metadata() or {}).get(kind)
        parsed = None if record is None else json.loads(record)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({_line(error)})") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"{path}: not a file of this program (its metadata lacks {kind!r})")
    return file, parsed


def _checksum(tensors: dict[str, Tensor]) -> int:
    """CRC-32 of all tensors' bytes, in the order of their names."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
