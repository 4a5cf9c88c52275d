"""Small Parquet files of one problem and day to one: a log that is compacted often must not become a heap of files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from steersman.core.errors import DataError
from steersman.engine import Engine
from steersman.log.manifest import Entry, Manifest, Retired, write_manifest

FEWEST = 8
"""So many small files of a problem and day become one."""

SMALL_BYTES = 1 << 25
"""A file from this size on stays as it is."""

GRACE_S = 86_400.0
"""Seconds for which a file that was merged stays: a reader that began before may still need it."""

_VIEW = "steersman_merge"


def merge(directory: Path, manifest: Manifest, engine: Engine, now_us: int) -> Manifest:
    """Merge what is small, a problem and day at a time; the manifest, as it is on the disk then.

    It may be killed at any moment: the manifest names either the many files or the one, and never both. What was
    merged stays on the disk for GRACE_S, so that a reader of the manifest before still finds it.

    Args:
        directory: of the log; nobody else is compacting.
        now_us: microseconds UTC.
    Raises:
        DataError: the rows that were written are not as many as there were.
    """
    for small in list(_small(directory, manifest)):
        manifest = _merged(directory, manifest, small, engine, now_us)
        write_manifest(directory, manifest)
    return manifest


def forget(directory: Path, manifest: Manifest, now_us: int) -> Manifest:
    """Remove the merged files whose time is over; the manifest without them, as it is on the disk then."""
    due = {one.path for one in manifest.retired if one.at + GRACE_S * 1e6 <= now_us}
    if not due:
        return manifest
    kept = tuple(one for one in manifest.retired if one.path not in due)
    manifest = msgspec.structs.replace(manifest, retired=kept)
    write_manifest(directory, manifest)  # first: a file that it names must be there
    for path in due:
        (directory / path).unlink(missing_ok=True)
    return manifest


def _small(directory: Path, manifest: Manifest) -> Iterator[list[Entry]]:
    """The small files of every problem and day that has enough of them."""
    places: dict[PurePosixPath, list[Entry]] = {}
    for entry in manifest.files:
        places.setdefault(PurePosixPath(entry.path).parent, []).append(entry)
    for entries in places.values():
        if len(entries) >= FEWEST:
            small = [one for one in entries if (directory / one.path).stat().st_size < SMALL_BYTES]
            if len(small) >= FEWEST:
                yield small


def _merged(directory: Path, manifest: Manifest, small: list[Entry], engine: Engine, now_us: int) -> Manifest:
    paths = [entry.path for entry in small]
    rows = sum(entry.rows for entry in small)
    path = str(PurePosixPath(paths[0]).with_name(f"merged-{manifest.merges}-{rows}.parquet"))
    engine.view(_VIEW, [str(directory / one) for one in paths])
    written = engine.copy(f"SELECT * FROM {_VIEW}", directory / path)
    if written != rows:
        raise DataError(f"{path}: the engine wrote {written} rows of {rows}", hint="this is a defect; nothing was lost")
    one = msgspec.structs.replace(
        small[0],
        path=path,
        rows=rows,
        first=min(entry.first for entry in small),
        last=max(entry.last for entry in small),
    )
    gone = set(paths)
    return msgspec.structs.replace(
        manifest,
        files=tuple(one if entry.path == paths[0] else entry for entry in manifest.files
                    if entry.path == paths[0] or entry.path not in gone),
        retired=(*manifest.retired, *(Retired(entry, now_us) for entry in paths)),
        merges=manifest.merges + 1,
    )  # fmt: skip
