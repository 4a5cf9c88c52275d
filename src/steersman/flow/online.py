"""Evolution strategies on a live policy: perturbed copies decide online, their log moves the parameters offline."""

from __future__ import annotations

import hashlib
import math
import os

import msgspec
import numpy as np
from msgspec import Struct

from steersman.config import Project
from steersman.core.errors import ConfigError, ConflictError, Error, GateError
from steersman.core.version import Parents, Rollout, Version
from steersman.engine.disk import alone
from steersman.flow import canary as canaries
from steersman.flow import perturbing, places, sampling, telling
from steersman.flow.places import code_version, now_us
from steersman.flow.untrained import untrained
from steersman.learn import evolution as es
from steersman.models import parameters
from steersman.models.warehouse import CHAMPION, Draft, Warehouse

Array = np.ndarray

PENDING, LOCK = "pending.json", "update.lock"
JUDGED_S = 60.0
"""How long an update waits for who judges a canary meanwhile."""


class Pending(Struct, frozen=True):
    """An update that was begun: what of the log it is made from, so that it ends the same however often it begins."""

    as_of: int


class Updated(Struct, frozen=True):
    """What an update did.

    Attributes:
        version: that was made.
        canary: share of the units that it decides for, until the log says what becomes of it; 0: it is the champion.
        parent: that was perturbed.
        episodes, open: see Samples.
        account: of the search.
        gain: what the log says of the step; None: the solver has no sigma to measure it by.
    """

    problem: str
    version: int
    parent: int
    episodes: int
    open: int
    account: es.Account
    gain: es.Gain | None
    canary: float = 0.0


def init(  # noqa: PLR0913  (all but four by keyword)
    project: Project,
    name: str,
    reference: str,
    settings: es.Settings,
    *,
    share: float,
    copies: int,
    pool: bool = False,
    block_s: float = 0.0,
    max_loss: float | None = None,
    hidden: tuple[int, ...] | None = None,
    keep: int = 0,
    canary: float = 0.0,
    tolerance: float = 0.05,
) -> Version:
    """Store a version whose parameters can be perturbed, its search beside it; promote it to begin.

    Args:
        reference: of the version whose net it starts from; a number or an alias.
        settings: of the search; the shapes are those of the net.
        share: of the units that meet a perturbed copy, in (0, 1].
        copies: perturbations that must have a whole episode before an update.
        pool: there are only so many at a time, each for many units: where making one is dear, as of a large net; else
            every episode has its own.
        block_s: episodes that began in so many seconds are compared with each other, so that a trend of the day is not
            learned from; 0: all are.
        max_loss: share of the version's own mean return, in (0, 1): once the copies surely earn less by more than that,
            they decide no more; None: nothing stops them.
        hidden: instead of a reference, the widths of the hidden layers of a net that nobody trained.
        keep: so many of the last versions that updates made stay stored, the champion among them, with what lies
            beside them; older ones are removed, and what they decided can not be replayed. 0: all stay.
        canary: share of the units that the version of an update decides for at first, in [0, 1); a later update asks
            the log whether it becomes the champion. 0: it does at once.
        tolerance: share of the champion's mean return that a canary may earn less, in [0, 1).
    Raises:
        DataError: the version has no parameters.
    """
    if keep < 0 or keep == 1:
        raise ConfigError(f"keep is {keep}, must be 0 or at least 2", hint="one to go back to", field="keep")
    if max_loss is not None and not 0 < max_loss < 1:
        raise ConfigError(f"max_loss is {max_loss:g}, must be in (0, 1)", field="max_loss")
    for field, value in (("canary", canary), ("tolerance", tolerance)):
        if not 0 <= value < 1:
            raise ConfigError(f"{field} is {value:g}, must be in [0, 1)", field=field)
    if not 0 <= block_s < math.inf:
        raise ConfigError(f"block_s is {block_s:g}, must be 0 or more", field="block_s")
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share:g}, must be in (0, 1]", field="share")
    project.policy(name)
    warehouse = Warehouse(project.warehouse_url)
    version: Version | Draft
    if hidden is None:
        version, graph = warehouse.read(name, warehouse.resolve(name, reference))
    else:
        version, graph = untrained(project, name, hidden)
    found = parameters.parameters_of(graph)
    search = es.begin(msgspec.structs.replace(settings, shapes=found.shapes), found.flat)
    es.ask(search, copies)  # refused before anything is stored
    made = _publish(warehouse, version, graph, search, version.parents)
    served = perturbing.Served(
        share=share, seed="", keys=(), copies=copies, at=0, block_s=block_s, max_loss=max_loss, keep=keep,
        canary=canary, tolerance=tolerance,
    )  # fmt: skip
    crowd = parameters.crowd_of(graph)
    perturbing.write(project, name, made.number, search, _drawn(search, served, copies if pool else 0), crowd)
    return made


def update(project: Project, name: str) -> Updated | canaries.Judged:
    """Read the log, move the parameters, store them as the next version with its search, and make it the champion.

    With a canary the version decides for a share of the units first, and updates ask the log what becomes of it,
    before they make another one.

    Killed at any point and begun again it ends with the same parameters, bit for bit.

    Raises:
        NotFoundError: the champion has no search.
        ConflictError: too few copies have an episode, or nothing was to be learned; or another update of the same
            search is at work, or a rollout of another version.
        GateError: the log itself says that the step is worse, or that the canary of this very step was; or somebody
            rolled it back; or the copies cost too much, and decide no more; or a guardrail has stopped them before.
            Nothing is stored.
        DataError: the log has what this search did not perturb: nothing is stored.
    """
    warehouse = Warehouse(project.warehouse_url)
    warehouse.resolve(name, CHAMPION)  # what is not there has no lock
    with alone(sampling.place(project, name) / LOCK, f"es update of {name}"):
        return _update(project, name, warehouse)


