"""Evolution strategies on a live policy: perturbed copies decide online, their log moves the parameters offline."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from steersman import flow, log, timeline
from steersman.config import Project
from steersman.core.batch import Batch
from steersman.core.errors import ConfigError, ConflictError, Error, GateError
from steersman.core.version import Parents, Version
from steersman.flow import perturbing, places
from steersman.flow.logs import opened
from steersman.flow.places import code_version, now_us
from steersman.learn import evolution as es
from steersman.models import parameters
from steersman.models.warehouse import CHAMPION, Draft, Warehouse

Array = np.ndarray

PENDING = "pending.json"
ENOUGH = 0.75
"""Share of the copies that must have a whole episode before an update."""


class Pending(Struct, frozen=True):
    """An update that was begun: what of the log it is made from, so that it ends the same however often it begins."""

    as_of: int


class Samples(Struct, frozen=True):
    """What the log says of perturbed copies.

    Attributes:
        generation, key, reward: of a copy, the mean return of its whole episodes.
        episodes: whole ones.
        open: episodes of copies that are not over, or that two copies decided in: they count for nothing.
    """

    generation: tuple[int, ...]
    key: tuple[int, ...]
    reward: tuple[float, ...]
    episodes: int
    open: int


class Updated(Struct, frozen=True):
    """What an update did.

    Attributes:
        version: that was made and is the champion now.
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


def init(
    project: Project,
    name: str,
    reference: str,
    settings: es.Settings,
    *,
    share: float,
    copies: int,
    block_s: float = 0.0,
) -> Version:
    """Store a version whose parameters can be perturbed, its search beside it; promote it to begin.

    Args:
        reference: of the version whose net it starts from; a number or an alias.
        settings: of the search; the shapes are those of the net.
        share: of the units that meet a perturbed copy, in (0, 1].
        copies: how many there are at a time.
        block_s: episodes that began in so many seconds are compared with each other, so that a trend of the day is not
            learned from; 0: all are.
    Raises:
        DataError: the version has no parameters.
    """
    if not 0 <= block_s < math.inf:
        raise ConfigError(f"block_s is {block_s:g}, must be 0 or more", field="block_s")
    if not 0 < share <= 1:
        raise ConfigError(f"share is {share:g}, must be in (0, 1]", field="share")
    project.policy(name)
    warehouse = Warehouse(project.warehouse_url)
    version, graph = warehouse.read(name, warehouse.resolve(name, reference))
    found = parameters.parameters_of(graph)
    search = es.begin(msgspec.structs.replace(settings, shapes=found.shapes), found.flat)
    es.ask(search, copies)  # refused before anything is stored
    made = _publish(warehouse, version, graph, search, version.parents)
    perturbing.write(project, name, made.number, search, _served(search, share, copies, block_s))
    return made


def update(project: Project, name: str) -> Updated:
    """Read the log, move the parameters, store them as the next version with its search, and make it the champion.

    Killed at any point and begun again it ends with the same parameters, bit for bit.

    Raises:
        NotFoundError: the champion has no search.
        ConflictError: too few copies have an episode, or nothing was to be learned.
        GateError: the log itself says that the step is worse; nothing is stored.
        DataError: the log has what this search did not perturb: nothing is stored.
    """
    warehouse = Warehouse(project.warehouse_url)
    number = warehouse.resolve(name, CHAMPION)
    search, served = perturbing.read(project, name, number)
    pending = perturbing.place(project, name, number) / PENDING
    if not pending.exists():
        places.write(pending, Pending(now_us()))
    as_of = msgspec.json.decode(pending.read_bytes(), type=Pending).as_of
    since = _since(project, name, number, search)
    try:
        found = _told(project, name, number, since, as_of)
        _check(found.gain, f"{name}@{number}")
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
        after = _served(moved, served.share, len(served.keys), served.block_s, made_from)
        perturbing.write(project, name, made.number, moved, after)
    if warehouse.resolve(name, CHAMPION) == number:
        warehouse.set_alias(name, CHAMPION, made.number, now_us())
    pending.unlink()
    return Updated(name, made.number, number, samples.episodes, samples.open, found.account, found.gain)


