"""Fill the log from logs that others made: every row is judged before the first one becomes visible."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from steersman.core.decision import Decision, Numbers, Outcome, Problem, check_fields, decoder
from steersman.core.errors import ConfigError, DataError, did_you_mean
from steersman.engine import Engine
from steersman.engine.disk import appearing, replacing
from steersman.log import vectors
from steersman.log.behavior import Behavior, settle_all
from steersman.log.dsjson import dsjson_rows
from steersman.log.foreign import Job, Judged, Source
from steersman.log.horizon import horizon_rows
from steersman.log.lines import Records, judged_lines
from steersman.log.mapped import mapped_rows
from steersman.log.minari import minari_rows
from steersman.log.pen import Pen, fresh_name
from steersman.log.segment import DECISION, HEADER, IMPORTED, OUTCOME, frame
from steersman.log.sources import is_lines

FLUSH_BYTES = 1 << 25
GROUP_BYTES = 1 << 16
PROGRESS_ROWS = 1000
ROOM = 64
"""Bytes by which a record may grow when its propensity is settled."""

Progress = Callable[[int, int, dict[str, float]], None]

FORMS: dict[str, Callable[[Job], Iterator[Judged]]] = {
    "dsjson": dsjson_rows,
    "horizon": horizon_rows,
    "minari": minari_rows,
}
"""Formats of other systems' logs that need no mapping."""

ASKABLE = ("horizon", "minari")
"""Formats whose rows may lack a propensity."""

QUERYABLE = ("horizon",)
"""Formats that are tables, so that a query may give them."""

_encode = msgspec.json.Encoder().encode
_encode_reject = msgspec.json.Encoder(enc_hook=str).encode
_decode_decision = decoder(Decision)
_decode_outcome = decoder(Outcome)


class Imported(Struct, frozen=True):
    """What an import did.

    Attributes:
        rows: rows or lines of the source.
        decisions, outcomes: records appended to the log.
        rejected: rows that were refused; they are in the rejects file.
        behavior: where the propensities come from that the source did not have; None: it had all of them.
    """

    rows: int = 0
    decisions: int = 0
    outcomes: int = 0
    rejected: int = 0
    behavior: Behavior | None = None


class _Keys(Struct, frozen=True):
    """What tells a Decision from an Outcome in a line of our own log."""

    decision: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    action: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_keys = decoder(_Keys)


@contextmanager
def at_once(directory: Path, segment_bytes: int = 1 << 26) -> Iterator[Pen]:
    """A pen for an import: the log has its records from one instant on, the end of the block, all of them or none.

    If the block raises, what was appended is removed; if the process is killed, the next import or compaction does it.

    Args:
        directory: of the log.
        segment_bytes: see Pen.
    Raises:
        Error, OSError: the log can not be written.
    """
    with (
        appearing(directory / IMPORTED / fresh_name()) as aside,
        Pen(aside, segment_bytes=segment_bytes) as pen,
    ):
        yield pen


def import_log(
    pen: Pen,
    engine: Engine,
    source: Source,
    problem: Problem,
    *,
    rejects: Path,
    max_reject_share: float = 0.01,
    progress: Progress = lambda done, total, figures: None,
) -> Imported:
    """Append the decisions and outcomes of a source to the log. Imported twice, they count once: the ids are the same.

    Args:
        pen: of `at_once`; with another one what was appended before an error of the disk stays in the log.
        source: what is read, and how.
        problem: whose decisions they are.
        rejects: file for the rows that were refused, a JSON object {line, reason, row} each; replaced every time.
        max_reject_share: share of the rows in [0, 1] that may be refused.
        progress: told the rows so far, 0 because nobody knows how many there are, and how many were refused.
    Raises:
        ConfigError: the parts of the source do not fit together.
        DataError: more than that share is refused, there are no rows, the propensities are missing or the mapping
            names what is not there; the model of the behavior does not explain the log. Nothing was appended then.
        DiskError: the log could not be written any more; run it again when it can.
    """
    check_source(source)
    box = vectors.box_of(problem, source.propensities)
    with tempfile.TemporaryDirectory(prefix="steersman-import-") as folder, tempfile.TemporaryFile() as stage:
        job = Job(engine, source, problem, Path(folder))
        limit = pen.max_body_bytes - (ROOM if source.propensities != "logged" else 0)
        try:
            with replacing(rejects) as aside, aside.open("wb") as refused:
                counts, first = _judge(_rows(job), limit, stage, refused, progress)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{source.name} can not be decompressed: {error}", field="source") from None
        _check_share(counts, first, source, rejects, max_reject_share)
        if source.propensities == "logged":
            _append(pen, _staged(stage))
            return counts
        behavior = settle_all(lambda: _staged(stage), source.propensities, box, lambda records: _append(pen, records))
        return msgspec.structs.replace(counts, behavior=behavior)


