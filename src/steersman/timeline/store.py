"""A build on disk: .npy arrays mapped into memory, texts as UTF-8, the rest JSON. A directory appears whole or not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from steersman.core.decision import decoder
from steersman.core.errors import DataError, NotFoundError
from steersman.core.features import Encoder, Raw
from steersman.core.profile import Profile
from steersman.core.slots import Slots
from steersman.engine.disk import appearing
from steersman.timeline.built import DECISION_IDS, STEPS, Built, Counts, Ids, RawRows, texts_of, write_header
from steersman.timeline.shards import joined

_FORMAT = 6
_INDEX = "build.json"


class _Index(Struct, frozen=True, kw_only=True):
    """What is not an array. digest: of the build, so that damage on disk is noticed."""

    format: int
    rows: int
    since: int
    until: int
    digest: str
    counts: Counts
    metric_names: tuple[str, ...]
    encoder: Encoder
    profiles: tuple[Profile, ...]


class _Parts(Struct, frozen=True, kw_only=True):
    """The index of a build in parts. digest: of theirs."""

    format: int
    parts: tuple[str, ...]
    digest: str


def digest_of(parts: Sequence[Built]) -> str:
    """The digest of a build in parts; of one part its own."""
    if len(parts) == 1:
        return parts[0].digest
    return hashlib.sha256(" ".join(part.digest for part in parts).encode()).hexdigest()


def save(built: Built | Sequence[Built], directory: Path) -> None:
    """Write a build, in one part or in several: aside, fsynced, then renamed, so that the directory is there whole
    or not at all. What the build had put on disk already is moved: read the build again to go on with it.

    Raises:
        ConflictError: the directory is there already.
    """
    parts = [built] if isinstance(built, Built) else list(built)
    with appearing(directory) as aside:
        if len(parts) == 1:
            _write(parts[0], aside)
        else:
            _write_parts(parts, aside)


def parts_of(directory: Path) -> list[Path]:
    """The directories of a build's parts, each of which is a build that `load` reads; of a build in one part itself.

    Raises:
        NotFoundError: there is no build.
    """
    index = _raw_index(directory)
    if "parts" not in index:
        return [directory]
    return [directory / name for name in msgspec.convert(index, _Parts).parts]


def profiles_of(directory: Path) -> tuple[Profile, ...]:
    """The profiles of a build's fields, without its rows; empty if its encoder was given."""
    return _index(parts_of(directory)[0]).profiles


def encoder_of(directory: Path) -> Encoder:
    """The encoder of a build, without its rows."""
    return _index(parts_of(directory)[0]).encoder


class Summary(NamedTuple):
    """Window [since, until) of a build, microseconds UTC, and its decisions."""

    since: int
    until: int
    decisions: int


def summary_of(directory: Path) -> Summary:
    """What a build holds, without its rows."""
    parts = [_index(part) for part in parts_of(directory)]
    return Summary(parts[0].since, parts[0].until, sum(part.rows for part in parts))


def load(directory: Path) -> Built:
    """Read a build. Numbers stay on disk and are mapped into memory, read-only; of a build in parts, all the parts
    one after the other are in memory.

    Raises:
        NotFoundError: there is no build.
        DataError: it is damaged, or of another version of Steersman.
    """
    paths = parts_of(directory)
    if paths != [directory]:
        return joined([load(path) for path in paths])
    index = _index(directory)
    built = _read(directory, index)
    if built.digest != index.digest:
        raise DataError(f"{directory} is damaged: its digest is {built.digest}, was {index.digest}", hint="build again")
    return built


def _index(directory: Path) -> _Index:
    return msgspec.convert(_raw_index(directory), _Index)


def _raw_index(directory: Path) -> dict[str, Any]:
    path = directory / _INDEX
    if not path.is_file():
        raise NotFoundError(f"{directory} is not a build", hint="steersman build makes one")
    index: dict[str, Any] = decoder(dict)(path.read_bytes())
    if index.get("format") != _FORMAT:
        raise DataError(f"{path}: format {index.get('format')}, this version reads {_FORMAT}", hint="build it again")
    return index


