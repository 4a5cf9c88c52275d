"""Compaction: what is new in the segments, to Parquet by problem and day; each record once, whatever crashes when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from steersman.core.decision import Problem
from steersman.core.errors import DataError
from steersman.engine import Engine
from steersman.engine.disk import alone, beside, make_directory, replacing
from steersman.log import tables
from steersman.log.manifest import ASIDE, PARQUET, Entry, Manifest, read_manifest, sweep, write_manifest
from steersman.log.merge import forget, merge
from steersman.log.rows import Aside, Part, Rows
from steersman.log.segment import Damage, Scan, imports, read_segment, segments, segments_directory

EXAMPLES = 5


class Compacted(Struct, frozen=True):
    """What a compaction did.

    Attributes:
        decisions, outcomes: records that went to Parquet.
        files: Parquet files made.
        merged: small files that became part of a larger one; they stay for a day, for those who read them now.
        aside: records that break a law of their noun or the type of a column; they lie in `aside/`.
        reasons: of the first few of these.
        torn: segments that ended in half a record.
        damage: bytes between records that are no record; such a segment is kept as `<name>.damaged`.
        segments: read to their end and removed.
        swept: files that a crashed compaction had left behind.
    """

    decisions: int = 0
    outcomes: int = 0
    files: int = 0
    merged: int = 0
    aside: int = 0
    reasons: tuple[str, ...] = ()
    torn: int = 0
    damage: tuple[Damage, ...] = ()
    segments: int = 0
    swept: int = 0


def compact(
    directory: Path, problems: Mapping[str, Problem], engine: Engine, clock: Callable[[], float] = time.time
) -> Compacted:
    """Move what is new in the segments of a log to Parquet, remove the segments that are done, merge small files.

    It may be killed at any moment and started again: every record is in the Parquet files once.

    Args:
        directory: of the log.
        problems: name -> problem, for the types of declared fields; a problem that is not there is compacted too.
        engine: reads JSON and writes Parquet.
        clock: seconds since 1970, UTC.
    Raises:
        ConflictError: another compaction of this log is running.
    """
    with alone(directory / "compact.lock", f"compaction of {directory}"):
        work = _Compaction(directory, problems, engine)
        for path in segments(directory):
            work.segment(path)
        _forget_imports(directory)
        work.merge(int(clock() * 1e6))
        return work.done


class _Compaction:
    """One run; `manifest` is what is on disk, `done` what was done so far."""

    def __init__(self, directory: Path, problems: Mapping[str, Problem], engine: Engine) -> None:
        self._directory = directory
        self._problems = problems
        self._engine = engine
        manifest = read_manifest(directory)
        self.done = Compacted(swept=sweep(directory, manifest))
        there = {path.name for path in segments(directory)}
        kept = {name: end for name, end in manifest.segments.items() if name in there}
        self.manifest = msgspec.structs.replace(manifest, segments=kept)

    def segment(self, path: Path) -> None:
        """Move what is new in one segment; the manifest is replaced when it is durable, then the segment removed."""
        start = self.manifest.segments.get(path.name, 0)
        try:
            found = read_segment(path, start)
        except FileNotFoundError:
            return  # a pen that had written nothing took its segment away
        if found.bodies:
            self._move(path, start, found)
        if found.sealed:
            _remove(path, found.damage)
        self._count(
            torn=self.done.torn + found.torn,
            damage=self.done.damage + tuple(found.damage),
            segments=self.done.segments + found.sealed,
        )

    def merge(self, now_us: int) -> None:
        """Merge small files, and remove those that were merged long ago."""
        before = len(self.manifest.retired)
        self.manifest = merge(self._directory, self.manifest, self._engine, now_us)
        self._count(merged=len(self.manifest.retired) - before)
        self.manifest = forget(self._directory, self.manifest, now_us)

    def _move(self, path: Path, start: int, found: Scan) -> None:
        rows = Rows(path.name, found)
        manifest = rows.settle(self.manifest, self._problems)
        name = f"{path.stem}-{start}-{found.end}"
        decisions = [self._decisions(name, part, manifest) for part in rows.decisions()]
        outcomes = [self._outcomes(name, part, manifest) for part in rows.outcomes()]
        aside = (self._aside(name, rows.aside),) if rows.aside else ()
        manifest = msgspec.structs.replace(
            manifest,
            segments={**manifest.segments, path.name: found.end},
            files=(*manifest.files, *decisions, *outcomes),
            aside=manifest.aside + aside,
        )
        write_manifest(self._directory, manifest)
        self.manifest = manifest
        self._count(
            decisions=self.done.decisions + sum(entry.rows for entry in decisions),
            outcomes=self.done.outcomes + sum(entry.rows for entry in outcomes),
            files=self.done.files + len(decisions) + len(outcomes),
            aside=self.done.aside + len(rows.aside),
            reasons=(*self.done.reasons, *(one.reason for one in rows.aside))[:EXAMPLES],
        )

    def _count(self, **changes: object) -> None:
        self.done = msgspec.structs.replace(self.done, **changes)

    def _decisions(self, name: str, part: Part, manifest: Manifest) -> Entry:
        with self._rows(part) as rows:
            sql = tables.decisions_sql(rows, manifest.types[part.problem], part.extras, max(map(len, part.bodies)))
            return self._table("decisions", f"problem={part.problem}/date={_date(part.day)}/{name}", part, sql)

    def _outcomes(self, name: str, part: Part, manifest: Manifest) -> Entry:
        with self._rows(part) as rows:
            sql = tables.outcomes_sql(rows, manifest.metrics, part.extras, max(map(len, part.bodies)))
            return self._table("outcomes", f"date={_date(part.day)}/{name}", part, sql)

    @contextmanager
    def _rows(self, part: Part) -> Iterator[Path]:
        with beside(self._directory / "rows") as folder:
            path = folder / "rows.ndjson"
            path.write_bytes(b"\n".join(part.bodies))
            yield path

    def _table(self, kind: Literal["decisions", "outcomes"], place: str, part: Part, sql: str) -> Entry:
        path = f"{PARQUET}/{kind}/{place}.parquet"
        make_directory((self._directory / path).parent)
        rows = self._engine.copy(sql, self._directory / path)
        if rows != len(part.bodies):
            raise DataError(f"{path}: the engine wrote {rows} rows of {len(part.bodies)}", hint="this is a defect")
        return Entry(path, kind, part.problem, rows, part.first, part.last)

    def _aside(self, name: str, records: list[Aside]) -> str:
        path = f"{ASIDE}/{name}.jsonl"
        with replacing(self._directory / path) as aside:
            aside.write_bytes(msgspec.json.Encoder().encode_lines(records))
        return path


def _remove(path: Path, damage: list[Damage]) -> None:
    """Remove a segment that is done. One with damage is kept under another name: something in it was not read."""
    if damage:
        path.replace(path.with_suffix(path.suffix + ".damaged"))
    else:
        path.unlink(missing_ok=True)


def _forget_imports(directory: Path) -> None:
    """Remove the directories of imports of which no segment is left."""
    for folder in imports(directory):
        for path in (segments_directory(folder), folder):
            with suppress(OSError):  # there is one left, or the last compaction was killed here
                path.rmdir()


def _date(day: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).strftime("%Y-%m-%d")
