"""Fill the log from logs that others made: every row is judged before the first one becomes visible."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

import msgspec
from msgspec import Struct

from steersman.core.decision import Decision, Outcome, Problem, check_fields, decoder
from steersman.core.errors import ConfigError, DataError, did_you_mean
from steersman.engine import Engine
from steersman.engine.disk import replacing
from steersman.log.dsjson import dsjson_rows
from steersman.log.horizon import horizon_rows
from steersman.log.lines import Records, judged_lines
from steersman.log.mapped import Judged, Mapping, mapped_rows
from steersman.log.pen import Pen
from steersman.log.segment import DECISION, HEADER, OUTCOME, frame
from steersman.log.sources import is_lines

FLUSH_BYTES = 1 << 25
GROUP_BYTES = 1 << 16

FORMS: dict[str, Callable[[Path, Problem], Iterator[Judged]]] = {"horizon": horizon_rows, "dsjson": dsjson_rows}
"""Formats of other systems' logs that need no mapping."""

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
        left_out: sound rows that are no decisions to learn from; they are in the rejects file too.
    """

    rows: int = 0
    decisions: int = 0
    outcomes: int = 0
    rejected: int = 0
    left_out: int = 0


class _Keys(Struct, frozen=True):
    """What tells a Decision from an Outcome in a line of our own log."""

    decision: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    action: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_keys = decoder(_Keys)


def import_rows(
    pen: Pen,
    engine: Engine,
    source: Path,
    mapping: Mapping | None,
    problem: Problem,
    *,
    rejects: Path,
    max_reject_share: float = 0.01,
) -> Imported:
    """Append the decisions and outcomes of a source to the log. Imported twice, they count once: the ids are the same.

    Args:
        source: a table (.csv, .jsonl, .ndjson, also with .gz; .parquet), or our own log as JSON lines.
        mapping: where the fields stand in the table; None: each line is a Decision or an Outcome.
        problem: whose decisions they are.
        rejects: file for the rows that were refused, a JSON object {line, reason, row} each; replaced every time.
        max_reject_share: share of the rows in [0, 1] that may be refused.
    Raises:
        DataError: more than that share is refused, there are no rows, the mapping lacks the propensity or names
            what is not there. Nothing was appended then.
        Error: the log can not be written; run it again when it can.
    """
    if not source.is_file():
        raise DataError(f"{source} is not a file", field="source")
    if mapping is None and not is_lines(source):
        raise DataError(f"{source.name} needs a mapping: only JSON lines can be our own log", field="mapping")
    with tempfile.TemporaryDirectory(prefix="steersman-import-") as folder:
        if mapping is None:
            judged = judged_lines(source, partial(_own_records, problem=problem))
        else:
            judged = mapped_rows(engine, source, mapping, problem, Path(folder))
        return _import(pen, source, judged, rejects, max_reject_share)


def import_lines(
    pen: Pen, source: Path, form: str, problem: Problem, *, rejects: Path, max_reject_share: float = 0.01
) -> Imported:
    """Append the decisions and outcomes of a log whose format is known: no mapping is needed.

    Args:
        source: a file of lines, compressed if its name ends in .gz.
        form: `horizon` or `dsjson`; see the modules of these names.
        problem, rejects, max_reject_share: see `import_rows`; rows that are left out lie in the rejects file too, but
            are not of the share.
    Raises:
        ConfigError: there is no such format.
        DataError, Error: see `import_rows`.
    """
    if form not in FORMS:
        raise ConfigError(f"there is no format {form!r}", hint=did_you_mean(form, FORMS), field="format")
    if not source.is_file():
        raise DataError(f"{source} is not a file", field="source")
    return _import(pen, source, FORMS[form](source, problem), rejects, max_reject_share)


def _import(pen: Pen, source: Path, judged: Iterator[Judged], rejects: Path, max_reject_share: float) -> Imported:
    with tempfile.TemporaryFile(prefix="steersman-import-") as stage:
        try:
            with replacing(rejects) as aside, aside.open("wb") as refused:
                counts, first = _judge(judged, pen.max_body_bytes, stage, refused)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{source.name} can not be decompressed: {error}", field="source") from None
        _check_share(counts, first, source, rejects, max_reject_share)
        stage.seek(0)
        _append(pen, stage)
    return counts


def _judge(rows: Iterator[Judged], max_body_bytes: int, stage: IO[bytes], refused: IO[bytes]) -> tuple[Imported, str]:
    """Part the rows in two files; the counts and the first reason."""
    total = decisions = outcomes = rejected = left_out = 0
    first = ""
    for row in rows:
        total += 1
        reason = row.reason
        if any(len(body) > max_body_bytes for _, body in row.records):
            reason = f"its record is longer than {max_body_bytes} bytes, a segment of the log"
        if reason:
            rejected += not row.left_out
            left_out += row.left_out
            first = first or ("" if row.left_out else f"line {row.line}: {reason}")
            refused.write(_encode_reject({"line": row.line, "reason": reason, "row": row.row}) + b"\n")
            continue
        for kind, body in row.records:
            decisions += kind == DECISION
            outcomes += kind == OUTCOME
            stage.write(frame(kind, body))
    return Imported(total, decisions, outcomes, rejected, left_out), first


def _check_share(counts: Imported, first: str, source: Path, rejects: Path, limit: float) -> None:
    if counts.rows == 0:
        raise DataError(f"{source.name} has no rows")
    if counts.rejected > limit * counts.rows:
        raise DataError(
            f"{source.name}: {counts.rejected} of {counts.rows} rows refused, over the share {limit:g}; {first}",
            hint=f"the reasons are in {rejects}; nothing was imported",
        )


def _append(pen: Pen, stage: IO[bytes]) -> None:
    group: list[tuple[bytes, bytes]] = []
    size = waiting = 0
    limit = min(GROUP_BYTES, pen.max_body_bytes)
    while header := stage.read(HEADER.size):
        _, kind, length, _ = HEADER.unpack(header)
        if group and size + HEADER.size + length > limit:
            pen.append(group)
            waiting += size
            group, size = [], 0
        if waiting > FLUSH_BYTES:
            pen.flush()
            waiting = 0
        group.append((kind, stage.read(length)))
        size += HEADER.size + length
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
    check_fields(decision.context, problem.context, "context")
    for i, candidate in enumerate(decision.candidates):
        check_fields(candidate.features, problem.candidate, f"candidates[{i}].features")
    return ((DECISION, _encode(decision)),)