def _update(project: Project, name: str, warehouse: Warehouse) -> Updated | canaries.Judged:
    if judged := canaries.ask(project, name, JUDGED_S):
        return judged
    if isinstance(now := warehouse.deployed(name), Rollout):
        raise ConflictError(
            f"{name}@{now.candidate} has a rollout beside the champion, which an update would end",
            hint=f"steersman promote {name}@{now.candidate}, or steersman rollout {name} --end",
        )
    number = warehouse.resolve(name, CHAMPION)
    search, served = perturbing.read(project, name, number)
    if was := sampling.stopped(project, name):
        raise GateError(
            f"{name}: its copies were stopped: {was.reason}; nothing was published",
            hint=f"steersman es resume {name} lets them decide again, steersman rollback {name} goes back",
        )
    pending = perturbing.place(project, name, number) / PENDING
    begun = places.read(pending, Pending)
    if begun is None:
        places.write(pending, begun := Pending(now_us()))
    as_of = begun.as_of
    since = telling.since(project, name, number, search)
    try:
        found = telling.told(project, name, number, since, as_of)
        telling.check(found.gain, f"{name}@{number}")
    except telling.TooCostly as error:
        sampling.stop(project, name, number, error.reason, as_of)
        pending.unlink()
        raise
    except Error:
        pending.unlink()  # the log may have more to say the next time
        raise
    samples, moved = found.samples, found.search
    made_from = perturbing.Made(
        parent=number, since=since, as_of=as_of, build=found.build, episodes=samples.episodes, copies=len(samples.key),
        account=found.account, gain=found.gain,
    )  # fmt: skip
    version, graph = warehouse.read(name, number)
    data = Parents(data=found.build, config=version.parents.config, code=code_version())
    made = _publish(warehouse, version, graph, moved, data)
    if not perturbing.place(project, name, made.number).exists():
        after = _drawn(moved, msgspec.structs.replace(served, made=made_from), len(served.keys))
        perturbing.write(project, name, made.number, moved, after, parameters.crowd_of(graph))
    tried = {one.candidate for one in warehouse.rollouts(name)}
    tried |= {move.number for move in warehouse.history(name) if move.alias == CHAMPION}
    if made.number in tried:
        pending.unlink()
        raise GateError(
            f"{name}@{made.number} is this very step, and it was backed out or rolled back", hint="gather more episodes"
        )
    if warehouse.resolve(name, CHAMPION) == number:  # else somebody moved it meanwhile, who knows why
        if served.canary:
            warehouse.roll_out(name, made.number, served.canary, now_us())
        else:
            warehouse.set_alias(name, CHAMPION, made.number, now_us())
    _forget(project, warehouse, name, made.number, served.keep, moved)
    if not served.canary:
        perturbing.rest(project, name, number)  # the parent itself may decide until servers have looked
    pending.unlink()
    told = samples.episodes, samples.open, found.account, found.gain
    return Updated(name, made.number, number, *told, served.canary)


def replay(project: Project, name: str, number: int) -> bool:
    """Whether the log and the parent of a version give its parameters and its search again, bit for bit.

    Raises:
        ConflictError: `es init` made it, from no log.
    """
    search, served = perturbing.read(project, name, number)
    if served.made is None:
        raise ConflictError(f"{name}@{number} was made by es init", hint="replay one that es update made")
    found = telling.told(project, name, served.made.parent, served.made.since, served.made.as_of)
    same = all(np.array_equal(array, search.arrays[key]) for key, array in found.search.arrays.items())
    return same and found.build == served.made.build and found.search.digest == search.digest


def _forget(project: Project, warehouse: Warehouse, name: str, number: int, keep: int, search: es.Search) -> None:
    """Remove the versions that updates made before the last `keep`, but for those that are still needed or pointed at.

    Args:
        number, search: of the newest version.
    """
    if not keep:
        return
    needed = {*telling.older(project, name, number, search), *warehouse.pointed(name)}
    for old in perturbing.updated(project, name)[:-keep]:
        if old not in needed and old < number:
            warehouse.remove(name, old)
            perturbing.remove(project, name, old)


def _drawn(search: es.Search, served: perturbing.Served, pool: int) -> perturbing.Served:
    """With another pool of copies, 0: none, and others who meet them."""
    keys = tuple(es.ask(search, pool).tolist()) if pool else ()
    return msgspec.structs.replace(served, keys=keys, seed=os.urandom(16).hex(), at=now_us())


def _publish(warehouse: Warehouse, like: Version | Draft, graph: bytes, search: es.Search, parents: Parents) -> Version:
    """The version with the parameters of a search; one that was stored before the process was killed is found again."""
    body = parameters.opened(graph, search.mean)
    seed = hashlib.sha256(search.digest.encode()).hexdigest()[:32]
    draft = Draft(
        name=like.name, encoder=like.encoder, explorer=like.explorer, parents=parents, seed=seed, made_at=now_us()
    )
    for number in reversed(warehouse.numbers(like.name)):
        if isinstance(like, Version) and number <= like.number:
            break
        stored, _ = warehouse.read(like.name, number)
        if stored.seed == seed:
            return stored
    return warehouse.publish(draft, body)
