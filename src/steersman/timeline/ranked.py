"""Ranked lists: the places of their items, what is known of each slot, and the reward slot by slot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steersman.core import reward
from steersman.core.decision import ROUNDING, Problem, Ranked
from steersman.core.errors import DataError, did_you_mean
from steersman.core.shared import is_shared
from steersman.core.slots import Slots
from steersman.engine import identifier
from steersman.timeline.choices import Choices
from steersman.timeline.columns import CHANCES, FIRST, LISTS
from steersman.timeline.facts import ItemFacts, combined
from steersman.timeline.sql import IDS, ROW, Columns, Places, Tables, place_among

_NONE = -2
"""Place of an item behind the end of its list."""


def select(tables: Tables, actions: Ranked, same_ids: Sequence[str] | None) -> dict[str, str]:
    """Column -> SQL of what tells a list, its items and their propensities; NaN where one was not told.

    Raises:
        DataError: no action of the log is a list.
    """
    if tables.decisions.get(LISTS) != "list of text":
        raise DataError(
            "no decision of the log has a ranked list as its action",
            hint="log the action as a list of ids, from the first slot on",
            field="action",
        )
    told = tables.decisions.get(CHANCES) == "list of number"
    found = {"length": f"COALESCE(CAST(LEN(kept.{LISTS}) AS BIGINT), 0)"}
    for slot in range(1, actions.slots + 1):
        place = place_among(same_ids, f"kept.{LISTS}[{slot}]")
        found[f"item.{slot}"] = f"CASE WHEN LEN(kept.{LISTS}) >= {slot} THEN {place} ELSE {_NONE} END"
        chance = f"CAST(kept.{CHANCES}[{slot}] AS DOUBLE)" if told else "NULL"
        found[f"chance.{slot}"] = f"COALESCE({chance}, CAST('NaN' AS DOUBLE))"
    return {name: f"CAST({sql} AS DOUBLE)" for name, sql in found.items()}


def gather(steps: Columns, actions: Ranked, decisions: Places) -> Columns:
    """`action` [N, L] i64 and `propensities` [N, L] f64; the columns of `select` are taken out of `steps`.

    Raises:
        DataError: an action is no list, too long or of others than its candidates, or the propensities of its items
            are not known; it names the decision.
    """
    slots, length = range(1, actions.slots + 1), steps.pop("length")
    action = np.stack([steps.pop(f"item.{slot}") for slot in slots], axis=1).astype(np.int64)
    chance = np.stack([steps.pop(f"chance.{slot}") for slot in slots], axis=1)
    _refuse(length < 1, decisions, "its action is no ranked list", "action")
    long = f"its list is longer than the {actions.slots} slots of the problem"
    _refuse(length > actions.slots, decisions, long, "action")
    _refuse((action == -1).any(axis=1), decisions, "an item of its list is not among its candidates", "action")
    there = action != _NONE
    alone = (length == 1) & np.isnan(chance[:, 0])
    chance[alone, 0] = steps["propensity"][alone]  # of one item it is that of the list
    chance[~there] = 1.0
    _check_chances(chance, steps["propensity"], decisions)
    return {"action": np.where(there, action, -1), "propensities": chance}


def _check_chances(chance: np.ndarray, joint: np.ndarray, decisions: Places) -> None:
    _refuse(
        np.isnan(chance).any(axis=1),
        decisions,
        "the propensities of its items are not known, only that of the whole list",
        hint="log propensities: the probability of each item given the items above it; no estimate of lists can do "
        "without, and nothing may stand in for them",
    )
    outside = np.any((chance <= 0) | (chance > 1), axis=1)
    _refuse(np.asarray(outside), decisions, "a propensity of an item is not in (0, 1]")
    product = np.prod(chance, axis=1)
    wrong = np.abs(product - joint) > chance.shape[1] * ROUNDING * joint
    first = product[wrong][0] if wrong.any() else 0.0
    _refuse(wrong, decisions, f"the propensities of its items multiply to {first:g}, which is not that of the list")


def slots(
    tables: Tables, problem: Problem, steps: Columns, facts: ItemFacts, offered: Choices, decisions: Places
) -> tuple[Slots, tuple[str, ...]]:
    """What is known of each slot, and the names of the metrics.

    Args:
        steps: with what `gather` gives.
        facts: what came of the items.
    Raises:
        DataError: an item has no finite reward; it names the decision.
    """
    action = steps["action"]
    names, values, own = _values(problem, facts, *action.shape)
    rewards = _rewards(problem, names, values, own, action, offered, decisions)
    there = action >= 0
    metrics = np.where(there[:, :, None], values, 0.0)
    rows, last = np.arange(len(action)), there.sum(axis=1) - 1
    # What came of the list as a whole counts though nothing came of its last item.
    at_last = metrics[rows, last]
    metrics[rows, last] = np.where(np.isnan(at_last), own, at_last + np.where(np.isnan(own), 0.0, own))
    return Slots(steps["propensities"], rewards, metrics, _first(tables, offered, decisions)), names


def _values(problem: Problem, facts: ItemFacts, n: int, count: int) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Names [M]; values [n, L, M] of the items, defaults filled in; and what came of the lists as a whole [n, M], NaN
    where nothing did."""
    came = {name: column for name, column in facts.columns.items() if not np.isnan(column).all()}
    names = tuple(sorted(came.keys() | problem.default_outcome.keys()))
    values, own = np.empty((n, count, len(names))), np.full((n, len(names)), np.nan)
    for j, name in enumerate(names):
        default = problem.default_outcome.get(name, np.nan)
        told = np.full((n, count + 1), np.nan)
        if name in came:
            rule = problem.combine.get(name, "sum")
            key = facts.row * (count + 1) + facts.slot
            told = combined(rule, key, came[name], n * (count + 1)).reshape(n, count + 1)
        values[:, :, j] = np.where(np.isnan(told[:, :count]), default, told[:, :count])
        own[:, j] = told[:, count]
    return names, values, own


