"""build: from the files of a log to a Batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.batch import Batch
from steersman.core.decision import One, Problem
from steersman.core.errors import DataError
from steersman.core.features import Encoder, Raw
from steersman.engine import Engine
from steersman.timeline import choices, episodes, facts, fields, sql
from steersman.timeline.built import Built, Counts, Files, RawRows
from steersman.timeline.episodes import NO_END, TERMINATED, TRUNCATED, Episodes, Rows
from steersman.timeline.facts import Facts
from steersman.timeline.fields import Field
from steersman.timeline.sql import Census, Columns, Tables
from steersman.timeline.statistics import Source

_BLOCK = 16_384


def build(
    engine: Engine,
    problem: Problem,
    files: Files,
    *,
    since: int,
    until: int,
    as_of: int,
    encoder: Encoder | None = None,
) -> Built:
    """Join decisions with their outcomes, order them into episodes and encode them; the laws are those of this room.

    Args:
        files: of the log. More than the window needs does no harm.
        since, until: window of decisions [since, until), microseconds UTC.
        as_of: the instant of the build, microseconds UTC: what happened later does not exist.
        encoder: to use as it is; None: one is fitted on the decisions that enter.
    Raises:
        DataError: no decision enters, or a row breaks a law; it names the decision.
    """
    if not isinstance(problem.actions, One):
        raise DataError(
            f"problem {problem.name}: actions of kind {type(problem.actions).__name__.lower()} can not be built yet",
            hint='actions of kind "one" can',
            field="actions",
        )
    tables = sql.tables(engine, files, sql.window(problem, since, until, as_of))
    census = _census(tables)
    plan = _plan(tables, problem, problem.actions.names, encoder)
    columns = tables.rows(fields.columns_of(plan.context))
    ids = columns["id"]
    _check_propensity(columns["propensity"], ids)
    came = facts.gather(tables, ids, problem)
    reward = facts.rewards(problem, came, ids)
    offered = choices.gather(tables, plan.candidate, ids, shared=plan.shared)
    choices.check_names(offered, problem.actions.names, ids)
    rows = _rows(columns, came)
    ended = episodes.cut(rows, problem.horizon)
    action = choices.places(offered, columns["action"], ids)
    raw = RawRows(fields.raw(plan.context, columns, len(ids)), offered.raw, offered.ids)
    batch = Batch(
        encoder=plan.encoder,
        context=_encoded(plan.encoder, raw.context),
        candidates=offered.encoded(plan.encoder),
        mask=offered.mask,
        action=action,
        propensity=columns["propensity"],
        reward=reward,
        metrics=came.metrics,
        discount=episodes.discounts(problem, ended, rows.at),
        next=ended.next,
        unit=rows.unit,
        metric_names=came.names,
    )
    return Built(batch, raw, ids, _counts(tables, census, rows, came, ended), since, until)


@dataclass(frozen=True)
class _Plan:
    """The encoder and where its fields are; shared: all decisions have the same candidates."""

    encoder: Encoder
    context: tuple[Field, ...]
    candidate: tuple[Field, ...]
    shared: bool


def _plan(tables: Tables, problem: Problem, names: tuple[str, ...], encoder: Encoder | None) -> _Plan:
    declared = fields.declared(encoder.candidate) if encoder else problem.candidate
    shared = tables.same_candidates(fields.candidate_columns(tables, declared))
    context, candidate = Source(tables, "kept"), Source(tables, "offered", shared)
    if encoder is None:
        found = fields.pick(context, problem.context), fields.pick(candidate, problem.candidate)
        encoder = Encoder(fields.fit(context, found[0]), fields.fit(candidate, found[1]), tuple(sorted(names)))
    else:
        found = fields.pick_for(context, encoder.context), fields.pick_for(candidate, encoder.candidate)
    if not encoder.candidate_width:
        raise DataError(
            f"problem {problem.name}: candidates have neither names nor features, so nothing can tell them apart",
            hint="list actions.names, or log features of the candidates",
            field="actions.names",
        )
    return _Plan(encoder, *found, shared)


def _census(tables: Tables) -> Census:
    census = tables.census()
    if not census.entering:
        window = tables.window
        raise DataError(
            f"no decision enters: of {census.logged} logged in [{window.since}, {window.until}) "
            f"{census.waiting} still wait for outcomes at {window.as_of}",
            hint="a decision enters once wait_s is over: build later, or look at the window",
        )
    return census


def _check_propensity(propensity: np.ndarray, ids: np.ndarray) -> None:
    bad = np.flatnonzero(~((propensity > 0) & (propensity <= 1)))
    if bad.size:
        raise DataError(
            f"decision {ids[bad[0]]}: propensity is {propensity[bad[0]]:g}, must be in (0, 1] "
            f"({bad.size} such rows of {len(ids)})",
            hint="log the probability with which the action was taken: nothing may stand in for it",
            field="propensity",
        )


def _encoded(encoder: Encoder, raw: Raw) -> np.ndarray:
    """[N, F] f32, in blocks of rows that stay in the processor's cache: 4 times as fast as in one go."""
    context = np.empty((len(raw.numbers), encoder.context_width), dtype=np.float32)
    for start in range(0, len(context), _BLOCK):
        rows = slice(start, start + _BLOCK)
        context[rows] = encoder.encode_context(Raw(raw.numbers[rows], raw.texts[rows]))
    return context


def _rows(columns: Columns, came: Facts) -> Rows:
    return Rows(columns["unit"], columns["at"], columns["step"], columns["clock"], came.ends, came.late_ends)


def _counts(tables: Tables, census: Census, rows: Rows, came: Facts, ended: Episodes) -> Counts:
    last = ended.next < 0
    return Counts(
        decisions=census.entering,
        waiting=census.waiting,
        duplicates=census.logged - census.waiting - census.entering,
        outcomes=came.outcomes,
        late=came.late,
        late_ends=int(came.late_ends.sum()),
        dangling=tables.dangling(came.outcomes + came.late),
        duplicate_outcomes=tables.duplicate_outcomes(),
        without_outcome=came.without,
        units=int(rows.unit[-1]) + 1,
        episodes=int(last.sum()),
        terminated=int((ended.ends == TERMINATED).sum()),
        truncated=int((ended.ends == TRUNCATED).sum()),
        open=int((last & (ended.ends == NO_END)).sum()),
    )