def _write_parts(parts: Sequence[Built], directory: Path) -> None:
    names = tuple(f"part-{k:05d}" for k in range(len(parts)))
    for name, part in zip(names, parts, strict=True):
        (directory / name).mkdir()
        _write(part, directory / name)
    _write_index(directory, _Parts(format=_FORMAT, parts=names, digest=digest_of(parts)))


def _read(directory: Path, index: _Index) -> Built:
    n = index.rows
    steps: dict[str, Any] = {name: _rows(directory, name, n) for name in STEPS}
    ids_of_candidates = _texts(directory, "candidate_ids", n)
    return Built(
        encoder=index.encoder,
        raw=RawRows(_raw(directory, "context", n), _raw(directory, "candidate", n), ids_of_candidates),
        **steps,
        slots=_slots(directory),
        metric_names=index.metric_names,
        at=_map(directory, "at"),
        ids=Ids(*(_map(directory, f"{DECISION_IDS}.{part}") for part in ("codes", "ends", "utf8"))),
        draws=_map(directory, "draws"),
        counts=index.counts,
        since=index.since,
        until=index.until,
        profiles=index.profiles,
        directory=directory,
    )


def _slots(directory: Path) -> Slots | None:
    names = [field.name for field in fields(Slots) if _file(directory, f"slots_{field.name}").exists()]
    return Slots(**{name: _map(directory, f"slots_{name}") for name in names}) if names else None


def _raw(directory: Path, name: str, n: int) -> Raw:
    return Raw(
        _rows(directory, f"{name}_numbers", n),
        _texts(directory, f"{name}_texts", n),
        _rows(directory, f"{name}_lists", n),
    )


def _write(built: Built, directory: Path) -> None:
    with ThreadPoolExecutor(1) as disk, ThreadPoolExecutor(1) as beside:
        arrays, durable = built.arrays | built.ids.arrays, list[Future[None]]()
        digest = beside.submit(lambda: built.digest)
        # What lies on the disk already first: it becomes durable while the rest is written.
        for name in sorted(arrays, key=lambda name: not isinstance(arrays[name], np.memmap)):
            _write_array(directory, name, arrays[name])
            durable.append(disk.submit(_fsync, _file(directory, name)))
        digest.result()
        for done in durable:
            done.result()
    index = _Index(
        format=_FORMAT,
        rows=len(built),
        since=built.since,
        until=built.until,
        digest=built.digest,
        counts=built.counts,
        metric_names=built.metric_names,
        encoder=built.encoder,
        profiles=built.profiles,
    )
    _write_index(directory, index)


def _fsync(path: Path) -> None:
    """Make a file durable. Only the first who asks is told that the disk refused."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _write_index(directory: Path, index: Struct) -> None:
    (directory / _INDEX).write_bytes(msgspec.json.format(msgspec.json.encode(index)))


def _write_array(directory: Path, name: str, array: np.ndarray) -> None:
    path = _file(directory, name)
    if isinstance(array, np.memmap) and array.filename is not None:
        Path(array.filename).rename(path)  # the build put it there because it is large
        return
    by_columns = array.flags.f_contiguous and not array.flags.c_contiguous
    body = np.ascontiguousarray(array.T if by_columns else array)
    with path.open("wb") as file:  # numpy's own writing hides why a disk refuses
        write_header(file, array.shape, array.dtype, by_columns=by_columns)
        if body.size:
            file.write(body.data)


def _rows(directory: Path, name: str, n: int) -> np.ndarray:
    """[n, ...]; an array that was saved as one row becomes a broadcast view again."""
    return _repeated(_map(directory, name), n)


def _texts(directory: Path, name: str, n: int | None = None) -> np.ndarray:
    """[n, ...] object; equal texts are one object."""
    texts = texts_of(_map(directory, f"{name}.ends"), _map(directory, f"{name}.utf8"))
    rows = texts[_map(directory, f"{name}.codes")]
    return rows if n is None else _repeated(rows, n)


def _repeated(array: np.ndarray, n: int) -> np.ndarray:
    return array if len(array) == n else np.broadcast_to(array, (n, *array.shape[1:]))


def _map(directory: Path, name: str) -> np.ndarray:
    path = _file(directory, name)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} is missing", hint="build it again") from None
    except (ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged: {error}", hint="build it again") from None


def _file(directory: Path, name: str) -> Path:
    return directory / f"{name}.npy"
