"""The canary of an update: its version decides for a share of the units first, and the log says what becomes of it."""

from __future__ import annotations

import contextlib
import time
from typing import Literal

import numpy as np
from msgspec import Struct

from steersman.config import Project
from steersman.core.errors import ConflictError
from steersman.core.version import Rollout
from steersman.engine.disk import alone
from steersman.evaluate.guardrails import beside, broken
from steersman.flow import building, copies, guarding, perturbing, places, sampling
from steersman.models.warehouse import CHAMPION, Warehouse

LOCK = "canary.lock"
LEVEL = 0.95
"""Of the bounds on what the candidate earns beside the champion, both together, in all looks."""


class Judged(Struct, frozen=True):
    """What the log says of a canary, by the units that met either version as it is, over whole episodes.

    Attributes:
        verdict: `promoted`: the candidate surely does not earn too much less, and is the champion now; `backed out`: it
            surely earns less or breaks a guardrail, and decides no more; `waiting`: neither is sure.
        difference, low, high: of mean returns of units, candidate less champion; None: there are too few units.
        candidate_units, baseline_units: how many.
        reason: of the verdict.
    """

    problem: str
    candidate: int
    baseline: int
    verdict: Literal["promoted", "backed out", "waiting"]
    difference: float | None
    low: float | None
    high: float | None
    candidate_units: int
    baseline_units: int
    reason: str


def running(project: Project, name: str) -> Rollout | None:
    """The rollout of a version that an update of the champion made; None: there is none."""
    now = Warehouse(project.warehouse_url).deployed(name)
    if not isinstance(now, Rollout) or not perturbing.place(project, name, now.candidate).exists():
        return None
    made = perturbing.served_of(project, name, now.candidate).made
    return now if made is not None and made.parent == now.baseline else None


def ask(project: Project, name: str, patience_s: float = 0.0) -> Judged | None:
    """Judge the canary of a policy; None: none runs.

    Args:
        patience_s: how long to wait for another who judges it.
    Raises:
        ConflictError: another one still does.
    """
    deadline = time.monotonic() + patience_s
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(alone(sampling.place(project, name) / LOCK, f"judgement of {name}'s canary"))
                break
            except ConflictError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        rollout = running(project, name)
        return judge(project, name, rollout) if rollout else None


def judge(project: Project, name: str, rollout: Rollout) -> Judged:
    """Ask the log about a canary, and promote it or back it out if that is sure; see `Judged`.

    Raises:
        ConflictError: somebody else ended or changed the rollout meanwhile, and that stays so.
    """
    tolerance = perturbing.served_of(project, name, rollout.baseline).tolerance
    warehouse, now = Warehouse(project.warehouse_url), places.now_us()
    mine = [one for one in warehouse.rollouts(name) if one.candidate == rollout.candidate]
    found = _judged(project, name, rollout, tolerance, min(one.since for one in mine), now)
    if found.verdict != "waiting" and running(project, name) != rollout:
        raise ConflictError(
            f"the rollout of {name}@{rollout.candidate} was changed while it was judged", hint="look at it again"
        )
    if found.verdict == "promoted":
        warehouse.set_alias(name, CHAMPION, rollout.candidate, now)
        perturbing.rest(project, name, rollout.baseline)
    elif found.verdict == "backed out":
        warehouse.back_out(name, now)
    return found


def _judged(project: Project, name: str, rollout: Rollout, tolerance: float, since: int, now: int) -> Judged:
    def judged(verdict: Literal["promoted", "backed out", "waiting"], reason: str) -> Judged:
        value, low, high = bounds or (None, None, None)
        sizes = len(returns.copies), len(returns.clean)
        return Judged(name, rollout.candidate, rollout.baseline, verdict, value, low, high, *sizes, reason)

    empty, bounds = np.empty(0), None
    returns = guarding.Units(empty, empty)
    if not guarding.settled(project, name, since, now):
        return judged("waiting", "no unit has decided yet")
    who = copies.noise_of(project, name, since, now)
    rails = project.policy(name).guardrails
    with building.joined(project, name, since=since, until=now, as_of=now) as parts:
        rows = guarding.rows_of(parts, who, tuple(rails))
        played = guarding.played_of(parts, who)
    whole = [one for one in played if one.whole and not one.perturbed and one.version in _versions(rollout)]
    if whole:
        value, unit = np.array([one.value for one in whole]), np.array([one.unit for one in whole])
        returns = guarding.units_of(value, unit, np.array([one.version == rollout.candidate for one in whole]))
    clean = ~rows.perturbed & np.isin(rows.version, _versions(rollout))
    for metric, rail in rails.items():
        of = guarding.units_of(rows.metrics[metric][clean], rows.unit[clean], rows.version[clean] == rollout.candidate)
        if why := broken(rail, *of, rail.level):
            return judged("backed out", f"{metric}: {why}")
    bounds = beside(*returns, LEVEL)
    if bounds is None:
        return judged("waiting", "too few units have whole episodes")
    _, low, high = bounds
    least = -tolerance * abs(float(returns.clean.mean()))
    if high < 0:
        return judged("backed out", "it surely earns less")
    if low > least:
        return judged("promoted", f"it surely earns at most {-least:.3g} less")
    return judged("waiting", f"neither is sure: it may earn {-least:.3g} less, and {-low:.3g} less is possible")


def _versions(rollout: Rollout) -> tuple[int, int]:
    return rollout.baseline, rollout.candidate