def check_source(source: Source) -> None:
    """Raise ConfigError if the parts of the source do not fit together, DataError if its file is not there."""
    if source.form and source.form not in FORMS:
        raise ConfigError(f"there is no format {source.form!r}", hint=did_you_mean(source.form, FORMS), field="format")
    if source.path is None and not source.sql:
        raise ConfigError("there is nothing to import", hint="name a file, or a query with --sql", field="source")
    if source.form and source.mapping is not None:
        raise ConfigError(f"the format {source.form} is known: it takes no mapping", hint="leave one of them out")
    if source.sql and source.mapping is None and source.form not in QUERYABLE:
        raise ConfigError(
            "the rows of a query are a table, and nothing says where the fields stand in it",
            hint=f"add --mapping, or --format {QUERYABLE[0]} if they are rows of that format",
        )
    if source.propensities != "logged" and source.mapping is None and source.form not in ASKABLE:
        what = f"the format {source.form}" if source.form else "our own log"
        raise ConfigError(
            f"every row of {what} has its propensity: there is none to {source.propensities}",
            hint="leave out --propensity; JSON lines without propensities are read with --mapping",
            field="propensity",
        )
    if source.path is not None and not source.path.is_file() and source.form != "minari":
        raise DataError(f"{source.path} is not a file", field="source")


def _rows(job: Job) -> Iterator[Judged]:
    source = job.source
    if source.form:
        return FORMS[source.form](job)
    if source.mapping is not None:
        return mapped_rows(job, source.mapping)
    if not is_lines(job.path):
        raise DataError(
            f"{source.name} needs a mapping: only JSON lines can be our own log",
            hint="--mapping FILE.toml says where our fields stand, e.g. action = 'item'; or name a --format",
            field="mapping",
        )
    return judged_lines(job.path, partial(_own_records, problem=job.problem))


def _judge(
    rows: Iterator[Judged], max_body_bytes: int, stage: IO[bytes], refused: IO[bytes], progress: Progress
) -> tuple[Imported, str]:
    """Part the rows in two files; the counts and the first reason."""
    total = decisions = outcomes = rejected = 0
    first = ""
    for row in rows:
        total += 1
        if total % PROGRESS_ROWS == 0:
            progress(total, 0, {"refused": float(rejected)})
        reason = row.reason
        if any(len(body) > max_body_bytes for _, body in row.records):
            reason = f"its record is longer than {max_body_bytes} bytes, a segment of the log"
        if reason:
            rejected += 1
            first = first or f"line {row.line}: {reason}"
            refused.write(_encode_reject({"line": row.line, "reason": reason, "row": row.row}) + b"\n")
            continue
        for kind, body in row.records:
            decisions += kind == DECISION
            outcomes += kind == OUTCOME
            stage.write(frame(kind, body))
    return Imported(total, decisions, outcomes, rejected), first


def _check_share(counts: Imported, first: str, source: Source, rejects: Path, limit: float) -> None:
    if counts.rows == 0:
        raise DataError(f"{source.name} has no rows", hint="is it the right file, or the right query?")
    if counts.rejected > limit * counts.rows:
        raise DataError(
            f"{source.name}: {counts.rejected} of {counts.rows} rows refused, over the share {limit:g}; {first}",
            hint=f"the reasons are in {rejects}; nothing was imported",
        )


def _staged(stage: IO[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """The records of the stage from its beginning, (kind, body) each."""
    stage.seek(0)
    while header := stage.read(HEADER.size):
        _, kind, length, _ = HEADER.unpack(header)
        yield kind, stage.read(length)


def _append(pen: Pen, records: Iterable[tuple[bytes, bytes]]) -> None:
    group: list[tuple[bytes, bytes]] = []
    size = waiting = 0
    limit = min(GROUP_BYTES, pen.max_body_bytes)
    for kind, body in records:
        length = HEADER.size + len(body)
        if group and size + length > limit:
            pen.append(group)
            waiting += size
            group, size = [], 0
        if waiting > FLUSH_BYTES:
            pen.flush()
            waiting = 0
        group.append((kind, body))
        size += length
    pen.append(group)
    pen.flush()


def _own_records(row: bytes, *, problem: Problem) -> Records:
    keys = _decode_keys(row)
    if keys.decision is not msgspec.UNSET:
        return ((OUTCOME, _encode(_decode_outcome(row))),)
    if keys.action is msgspec.UNSET:
        raise DataError("neither a decision (no action) nor an outcome (no decision)")
    decision = _decode_decision(row)
    if decision.problem != problem.name:
        raise DataError(f"the decision is of problem {decision.problem!r}, not {problem.name}", field="problem")
    if isinstance(problem.actions, Numbers):
        vectors.check(decision.action, problem.actions)
    check_fields(decision.context, problem.context, "context")
    for i, candidate in enumerate(decision.candidates):
        check_fields(candidate.features, problem.candidate, f"candidates[{i}].features")
    return ((DECISION, _encode(decision)),)
