"""Arrays in one file, with its SHA-256 in front: written whole or not at all, and read as data, never code."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from steersman.core.errors import DataError
from steersman.engine.disk import replacing


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as an npz archive; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpacked(body: bytes, path: Path) -> dict[str, np.ndarray]:
    """The arrays of such an archive; `path` is where it lay.

    Raises:
        DataError: it is none.
    """
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} holds no arrays: {error}") from None


def write_sealed(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Write arrays to a file that appears whole."""
    body = packed(arrays)
    with replacing(path) as aside:
        aside.write_bytes(hashlib.sha256(body).digest() + body)


def read_sealed(path: Path, hint: str) -> dict[str, np.ndarray]:
    """Read what `write_sealed` wrote.

    Args:
        hint: what to do if it is damaged.
    Raises:
        FileNotFoundError: it is not there.
        DataError: it is damaged.
    """
    written = path.read_bytes()
    digest, body = written[:32], written[32:]
    if hashlib.sha256(body).digest() != digest:
        raise DataError(f"{path} is not the file that was written: its SHA-256 differs", hint=hint)
    return unpacked(body, path)