def replay(project: Project, name: str, number: int) -> bool:
    """Whether the log and the parent of a version give its parameters and its search again, bit for bit.

    Raises:
        ConflictError: `es init` made it, from no log.
    """
    search, served = perturbing.read(project, name, number)
    if served.made is None:
        raise ConflictError(f"{name}@{number} was made by es init", hint="replay one that es update made")
    found = _told(project, name, served.made.parent, served.made.since, served.made.as_of)
    same = all(np.array_equal(array, search.arrays[key]) for key, array in found.search.arrays.items())
    return same and found.build == served.made.build and found.search.digest == search.digest


@dataclass(frozen=True)
class _Moved:
    """A search after it was told what a log says; `build`: the digest of that."""

    search: es.Search
    samples: Samples
    account: es.Account
    gain: es.Gain | None
    build: str


def _check(gain: es.Gain | None, version: str) -> None:
    """Raise GateError if the samples that a step was made of say that it is worse."""
    if gain is not None and gain.high < 0:
        raise GateError(
            f"{version}: the log says that the step is worse: {gain.value:.3g} [{gain.low:.3g}, {gain.high:.3g}] "
            f"reward by {gain.pairs} pairs; nothing was published",
            hint="gather more episodes, or start anew with less momentum",
        )


def _told(project: Project, name: str, number: int, since: int, as_of: int) -> _Moved:
    """The search of a version after it was told what the log says until `as_of`."""
    search, served = perturbing.read(project, name, number)
    generations = {number: search.generation}
    digests = {search.generation: search.digest}
    for other, older in _older(project, name, number, search).items():
        generations[other] = older.generation
        digests[older.generation] = older.digest
    built = flow.build(project, name, since=since, until=as_of, as_of=as_of)
    rows = timeline.load(Path(built.directory))
    samples = _samples(rows, _noise(project, name, since, as_of), generations, served.block_s)
    fresh = sum(generation == search.generation for generation in samples.generation)
    if fresh < ENOUGH * len(served.keys):
        raise ConflictError(
            f"{name}@{number}: {fresh} of {len(served.keys)} perturbed copies have a whole episode, "
            f"at least {ENOUGH:.0%} must",
            hint=f"wait for more; {samples.open} episodes are not over, or were decided by two",
        )
    told = es.Told(
        run=search.run,
        keys=np.array(samples.key, dtype=np.uint64),
        generation=np.array(samples.generation, dtype=np.int64),
        reward=np.array(samples.reward, dtype=np.float64),
        digests=digests,
    )
    moved, account = es.tell(search, told)
    if not account.moved:
        raise ConflictError(
            f"{name}@{number}: all copies had the same return: nothing was learned", hint="wait for more"
        )
    gain = es.gain(search, moved, told) if "sigma" in search.arrays else None
    return _Moved(moved, samples, account, gain, built.digest)