class _Of:
    """Ids of the decisions of some rows, for errors."""

    def __init__(self, decisions: Places, rows: np.ndarray) -> None:
        self._decisions, self._rows = decisions, rows

    def __getitem__(self, row: int) -> str:
        return self._decisions[int(self._rows[row])]


def _rewards(
    problem: Problem,
    names: tuple[str, ...],
    values: np.ndarray,
    own: np.ndarray,
    action: np.ndarray,
    offered: Choices,
    decisions: Places,
) -> np.ndarray:
    """[N, L] f64: of every item what its slot counts times its reward; the list's own stands at its last item."""
    for name in problem.metrics:
        if name not in names:
            raise DataError(
                f"reward {problem.reward!r} needs the metric {name!r}, which no outcome in time has",
                hint=f"{did_you_mean(name, names)}; or give {name} a default_outcome",
                field="reward",
            )
    assert isinstance(problem.actions, Ranked)
    row, slot = np.nonzero(action >= 0)
    of_item = {name: values[row, slot, j] for j, name in enumerate(names)}
    who = _Of(decisions, row)
    found = reward.compute(problem.reward, of_item, who)
    if problem.shaping:
        ids = offered.ids if is_shared(offered.ids) else offered.ids[row]
        found = reward.shaped(found, action[row, slot], ids, problem.shaping, who)
    rewards = np.zeros(action.shape)
    rewards[row, slot] = np.array(problem.actions.slot_weights)[slot] * found
    needed = [names.index(name) for name in problem.metrics]
    told = np.flatnonzero(~np.isnan(own[:, needed]).all(axis=1))
    if told.size:
        of_list = {}
        for j, name in enumerate(names):
            default = problem.default_outcome.get(name, np.nan)
            of_list[name] = np.where(np.isnan(own[told, j]), default, own[told, j])
        last = (action[told] >= 0).sum(axis=1) - 1
        rewards[told, last] += reward.compute(problem.reward, of_list, _Of(decisions, told))
    return rewards


def _first(tables: Tables, offered: Choices, decisions: Places) -> np.ndarray | None:
    """[N, K] f64, probabilities of the first slot; None if a decision was logged without."""
    if tables.decisions.get(FIRST) != "list of number":
        return None
    names = (identifier(IDS), FIRST)
    each = ", ".join(f"unnest({name}) AS {name}" for name in names)
    found = tables.ask(
        f"""SELECT {ROW}, {FIRST} FROM (SELECT {ROW}, {each} FROM kept) AS each
        ORDER BY {ROW}, {names[0]}"""
    )
    place = decisions.of(found[ROW])
    chances = found[FIRST][np.argsort(place, kind="stable")]
    if len(chances) != int(offered.mask.sum()) or np.isnan(chances).any():
        return None
    first = np.zeros(offered.mask.shape)
    first[offered.mask] = chances
    return first


def _refuse(bad: np.ndarray, decisions: Places, text: str, field: str = CHANCES, hint: str = "") -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        raise DataError(
            f"decision {decisions[rows[0]]}: {text} ({rows.size} such rows of {len(bad)})", hint=hint, field=field
        )
