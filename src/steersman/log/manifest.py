"""The manifest: which Parquet files make up the compacted log, and how far each segment went into them.

What it does not name is not there: a file that a crash left behind is never read, and the next compaction
writes it again under the same name or removes it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from steersman.core.errors import DataError
from steersman.engine import disk
from steersman.log.fields import Type
from steersman.log.segment import IMPORTED, is_sealed, segments_directory

MANIFEST = "manifest.json"
PARQUET = "parquet"
ASIDE = "aside"
DAY_S = 86_400

_OURS = re.compile(r".+-\d+-\d+\.(parquet|jsonl)")


class Entry(Struct, frozen=True):
    """One Parquet file.

    Attributes:
        path: below the log's directory.
        kind: what its rows are.
        problem: of the decisions; empty for outcomes, which may be of any.
        rows: how many.
        first, last: smallest and largest `at`, microseconds UTC.
    """

    path: str
    kind: Literal["decisions", "outcomes"]
    problem: str
    rows: int
    first: int
    last: int


class Types(Struct, frozen=True):
    """Field name -> type, of the context and of the candidates."""

    context: dict[str, Type] = {}
    candidate: dict[str, Type] = {}


class Retired(Struct, frozen=True):
    """A file whose rows are in another one now.

    Attributes:
        path: below the log's directory.
        at: when it was merged, microseconds UTC.
    """

    path: str
    at: int


class Manifest(Struct, frozen=True):
    """What compaction has done so far.

    Attributes:
        segments: segment -> offset up to which its records are in Parquet or set aside.
        files: in the order in which they were made.
        aside: files of records that were set aside, below the log's directory.
        types: problem -> types of its columns.
        metrics: names of the metrics that have a column.
        retired: files that were merged, and stay for those who read the manifest before.
        merges: how many there were.
    """

    segments: dict[str, int] = {}
    files: tuple[Entry, ...] = ()
    aside: tuple[str, ...] = ()
    types: dict[str, Types] = {}
    metrics: tuple[str, ...] = ()
    retired: tuple[Retired, ...] = ()
    merges: int = 0


class Files(Struct, frozen=True):
    """Paths of Parquet files, in the order in which they were made.

    Attributes:
        before: of decisions that all lie before the window.
    """

    decisions: list[str]
    outcomes: list[str]
    before: list[str] = []


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a log; an empty one if nothing was compacted yet.

    Raises:
        DataError: it is not one of ours.
    """
    path = directory / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError:
        return Manifest()
    except msgspec.MsgspecError as error:
        raise DataError(f"{path}: {error}", hint="restore it, or the Parquet files below it are lost") from None


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Replace the manifest, whole and durable: from then on its files are the log."""
    with disk.replacing(directory / MANIFEST) as aside:
        aside.write_bytes(msgspec.json.encode(manifest))


def files(
    directory: Path,
    problem: str,
    since: int,
    until: int,
    *,
    wait_s: float = math.inf,
    early_s: float = DAY_S,
    lead_s: float = 0.0,
) -> Files:
    """The Parquet files that may hold a window's decisions and their outcomes.

    Args:
        directory: of the log.
        problem: whose decisions.
        since, until: window [since, until) of the decisions, microseconds UTC.
        wait_s: seconds behind the window in which outcomes are looked for.
        early_s: seconds before the window in which outcomes are looked for: clocks differ.
        lead_s: seconds before the window in which decisions are looked for, and their outcomes.
    """
    latest = until + wait_s * 1e6
    earliest = since - max(early_s, lead_s) * 1e6
    decisions, outcomes, before = [], [], []
    for entry in read_manifest(directory).files:
        path = str(directory / entry.path)
        if entry.kind == "outcomes":
            if entry.first < latest and entry.last >= earliest:
                outcomes.append(path)
        elif entry.problem == problem and entry.first < until and entry.last >= since:
            decisions.append(path)
        elif entry.problem == problem and entry.first < since and entry.last >= since - lead_s * 1e6:
            before.append(path)
    return Files(decisions, outcomes, before)


def sweep(directory: Path, manifest: Manifest) -> int:
    """Remove what crashes left behind: what was written aside, and files of ours that the manifest does not name.

    Nobody else may be compacting; pens may be writing, and imports.

    Returns:
        how many files, and directories that were aside.
    """
    named = {entry.path for entry in manifest.files} | {one.path for one in manifest.retired} | set(manifest.aside)
    swept = disk.sweep(directory)
    for top in (PARQUET, ASIDE, IMPORTED):
        swept += sum(disk.sweep(Path(folder)) for folder, _, _ in os.walk(directory / top))
    left = [path for path in _ours(directory) if str(path.relative_to(directory)) not in named]
    left += [path for path in segments_directory(directory).glob(".*.new") if _is_dead(path)]
    for path in left:
        path.unlink(missing_ok=True)
    return swept + len(left)


def _ours(directory: Path) -> Iterator[Path]:
    for folder in (PARQUET, ASIDE):
        for path in (directory / folder).rglob("*"):
            if _OURS.fullmatch(path.name):
                yield path


def _is_dead(path: Path) -> bool:
    """Whether the pen that was making this segment is gone. It locks the file before it writes the first byte."""
    try:
        with path.open("rb") as file:
            return bool(file.read(1)) and is_sealed(file.fileno())
    except FileNotFoundError:
        return False
