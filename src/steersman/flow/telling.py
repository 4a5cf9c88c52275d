"""What a log tells the search of a live policy: its samples, whether they can be believed, and the step they make."""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steersman import flow, timeline
from steersman.config import Project
from steersman.core.errors import ConflictError, DataError, GateError
from steersman.flow import copies, guarding, perturbing, sampling
from steersman.flow.logs import replay_all
from steersman.learn import evolution as es

ENOUGH = 0.75
"""Share of the copies of a pool that must have a whole episode before an update."""

MADE_AGAIN = 48
"""Decisions of copies that an update makes again before it believes the log."""


class TooCostly(GateError):
    """The copies surely earn too much less than the version itself."""

    def __init__(self, reason: str, name: str) -> None:
        super().__init__(f"{reason}: they decide no more", hint=f"steersman es resume {name} lets them again")
        self.reason = reason


@dataclass(frozen=True)
class Moved:
    """A search after it was told what a log says; `build`: the digest of that."""

    search: es.Search
    samples: copies.Samples
    account: es.Account
    gain: es.Gain | None
    build: str


def check(gain: es.Gain | None, version: str) -> None:
    """Raise GateError if the samples that a step was made of say that it is worse."""
    if gain is not None and gain.high < 0:
        raise GateError(
            f"{version}: the log says that the step is worse: {gain.value:.3g} [{gain.low:.3g}, {gain.high:.3g}] "
            f"reward by {gain.pairs} pairs; nothing was published",
            hint="gather more episodes, or start anew with less momentum",
        )


def told(project: Project, name: str, number: int, since: int, as_of: int) -> Moved:
    """The search of a version after it was told what the log says until `as_of`."""
    search, served = perturbing.read(project, name, number)
    generations = {number: search.generation}
    digests = {search.generation: search.digest}
    for other, before in older(project, name, number, search).items():
        generations[other] = before.generation
        digests[before.generation] = before.digest
    built = flow.build(project, name, since=since, until=as_of, as_of=as_of)
    rows = timeline.load(Path(built.directory))
    who = copies.noise_of(project, name, since, as_of)
    _check_made_again(project, name, [one for one in rows.decision_ids.tolist() if _copied(who, one, generations)])
    played = copies.episodes(rows, who)
    again = sampling.resumed_at(project, name)  # what was logged before stops them no more
    loss = guarding.cost([one for one in played if one.at >= again], number, served.max_loss)
    if loss:
        raise TooCostly(f"{name}@{number}: {loss}", name)
    samples = copies.samples(played, generations, served.block_s)
    fresh = sum(generation == search.generation for generation in samples.generation)
    wanted = math.ceil(ENOUGH * len(served.keys)) or served.copies
    if fresh < wanted:
        of = f" of {len(served.keys)}" if served.keys else ""
        raise ConflictError(
            f"{name}@{number}: {fresh}{of} perturbed copies have a whole episode, at least {wanted} must",
            hint=f"wait for more; {samples.open} episodes are not over, or were decided by two",
        )
    batch = es.Told(
        run=search.run,
        keys=np.array(samples.key, dtype=np.uint64),
        generation=np.array(samples.generation, dtype=np.int64),
        reward=np.array(samples.reward, dtype=np.float64),
        digests=digests,
    )
    moved, account = es.tell(search, batch)
    if not account.moved or np.array_equal(moved.mean.astype(np.float32), search.mean.astype(np.float32)):
        raise ConflictError(
            f"{name}@{number}: the returns of its copies move no parameter: nothing was learned",
            hint="all that count are equal, or the step is too small to tell: wait for more",
        )
    gain = es.gain(search, moved, batch) if "sigma" in search.arrays else None
    return Moved(moved, samples, account, gain, built.digest)


def _copied(who: dict[str, tuple[int, int | None]], decision: str, versions: Container[int]) -> bool:
    version, key = who.get(decision, (0, None))
    return key is not None and version in versions


def _check_made_again(project: Project, name: str, decisions: list[str]) -> None:
    """Make some decisions of copies again, spread over the log: what a key did not decide says nothing about it.

    Raises:
        DataError: one comes out otherwise, as where signs were mixed up.
    """
    some = decisions[:: max(1, len(decisions) // MADE_AGAIN)][:MADE_AGAIN]
    other = [one.decision for one in replay_all(project, some) if not one.identical]
    if other:
        raise DataError(
            f"{name}: {len(other)} of {len(some)} decisions of copies come out otherwise when they are made again from "
            f"their keys, {other[0]} for one",
            hint="was the log written by another system?",
        )


def since(project: Project, name: str, number: int, search: es.Search) -> int:
    """When the oldest version was made of which samples are used."""
    oldest = min([number, *older(project, name, number, search)])
    return perturbing.read(project, name, oldest)[1].at


def older(project: Project, name: str, number: int, search: es.Search) -> dict[int, es.Search]:
    """Number -> search, of the versions before of which samples are still used."""
    found: dict[int, es.Search] = {}
    while len(found) < len(search.past):
        made = perturbing.read(project, name, number)[1].made
        if made is None:
            break
        number = made.parent
        found[number] = perturbing.read(project, name, number)[0]
    return found
