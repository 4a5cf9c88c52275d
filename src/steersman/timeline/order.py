"""The order of decisions: units one after the other, in each what its clock says. Pure arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from steersman.timeline import keys
from steersman.timeline.episodes import BY_STEP, BY_TIME, BY_TIME_AND_STEP


@dataclass(frozen=True, eq=False)
class Order:
    """Where N decisions belong.

    Attributes:
        places: [N] i64, which decision stands at each place.
        unit: [N] i64, of the decision at each place.
        clock: [N] i8, BY_TIME, BY_TIME_AND_STEP or BY_STEP, of the decision at each place.
    """

    places: np.ndarray
    unit: np.ndarray
    clock: np.ndarray


def order(unit: np.ndarray, at: np.ndarray, step: np.ndarray, ids_of: Callable[[np.ndarray], list[str]]) -> Order:
    """Order decisions that come in any order; see the order inside a unit in `steersman.timeline`.

    Args:
        unit: [N] i64, 0, 1, ..., whose decision it is.
        at: [N] i64, microseconds UTC.
        step: [N] i64, -1: none.
        ids_of: decisions ([M] i64) to their ids; asked only about those that nothing else orders.
    """
    without = np.zeros(int(unit.max()) + 1, dtype=bool)
    without[unit[step < 0]] = True
    key = np.where(without[unit], at, step) if without.any() else step
    places = _sorted(unit, key)
    whose = unit[places]
    same = _same(whose, key[places])
    twice = np.zeros(len(without), dtype=bool)
    twice[whose[1:][same]] = True
    twice &= ~without
    if twice.any():
        again = np.flatnonzero(twice[whose])
        places[again] = places[again][_sorted(whose[again], at[places[again]])]
        same = _same(whose, np.where(twice[unit], at, key)[places])
    if same.any():
        _settle(places, same, ids_of)
    clock = np.select([without, twice], [BY_TIME, BY_TIME_AND_STEP], BY_STEP).astype(np.int8)
    return Order(places, whose, clock[whose])


def _sorted(unit: np.ndarray, key: np.ndarray) -> np.ndarray:
    """[N] i64, the rows by unit, then by key; equal ones in any order."""
    low, high = int(key.min()), int(key.max())
    span = high - low + 1
    if (int(unit.max()) + 1) * span < 2**63:  # one number for both is sorted several times faster
        both = unit * span
        both += key
        both -= low
        return keys.ordered(both)
    return np.lexsort((key, unit))


def _same(unit: np.ndarray, key: np.ndarray) -> np.ndarray:
    """[N - 1] bool, whether a decision and the next one have the same unit and key."""
    return (unit[1:] == unit[:-1]) & (key[1:] == key[:-1])


def _settle(places: np.ndarray, same: np.ndarray, ids_of: Callable[[np.ndarray], list[str]]) -> None:
    """Put runs of equal decisions in the order of their ids, in place."""
    where = np.flatnonzero(np.append(same, False) | np.append(False, same))
    run = np.cumsum(~np.append(False, same))[where]
    ids = ids_of(places[where])
    by_id = sorted(range(len(where)), key=lambda i: (run[i], ids[i]))
    places[where] = places[where][by_id]
