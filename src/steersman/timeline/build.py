"""build: from the files of a log to its decisions in order, joined with what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from steersman.core import reward
from steersman.core.decision import Numbers as Box
from steersman.core.decision import One, Problem, Ranked
from steersman.core.errors import DataError
from steersman.core.features import Encoder, Raw
from steersman.core.profile import Profile
from steersman.core.slots import Slots
from steersman.engine import Engine
from steersman.engine.stream import Texts
from steersman.timeline import assertions, choices, episodes, facts, fields, filters, ranked, sql, vectors
from steersman.timeline import before as before_window
from steersman.timeline.before import Before
from steersman.timeline.built import CONTEXT_NUMBERS, DECISION_IDS, Built, Counts, Files, Ids, RawRows
from steersman.timeline.choices import Choices
from steersman.timeline.episodes import NO_END, TERMINATED, TRUNCATED, Episodes, Rows
from steersman.timeline.facts import Facts
from steersman.timeline.fields import Field
from steersman.timeline.filters import LeftOut
from steersman.timeline.heard import Asked
from steersman.timeline.numbers import Numbers
from steersman.timeline.once import Window
from steersman.timeline.order import Order, order
from steersman.timeline.settings import Settings
from steersman.timeline.sql import ROW, Census, Columns, Places, Tables, Units
from steersman.timeline.statistics import Source
from steersman.timeline.texts import Pen, picked

_PLAIN = Settings()


def build(  # noqa: PLR0913 - a window is three numbers
    engine: Engine,
    problem: Problem,
    files: Files,
    *,
    since: int,
    until: int,
    as_of: int,
    encoder: Encoder | None = None,
    settings: Settings = _PLAIN,
    into: Path | None = None,
    before: Sequence[str] = (),
    max_length: int | None = None,
) -> Built:
    """Join decisions with their outcomes and order them into episodes; the laws are those of this room.

    Args:
        files: of the log. More than the window needs does no harm.
        since, until: window of decisions [since, until), microseconds UTC.
        as_of: the instant of the build, microseconds UTC: what happened later does not exist.
        encoder: to use as it is; None: one is fitted on the decisions that enter.
        settings: what must hold, what is left out, which fields have a type of their own.
        into: an empty directory for what is too large to hold; None: all is held in memory.
        before: further files of decisions, all before the window, for where its episodes began.
        max_length: decisions of the longest episode that may stay, instead of the quantile of the settings.
    Raises:
        DataError: no decision enters, a row breaks a law or an assertion does not hold; it names the decision.
    """
    names, box = _actions(problem)
    pen = Pen(into / f"{DECISION_IDS}.utf8.npy" if into else None)
    tables = sql.tables(engine, files, window_of(problem, since, until, as_of, settings), pen, before)
    ids = pen.texts()
    census = census_of(tables)
    assertions.check(tables, settings.assertions)
    assertions.check_actions(tables, settings.actions)
    plan = plan_of(tables, problem, encoder, settings)
    steps = _steps(tables, problem, plan)
    with ThreadPoolExecutor(1) as engine_ahead:  # the engine goes on while we sort
        listed = engine_ahead.submit(tables.units)
        outcomes = engine_ahead.submit(facts.ask, tables, problem, Asked.of(tables, steps, ids))
        units = listed.result()
        steps, decisions, line = _ordered(tables, units, steps, ids)
        if box:
            steps["action"] = vectors.gather(steps, box, decisions)
        if isinstance(problem.actions, Ranked):
            steps |= ranked.gather(steps, problem.actions, decisions)
        _check_steps(steps, decisions, dense=box is not None)
        choice = engine_ahead.submit(_offered, tables, plan, decisions)
        numbers = _numbers(tables, plan.context, into, engine_ahead)
        came = facts.gather(outcomes.result()(), problem, decisions)
        del outcomes  # it holds all that was read of them
        offered = choice.result()
        choices.check_names(offered, names, decisions)
        worth = _worth(tables, problem, steps, came, offered, decisions)
        rows, ordered, early = line.cut(tables, problem, came)
        left = filters.leave_out(rows, ordered, settings, early, max_length)
        rows, ordered = left.rows, left.episodes
        kept: slice | np.ndarray = slice(None)
        if len(left.places) < len(steps["unit"]):
            kept, offered = left.places, choices.taken(offered, left.places)
        context, digests = _context(tables, plan.context, decisions.rows[kept], numbers, into)
    former = steps["unit"][kept]
    return Built(
        encoder=plan.encoder,
        raw=RawRows(context, offered.raw, offered.ids),
        mask=offered.mask,
        action=steps["action"][kept],
        propensity=steps["propensity"][kept],
        reward=worth.reward[kept],
        metrics=worth.metrics[kept],
        discount=episodes.discounts(problem, ordered, rows.at),
        next=ordered.next,
        unit=rows.unit,
        limited=ordered.limited,
        begun=ordered.begun,
        metric_names=worth.names,
        slots=None if worth.slots is None else worth.slots.take(kept),
        at=rows.at,
        ids=Ids(decisions.rows[kept], ids.bounds[1:], ids.utf8),
        draws=units.draws[former[np.append(True, former[1:] != former[:-1])]],
        counts=_counts(census, came, left, steps["estimated"]),
        since=since,
        until=until,
        profiles=plan.profiles,
        digests=digests,
    )


def _offered(tables: Tables, plan: Plan, decisions: Places) -> Choices:
    if plan.encoder.numbers is not None:
        return vectors.no_choices(len(decisions))
    return choices.gather(tables, plan.candidate, decisions, same=plan.same_ids is not None)


def _steps(tables: Tables, problem: Problem, plan: Plan) -> Columns:
    """The decisions that enter, with the columns that tell what they did."""
    match problem.actions:
        case Box() as box:
            return tables.steps(vectors.select(tables, box), np.float64)
        case Ranked() as lists:
            return tables.steps(ranked.select(tables, lists, plan.same_ids), np.float64)
    return tables.steps(sql.action_among(plan.same_ids))


class _Worth(NamedTuple):
    """What the decisions were worth: as in the Batch."""

    reward: np.ndarray
    metrics: np.ndarray
    names: tuple[str, ...]
    slots: Slots | None


def _worth(
    tables: Tables, problem: Problem, steps: Columns, came: Facts, offered: Choices, decisions: Places
) -> _Worth:
    if came.items is not None:
        slots, names = ranked.slots(tables, problem, steps, came.items, offered, decisions)
        return _Worth(slots.reward.sum(axis=1), slots.metrics.sum(axis=1), names, slots)
    rewards = facts.rewards(problem, came, decisions)
    rewards = reward.shaped(rewards, steps["action"], offered.ids, problem.shaping, decisions)
    return _Worth(rewards, came.metrics, came.names, None)


class Lengths(NamedTuple):
    """How long the episodes of a window are.

    Attributes:
        episodes: [E] i64, in decisions, those before the window included.
        decisions, outcomes, late: in the window, and of its decisions, as in `Counts`.
    """

    episodes: np.ndarray
    decisions: int
    outcomes: int
    late: int


def lengths(  # noqa: PLR0913 - a window is three numbers
    engine: Engine,
    problem: Problem,
    files: Files,
    *,
    since: int,
    until: int,
    as_of: int,
    settings: Settings,
    before: Sequence[str] = (),
) -> Lengths:
    """What `build` would cut, without its rows; see there for the arguments."""
    pen = Pen()
    tables = sql.tables(engine, files, window_of(problem, since, until, as_of, settings), pen, before)
    ids, steps = pen.texts(), tables.steps({"action": "CAST(0 AS BIGINT)"})
    heard = facts.ask_ends(tables, Asked.of(tables, steps, ids))
    _, decisions, line = _ordered(tables, tables.units(), steps, ids)
    came = facts.gather(heard(), problem, decisions)
    _, ordered, _ = line.cut(tables, problem, came)
    return Lengths(episodes.lengths(ordered), len(decisions), came.outcomes, came.late)


def window_of(problem: Problem, since: int, until: int, as_of: int, settings: Settings) -> Window:
    """The window of a build, and how far before it one looks."""
    return sql.window(problem, since, until, as_of, settings.lead(problem))


@dataclass(frozen=True, eq=False)
class _Line:
    """The decisions of the window and those before it of the same units, in their order.

    Attributes:
        order: of all of them.
        at, step: [N] i64.
        before: [N] bool, which are before the window; None: none is.
        ended: [B] bool, of those before the window: an outcome ended the episode.
    """

    order: Order
    at: np.ndarray
    step: np.ndarray
    before: np.ndarray | None
    ended: np.ndarray

    def cut(self, tables: Tables, problem: Problem, came: Facts) -> tuple[Rows, Episodes, np.ndarray | None]:
        """Rows and episodes, and which of the rows are before the window (None: none); every episode has one in it.

        Args:
            came: of the decisions of the window.
        """
        ends, late = came.ends, came.late_ends
        if self.before is not None:
            ends, late = np.zeros(len(self.at), dtype=np.int8), np.zeros(len(self.at), dtype=bool)
            ends[self.before] = np.where(self.ended, TRUNCATED, NO_END)
            ends[~self.before], late[~self.before] = came.ends, came.late_ends
        rows = Rows(self.order.unit, self.at, self.step, self.order.clock, ends, late)
        ordered = episodes.cut(rows, problem.horizon, problem.horizon_s, tables.window.seen_until)
        if self.before is None:
            return rows, ordered, None
        reach, ordered = episodes.of_window(ordered, self.before)
        return *filters.apply(rows, ordered, reach), self.before[reach]


def _ordered(tables: Tables, units: Units, steps: Columns, ids: Texts) -> tuple[Columns, Places, _Line]:
    """The steps of the decisions of the window in their order, where each came from, and their place among those before
    the window.

    Args:
        ids: of all rows of the view.
    """
    unit, early = tables.numbers(units, steps), before_window.gather(tables)
    rows = steps.pop(ROW)
    del steps["unit"]
    if len(early):
        return _ordered_with(tables, unit, steps, rows, ids, early)
    found = order(unit, steps["at"], steps["step"], lambda some: picked(ids, rows[some]))
    steps = _reordered(steps, found.places) | {"unit": found.unit}
    return steps, Places(tables, rows[found.places]), _Line(found, steps["at"], steps["step"], None, early.ended)


def _ordered_with(
    tables: Tables, unit: np.ndarray, steps: Columns, rows: np.ndarray, ids: Texts, early: Before
) -> tuple[Columns, Places, _Line]:
    n = len(rows)
    pairs = (unit, early.unit), (steps["at"], early.at), (steps["step"], early.step)
    unit, at, step = map(np.concatenate, pairs)

    def ids_of(some: np.ndarray) -> list[str]:
        inside = iter(picked(ids, rows[some[some < n]]))
        return [next(inside) if place < n else early.ids[place - n] for place in some.tolist()]

    found = order(unit, at, step, ids_of)
    is_early = found.places >= n
    places = found.places[~is_early]
    line = _Line(found, at[found.places], step[found.places], is_early, early.ended[found.places[is_early] - n])
    return _reordered(steps, places) | {"unit": found.unit[~is_early]}, Places(tables, rows[places]), line


def _reordered(steps: Columns, places: np.ndarray) -> Columns:
    for name in list(steps):
        steps[name] = steps.pop(name).take(places)  # one column at a time
    return steps


@dataclass(frozen=True)
class Plan:
    """The encoder and where its fields are; same_ids: the candidates, ascending, if all decisions have the same."""

    encoder: Encoder
    context: tuple[Field, ...]
    candidate: tuple[Field, ...]
    same_ids: tuple[str, ...] | None
    profiles: tuple[Profile, ...]


def _actions(problem: Problem) -> tuple[tuple[str, ...], Box | None]:
    """The named actions, and the bounds of numbers."""
    match problem.actions:
        case One(names=names) | Ranked(names=names):
            return names, None
        case Box() as box:
            return (), box


def plan_of(tables: Tables, problem: Problem, encoder: Encoder | None, settings: Settings) -> Plan:
    """The encoder: the one that is given, or one fitted on the decisions that enter."""
    names, box = _actions(problem)
    if box:
        return _plan_of_numbers(tables, problem, encoder, settings, box)
    declared = fields.declared(encoder.candidate) if encoder else problem.candidate
    same = tables.same_candidates(fields.candidate_columns(tables, declared))
    context, candidate = Source(tables, "kept"), Source(tables, "offered", same is not None)
    profiles: tuple[Profile, ...] = ()
    if encoder is None:
        found = fields.pick(context, problem.context), fields.pick(candidate, problem.candidate)
        of_context, context_profiles = fields.fit(context, found[0], settings.context)
        of_candidate, candidate_profiles = fields.fit(candidate, found[1], settings.candidate)
        profiles = (*context_profiles, *candidate_profiles)
        found = fields.read_as(found[0], of_context), fields.read_as(found[1], of_candidate)
        encoder = Encoder(of_context, of_candidate, tuple(sorted(names)))
    else:
        found = fields.pick_for(context, encoder.context), fields.pick_for(candidate, encoder.candidate)
    if not encoder.candidate_width:
        raise DataError(
            f"problem {problem.name}: candidates have neither names nor features, so nothing can tell them apart",
            hint="list actions.names, or log features of the candidates",
            field="actions.names",
        )
    return Plan(encoder, *found, same, profiles)


def _plan_of_numbers(tables: Tables, problem: Problem, encoder: Encoder | None, settings: Settings, box: Box) -> Plan:
    """The same where actions are numbers: there are no candidates."""
    context = Source(tables, "kept")
    if encoder is not None:
        if encoder.numbers != box:
            raise DataError(
                f"problem {problem.name} has the bounds {box}, the encoder {encoder.numbers}", field="actions"
            )
        return Plan(encoder, fields.pick_for(context, encoder.context), (), None, ())
    found = fields.pick(context, problem.context)
    of_context, profiles = fields.fit(context, found, settings.context)
    return Plan(Encoder(of_context, numbers=box), fields.read_as(found, of_context), (), None, profiles)


def census_of(tables: Tables) -> Census:
    """How many decisions the window has; raises DataError if none enters."""
    census = tables.census()
    if not census.entering:
        window = tables.window
        raise DataError(
            f"no decision enters: of {census.logged} logged in [{window.since}, {window.until}) "
            f"{census.waiting} still wait for outcomes at {window.as_of}, {census.deferred} were never activated",
            hint="a decision enters once wait_s is over: build later, or look at the window",
        )
    return census


def _check_steps(steps: Columns, decisions: Places, *, dense: bool) -> None:
    propensity, n = steps["propensity"], len(steps["propensity"])
    bad = np.flatnonzero(~((propensity > 0) & (propensity <= (np.finfo(np.float64).max if dense else 1.0))))
    if bad.size:
        law = "a density above 0" if dense else "in (0, 1]"
        raise DataError(
            f"decision {decisions[bad[0]]}: propensity is {propensity[bad[0]]:g}, must be {law} "
            f"({bad.size} such rows of {n})",
            hint="log the probability with which the action was taken: nothing may stand in for it",
            field="propensity",
        )
    bad = np.flatnonzero([] if steps["action"].ndim == 2 else steps["action"] < 0)
    if bad.size:
        raise DataError(
            f"decision {decisions[bad[0]]}: action {decisions.action(bad[0])!r} is not among its candidates "
            f"({bad.size} such rows of {n})",
            hint="log every candidate that could have been taken, the action included",
            field="candidates",
        )


def _numbers(tables: Tables, wanted: Sequence[Field], into: Path | None, engine_ahead: Executor) -> Numbers | None:
    """The numbers of the context, on their way to the disk if there is one."""
    columns = [field for field in wanted if field.reads == "number"]
    if into is None or not columns:
        return None
    return Numbers(tables, columns, engine_ahead)


def _context(
    tables: Tables, wanted: Sequence[Field], rows: np.ndarray, numbers: Numbers | None, into: Path | None
) -> tuple[Raw, dict[str, bytes]]:
    """The fields of the context at these rows, and the digest of what lies on the disk."""
    if numbers is None or into is None:
        return _fields(tables, wanted, rows), {}
    path = into / f"{CONTEXT_NUMBERS}.npy"
    digest = numbers.write(rows, path)
    others = _fields(tables, [field for field in wanted if field.reads != "number"], rows)
    return Raw(np.load(path, mmap_mode="r"), others.texts, others.lists), {CONTEXT_NUMBERS: digest}


def _fields(tables: Tables, wanted: Sequence[Field], rows: np.ndarray) -> Raw:
    return fields.raw(wanted, tables.fields(fields.columns_of(wanted), rows), len(rows))


def _counts(census: Census, came: Facts, left: LeftOut, estimated: np.ndarray) -> Counts:
    rows, ordered = left.rows, left.episodes
    last = ordered.next < 0
    return Counts(
        decisions=len(rows.unit),
        waiting=census.waiting,
        duplicates=census.logged - census.waiting - census.deferred - census.entering,
        deferred=census.deferred,
        too_long=left.too_long,
        long_episodes=left.long_episodes,
        max_length=left.max_length,
        too_late=left.too_late,
        estimated=int(estimated[left.places].sum()),
        outcomes=came.outcomes,
        late=came.late,
        off_list=came.off_list,
        late_ends=int(rows.late_ends.sum()),
        dangling=came.dangling,
        duplicate_outcomes=came.duplicates,
        without_outcome=int(came.without[left.places].sum()),
        units=int(rows.unit[-1]) + 1,
        episodes=int(last.sum()),
        terminated=int((ordered.ends == TERMINATED).sum()),
        truncated=int((ordered.ends == TRUNCATED).sum()),
        open=int((last & (ordered.ends == NO_END)).sum()),
        begun=int((last & ordered.begun).sum()),
    )
