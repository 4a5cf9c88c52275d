"""Requests that were answered, kept over a restart of the server to warm up what it loads then."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from steersman.config import Project
from steersman.core.errors import DiskError
from steersman.engine.disk import replacing
from steersman.serve.plane import Plane
from steersman.serve.predicting import Models

Array = np.ndarray
T = TypeVar("T")
DECIDE, PREDICT = "decide", "predict"


class _Tensor(Struct, array_like=True):
    """An array; `data` of numbers and booleans, `texts` of texts."""

    dtype: str
    shape: list[int]
    data: bytes
    texts: list[str]


class Recorded:
    """The requests that a plane and its models recorded, on the disk of a project: `recorded/NAME.decide` and
    `recorded/NAME.predict`, which only their owner may read.

    What can not be read or written is told on stderr and costs nothing but the warm-up.
    """

    def __init__(self, project: Project, plane: Plane, models: Models) -> None:
        self._directory = project.root / "recorded"
        self._plane = plane
        self._models = models

    def recall(self) -> None:
        """Let plane and models know what those before them recorded; before they load anything."""
        self._plane.recall(self._all(DECIDE, list[bytes]))
        found = self._all(PREDICT, list[dict[str, _Tensor]])
        for name, several in found.items():
            self._models.recorded.of(name).extend(feeds for one in several if (feeds := _feeds(one)) is not None)

    def keep(self) -> None:
        """Write down what they have recorded by now."""
        for name, bodies in self._plane.recorded().items():
            self._write(f"{name}.{DECIDE}", bodies)
        for name, several in self._models.recorded.all().items():
            self._write(f"{name}.{PREDICT}", [{key: _tensor(array) for key, array in one.items()} for one in several])

    def _all(self, kind: str, type: type[T]) -> dict[str, T]:
        found = {}
        for path in sorted(self._directory.glob(f"*.{kind}")):
            try:
                found[path.name.removesuffix(f".{kind}")] = msgspec.msgpack.decode(path.read_bytes(), type=type)
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                _tell(path, error)
        return found

    def _write(self, name: str, requests: object) -> None:
        path = self._directory / name
        try:
            with replacing(path) as aside:
                aside.touch(mode=0o600)
                aside.write_bytes(msgspec.msgpack.encode(requests))
        except (OSError, DiskError) as error:
            _tell(path, error)


def _tensor(array: Array) -> _Tensor:
    if array.dtype == object:
        return _Tensor("object", list(array.shape), b"", array.ravel().tolist())
    return _Tensor(array.dtype.str, list(array.shape), array.tobytes(), [])


def _feeds(tensors: Mapping[str, _Tensor]) -> dict[str, Array] | None:
    """None: it is damaged."""
    try:
        return {name: _array(tensor) for name, tensor in tensors.items()}
    except (ValueError, TypeError):
        return None


def _array(tensor: _Tensor) -> Array:
    if tensor.dtype == "object":
        return np.array(tensor.texts, dtype=object).reshape(tensor.shape)
    return np.frombuffer(tensor.data, np.dtype(tensor.dtype)).reshape(tensor.shape)


def _tell(path: Path, error: Exception) -> None:
    sys.stderr.write(f"recorded requests {path}: {error}\n")