def _samples(
    built: timeline.Built, noise: dict[str, tuple[int, int]], generations: dict[int, int], block_s: float
) -> Samples:
    """The mean return of every perturbed copy, over its whole episodes, each less the mean of its version and block.

    Args:
        noise: decision -> version and key, of those that a copy made.
        generations: of the versions that count.
        block_s: see `init`; 0: nothing is taken away.
    """
    batch = built.batch
    who = [noise.get(decision, (0, -1)) for decision in built.decision_ids.tolist()]
    version = np.array([one[0] for one in who], dtype=np.int64)
    key = np.array([max(one[1], 0) for one in who], dtype=np.uint64)
    perturbed = np.array([one[1] >= 0 for one in who], dtype=bool)
    returns, whole = _returns(batch)
    episodes: list[tuple[int, int, int, float]] = []  # generation, key, block, return
    left, ends = 0, [*batch.starts[1:].tolist(), len(batch)]
    for start, end in zip(batch.starts.tolist(), ends, strict=True):
        rows = slice(start, end)  # the next step is the next row
        if not perturbed[rows].any() or version[start] not in generations:
            continue
        same = perturbed[rows].all() and np.ptp(version[rows]) == 0 and (key[rows] == key[start]).all()
        if not (same and whole[start]):
            left += 1
            continue
        block = int(built.at[start] // (block_s * 1e6)) if block_s else 0
        episodes.append((generations[int(version[start])], int(key[start]), block, float(returns[start])))
    copies: dict[tuple[int, int], list[float]] = {}
    means = _means(episodes) if block_s else {}
    for generation, one, block, value in episodes:
        copies.setdefault((generation, one), []).append(value - means.get((generation, block), 0.0))
    ordered = sorted(copies)
    return Samples(
        generation=tuple(generation for generation, _ in ordered),
        key=tuple(one for _, one in ordered),
        reward=tuple(float(np.mean(np.sort(copies[one]))) for one in ordered),
        episodes=sum(map(len, copies.values())),
        open=left,
    )


def _means(episodes: list[tuple[int, int, int, float]]) -> dict[tuple[int, int], float]:
    """Generation and block -> mean return of its episodes."""
    found: dict[tuple[int, int], list[float]] = {}
    for generation, _, block, value in episodes:
        found.setdefault((generation, block), []).append(value)
    return {place: float(np.mean(np.sort(values))) for place, values in found.items()}


def _returns(batch: Batch) -> tuple[Array, Array]:
    """[N] f64, the discounted sum of rewards from a row on; [N] bool, whether the whole episode was seen."""
    returns, whole = batch.reward.astype(np.float64).copy(), batch.over & ~batch.begun
    for row in range(len(batch) - 1, -1, -1):  # the next step is the next row
        if batch.next[row] >= 0:
            returns[row] += batch.discount[row] * returns[batch.next[row]]
            whole[row] = whole[batch.next[row]] and not batch.begun[row]
    return returns, whole


def _noise(project: Project, name: str, since: int, as_of: int) -> dict[str, tuple[int, int]]:
    """Decision -> version and key, of the perturbed decisions of a window."""
    files = log.files(project.log_directory, name, since, as_of).decisions
    if not files:
        return {}
    with opened(project) as tables:
        tables.view("es_decisions", files)
        columns = tables.query(
            'SELECT id, version, noise FROM es_decisions WHERE noise IS NOT NULL ORDER BY "at" DESC, id'
        )
    rows = zip(columns["id"].tolist(), columns["version"].tolist(), columns["noise"].tolist(), strict=True)
    return {decision: (int(version), int(key)) for decision, version, key in rows}


def _since(project: Project, name: str, number: int, search: es.Search) -> int:
    """When the oldest version was made of which samples are used."""
    oldest = min([number, *_older(project, name, number, search)])
    return perturbing.read(project, name, oldest)[1].at


def _older(project: Project, name: str, number: int, search: es.Search) -> dict[int, es.Search]:
    """Number -> search, of the versions before of which samples are still used."""
    found: dict[int, es.Search] = {}
    while len(found) < len(search.past):
        made = perturbing.read(project, name, number)[1].made
        if made is None:
            break
        number = made.parent
        found[number] = perturbing.read(project, name, number)[0]
    return found


def _served(
    search: es.Search, share: float, copies: int, block_s: float, made: perturbing.Made | None = None
) -> perturbing.Served:
    keys = tuple(es.ask(search, copies).tolist())
    seed = os.urandom(16).hex()
    return perturbing.Served(share=share, seed=seed, keys=keys, at=now_us(), block_s=block_s, made=made)


def _publish(warehouse: Warehouse, like: Version, graph: bytes, search: es.Search, parents: Parents) -> Version:
    """The version with the parameters of a search; one that was stored before the process was killed is found again."""
    body = parameters.opened(graph, search.mean)
    seed = hashlib.sha256(search.digest.encode()).hexdigest()[:32]
    draft = Draft(
        name=like.name, encoder=like.encoder, explorer=like.explorer, parents=parents, seed=seed, made_at=now_us()
    )
    for number in reversed(warehouse.numbers(like.name)):
        if number <= like.number:
            break
        stored, _ = warehouse.read(like.name, number)
        if stored.seed == seed:
            return stored
    return warehouse.publish(draft, body)
