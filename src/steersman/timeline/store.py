"""A build on disk: .npy arrays mapped into memory, texts as UTF-8, the rest JSON. A directory appears whole or not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch, array_fields
from steersman.core.decision import decoder
from steersman.core.errors import ConflictError, DataError, NotFoundError
from steersman.core.features import Encoder, Raw
from steersman.engine.disk import fsync_directory, make_directory
from steersman.timeline.built import Built, Counts, RawRows

_FORMAT = 1
_INDEX = "build.json"
_NUMBERS = ("context_numbers", "candidate_numbers")
_TEXTS = ("context_texts", "candidate_texts", "candidate_ids", "decision_ids")


class _Index(Struct, frozen=True, kw_only=True):
    """What is not an array. digest: of the Batch, so that damage on disk is noticed."""

    format: int
    rows: int
    since: int
    until: int
    digest: str
    counts: Counts
    metric_names: tuple[str, ...]
    encoder: Encoder


def save(built: Built, directory: Path) -> None:
    """Write a build: aside, fsynced, then renamed, so that the directory is there whole or not at all.

    Raises:
        ConflictError: the directory is there already.
    """
    if directory.exists():
        raise ConflictError(f"{directory} is there already", hint="a build is written once")
    make_directory(directory.parent)
    aside = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)  # left by a process that died and had the same number
    aside.mkdir()
    try:
        _write(built, aside)
        fsync_directory(aside)
        aside.rename(directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    fsync_directory(directory.parent)


def load(directory: Path) -> Built:
    """Read a build. Numbers stay on disk and are mapped into memory, read-only.

    Raises:
        NotFoundError: there is no build.
        DataError: it is damaged, or of another version of Steersman.
    """
    path = directory / _INDEX
    if not path.is_file():
        raise NotFoundError(f"{directory} is not a build", hint="steersman build makes one")
    index = decoder(_Index)(path.read_bytes())
    if index.format != _FORMAT:
        raise DataError(f"{path}: format {index.format}, this version reads {_FORMAT}", hint="build it again")
    arrays = {name: _read(directory, name, index.rows) for name in (*array_fields(), *_NUMBERS)}
    texts = {name: _read_texts(directory, name, index.rows) for name in _TEXTS}
    batch = Batch(
        encoder=index.encoder, metric_names=index.metric_names, **{name: arrays[name] for name in array_fields()}
    )
    if batch.digest != index.digest:
        raise DataError(f"{directory} is damaged: its digest is {batch.digest}, was {index.digest}", hint="build again")
    raw = RawRows(
        Raw(arrays["context_numbers"], texts["context_texts"]),
        Raw(arrays["candidate_numbers"], texts["candidate_texts"]),
        texts["candidate_ids"],
    )
    return Built(batch, raw, texts["decision_ids"], index.counts, index.since, index.until)


def _write(built: Built, directory: Path) -> None:
    for name in array_fields():
        _write_array(directory, name, getattr(built.batch, name))
    for name, raw in (("context", built.raw.context), ("candidate", built.raw.candidates)):
        _write_array(directory, f"{name}_numbers", raw.numbers)
        _write_texts(directory, f"{name}_texts", raw.texts)
    _write_texts(directory, "candidate_ids", built.raw.ids)
    _write_texts(directory, "decision_ids", built.decision_ids)
    index = _Index(
        format=_FORMAT,
        rows=len(built.batch),
        since=built.since,
        until=built.until,
        digest=built.batch.digest,
        counts=built.counts,
        metric_names=built.batch.metric_names,
        encoder=built.batch.encoder,
    )
    with (directory / _INDEX).open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(index)))
        _make_last(file)


def _write_array(directory: Path, name: str, array: np.ndarray) -> None:
    with _path(directory, name).open("wb") as file:
        np.save(file, _without_repeats(array), allow_pickle=False)
        _make_last(file)


def _read(directory: Path, name: str, n: int) -> np.ndarray:
    """[n, ...]; an array that was saved as one row becomes a broadcast view again."""
    array = _map(directory, name)
    return array if len(array) == n else np.broadcast_to(array, (n, *array.shape[1:]))


def _write_texts(directory: Path, name: str, texts: np.ndarray) -> None:
    """Three arrays: the different texts as UTF-8 one after the other, where each ends, and which one stands where."""
    rows = _without_repeats(texts)
    flat = rows.ravel().tolist()
    code_of = {text: code for code, text in enumerate(dict.fromkeys(flat))}
    encoded = [text.encode() for text in code_of]
    codes = np.fromiter(map(code_of.__getitem__, flat), dtype=np.int64, count=len(flat))
    _write_array(directory, f"{name}.codes", codes.reshape(rows.shape))
    _write_array(directory, f"{name}.ends", np.cumsum([len(text) for text in encoded], dtype=np.int64))
    _write_array(directory, f"{name}.utf8", np.frombuffer(b"".join(encoded), dtype=np.uint8))


def _read_texts(directory: Path, name: str, n: int) -> np.ndarray:
    """[n, ...] object; equal texts are one object."""
    ends = _map(directory, f"{name}.ends").tolist()
    utf8 = _map(directory, f"{name}.utf8").tobytes()
    texts = np.array([utf8[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)], dtype=object)
    rows = texts[_map(directory, f"{name}.codes")]
    return rows if len(rows) == n else np.broadcast_to(rows, (n, *rows.shape[1:]))


def _without_repeats(array: np.ndarray) -> np.ndarray:
    """Of a broadcast array the row that all rows are."""
    return array[:1] if array.strides[0] == 0 else array


def _map(directory: Path, name: str) -> np.ndarray:
    path = _path(directory, name)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing", hint="build it again") from None
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged: {error}", hint="build it again") from None


def _path(directory: Path, name: str) -> Path:
    return directory / f"{name}.npy"


def _make_last(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
