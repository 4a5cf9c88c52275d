"""A search over parameters: ask for keys, tell their rewards. A key is a perturbation; noise is never kept."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from msgspec import Struct

from steersman.core.errors import ConfigError, DataError, TrainingError
from steersman.core.noise import RUN_BYTES, Noise, pairs
from steersman.learn.evolution import ranks, sums
from steersman.learn.evolution.cma import CMA, SepCMA
from steersman.learn.evolution.evidence import Evidence, Sight, importance
from steersman.learn.evolution.solvers import ARS, PGPE, SNES, Arrays, OpenES
from steersman.learn.evolution.sums import Kind, Shapes

Array = np.ndarray

DECAY = 0.5
"""What a version is worth less than the next one, where noise has no density: signs and rank 1."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """How a search goes on. The same settings, keys and rewards give the same bits.

    Attributes:
        solver: which, and its own settings.
        noise: None: the solver's own choice.
        sigma: of the noise at first, above 0.
        max_age: versions that a sample may be old; older ones are counted and dropped.
        shapes: of the tensors that the parameters are, for noise of rank 1.
    """

    solver: OpenES | PGPE | SNES | SepCMA | CMA | ARS = SNES()
    noise: Kind | None = None
    sigma: float = 0.3
    max_age: int = 0
    shapes: Shapes = ()

    def __post_init__(self) -> None:
        name = type(self.solver).__name__
        if not 0 < self.sigma < float("inf"):
            raise ConfigError(f"sigma is {self.sigma:g}, must be above 0", field="sigma")
        if self.noise is not None and self.noise not in self.solver.kinds:
            raise ConfigError(
                f"{name} can not search with {self.noise}", hint=f"with {' or '.join(self.solver.kinds)}", field="noise"
            )
        if isinstance(self.solver, PGPE) and self.solver.sigma_rate > 0 and self.kind != "normals":
            raise ConfigError(
                f"{self.kind} can not tell how large sigma should be", hint="sigma_rate = 0", field="noise"
            )
        if self.max_age < 0 or (self.max_age and not self.solver.reuses):
            raise ConfigError(
                f"max_age is {self.max_age}",
                hint=f"{name} can not use samples of older versions" if self.max_age > 0 else "0 or more",
                field="max_age",
            )

    @property
    def kind(self) -> Kind:
        """The noise."""
        return self.noise or self.solver.kinds[0]


@dataclass(frozen=True)
class Past:
    """A version whose samples may still come. Its arrays are `mean` and `sigma`."""

    generation: int
    digest: str
    arrays: Arrays


@dataclass(frozen=True)
class Search:
    """Where a search stands. Telling it something gives another one.

    Attributes:
        settings: of the search.
        run: 16 bytes of which all noise is made.
        generation: batches that moved it.
        arrays: `mean` [d] f64 and whatever else the solver keeps.
        past: versions of which samples are still used, oldest first.
    """

    settings: Settings
    run: bytes
    generation: int
    arrays: Arrays
    past: tuple[Past, ...] = ()

    @property
    def mean(self) -> Array:
        """[d] f64, the parameters without noise."""
        return self.arrays["mean"]

    @property
    def digest(self) -> str:
        """SHA-256 of all that perturbed parameters are made of: run, noise, mean and spread."""
        return _digest(self.settings, self.run, self.arrays)

    def perturbed(self, keys: Array) -> Array:
        """[N, d] f32: the parameters that each key stands for. Small nets only: it holds them all."""
        kind, size = self.settings.kind, len(self.mean)
        noise = sums.rows(Noise(self.run), kind, keys.tolist(), size, self.settings.shapes)
        return (self.mean + self._spread(noise)).astype(np.float32)

    @functools.cached_property
    def _spread(self) -> Callable[[Array], Array]:
        """Found once: of a whole covariance it takes its axes."""
        return self.settings.solver.spread(self.arrays)


@dataclass(frozen=True)
class Told:
    """Rewards that came back, of whatever versions.

    Attributes:
        run: of the search whose noise it was.
        keys: [N] u64.
        generation: [N] i64, of the parameters that were perturbed.
        reward: [N] f64, more is better.
        block: [N] i64, of time, or of whatever else makes rewards incomparable; None: all are comparable.
        digests: generation -> digest of the parameters that were perturbed.
    """

    run: bytes
    keys: Array
    generation: Array
    reward: Array
    digests: Mapping[int, str]
    block: Array | None = None


class Account(Struct, frozen=True):
    """What became of a batch.

    Attributes:
        used: samples that moved the search.
        stale: of those, samples of older versions; ess: what all of them are worth, in fresh ones.
        refused: rewards that are no numbers.
        repeated: records that were there before, word for word.
        old: samples beyond max_age.
        moved: False: nothing was learned and nothing changed, as where all rewards were equal.
    """

    used: int
    stale: int
    ess: float
    refused: int
    repeated: int
    old: int
    moved: bool


def begin(settings: Settings, mean: Array, run: bytes | None = None) -> Search:
    """A search from some parameters on.

    Args:
        mean: [d], finite.
        run: 16 random bytes; None: drawn from the system, as every real run should.
    Raises:
        ConfigError: noise of rank 1 and no shapes that fit.
        DataError: the parameters are none.
    """
    mean = np.array(mean, dtype=np.float64)
    if mean.ndim != 1 or not len(mean) or not np.isfinite(mean).all():
        raise DataError(f"parameters of the shape {mean.shape}", hint="one row of finite numbers", field="mean")
    if settings.kind == "rank1":
        sums.check_shapes(settings.shapes, len(mean))
    run = os.urandom(RUN_BYTES) if run is None else run
    return Search(settings, Noise(run).run, 0, settings.solver.begin(mean, settings.sigma))


def ask(search: Search, count: int, entropy: Callable[[int], bytes] = os.urandom) -> Array:
    """[count] u64: keys of perturbations to try, in mirrored pairs if the solver wants such.

    Args:
        count: at least 1; even for mirrored pairs.
        entropy: gives so many random bytes; the system's, or those of a seeded simulation.
    Raises:
        ConfigError: there can not be so many.
    """
    if count < 1:
        raise ConfigError(f"{count} keys", hint="ask for at least 1", field="count")
    if not search.settings.solver.mirrored:
        return np.frombuffer(entropy(8 * count), dtype="<u8").astype(np.uint64)
    if count % 2:
        raise ConfigError(f"{count} keys in mirrored pairs", hint="ask for an even number", field="count")
    return pairs(entropy(4 * count))


def tell(search: Search, told: Told) -> tuple[Search, Account]:
    """The search after a batch. The same batch in any order gives the same bits.

    Raises:
        DataError: the batch is of another run or of other parameters, or holds one key with two rewards: nothing of
            it is used. Or no sample of it can be used.
        TrainingError: the parameters would no longer be finite.
    """
    rows, account = _usable(search, told)
    stratum = _strata(told, rows)
    if ranks.tied(told.reward[rows], stratum):
        return search, account
    evidence = _evidence(search, told, rows, stratum)
    arrays = search.settings.solver.tell(search.arrays, evidence)
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise TrainingError(
                f"{name} is no longer finite in generation {search.generation + 1}", hint="a lower rate"
            )
    if all(np.array_equal(array, search.arrays[name]) for name, array in arrays.items()):
        return search, account  # a gradient of 0, as of ARS where the best pairs earned the same
    past = (*search.past, _past(search))[-search.settings.max_age :] if search.settings.max_age else ()
    weight = evidence.weight
    account = msgspec.structs.replace(account, ess=float(weight.sum() ** 2 / np.sum(weight**2)), moved=True)
    return replace(search, generation=search.generation + 1, arrays=arrays, past=past), account


def _usable(search: Search, told: Told) -> tuple[Array, Account]:
    """The rows of a batch that count, ordered by generation and key."""
    if told.run != search.run:
        raise DataError(f"the batch is of the run {told.run.hex()}", hint=f"this search is {search.run.hex()}")
    n = len(told.keys)
    for name in ("generation", "reward", "block"):
        array = getattr(told, name)
        if array is not None and array.shape != (n,):
            raise DataError(f"{name} has the shape {array.shape} for {n} keys", field=name)
    known = {past.generation: past.digest for past in search.past} | {search.generation: search.digest}
    for generation in np.unique(told.generation).tolist():
        if generation > search.generation:
            raise DataError(f"the batch has generation {generation}, this search is at {search.generation}")
        if generation in known and told.digests.get(generation) != known[generation]:
            raise DataError(
                f"generation {generation} of the batch perturbed the parameters {told.digests.get(generation)!r:.15}",
                hint=f"this search perturbed {known[generation][:12]}: was another version served?",
            )
    finite = np.isfinite(told.reward)
    current = np.isin(told.generation, list(known))
    rows = np.flatnonzero(finite & current)
    rows = rows[np.lexsort((told.keys[rows], told.generation[rows]))]
    same = (np.diff(told.keys[rows]) == 0) & (np.diff(told.generation[rows]) == 0)
    if np.any(np.diff(told.reward[rows])[same] != 0):
        place = rows[np.flatnonzero(same & (np.diff(told.reward[rows]) != 0))[0]]
        raise DataError(
            f"the key {told.keys[place]} of generation {told.generation[place]} has two rewards",
            hint="a key is drawn for one episode of one unit",
        )
    rows = rows[np.concatenate([[True], ~same])] if len(rows) else rows
    if not len(rows):
        raise DataError(
            f"of {n} samples none can be used: {int(np.sum(~finite))} have no finite reward, "
            f"{int(np.sum(~current))} are of versions older than max_age {search.settings.max_age}"
        )
    account = Account(
        used=len(rows), stale=int(np.sum(told.generation[rows] < search.generation)), ess=0.0,
        refused=int(np.sum(~finite)), repeated=int(same.sum()), old=int(np.sum(finite & ~current)), moved=False,
    )  # fmt: skip
    return rows, account


def _strata(told: Told, rows: Array) -> Array:
    """[N] i64: what is ranked together: a version within a block."""
    block = np.zeros(len(rows), dtype=np.int64) if told.block is None else told.block[rows]
    _, place = np.unique(np.stack([told.generation[rows], block]), axis=1, return_inverse=True)
    return np.asarray(place).reshape(-1)


def _evidence(search: Search, told: Told, rows: Array, stratum: Array) -> Evidence:
    keys, size, noise = told.keys[rows], len(search.mean), Noise(search.run)
    sights = tuple(_sight(search, past) for past in search.past)
    sights = (*sights, Sight(np.zeros(1), np.ones(1), True))
    ages = [past.generation for past in search.past] + [search.generation]
    sight = np.searchsorted(ages, told.generation[rows])
    weight = np.ones(len(rows))
    for place, seen in enumerate(sights):
        mine = sight == place
        if seen.fresh or not mine.any():
            continue
        if search.settings.kind == "normals":
            weight[mine] = importance(noise, keys[mine], seen, size)
        else:
            weight[mine] = DECAY ** (search.generation - ages[place])
    if not weight.any():
        raise DataError("all samples are of parameters that are too far from the present ones", hint="use fresher ones")
    return Evidence(
        noise,
        search.settings.kind,
        search.settings.shapes,
        size,
        keys,
        told.reward[rows],
        stratum,
        weight,
        sight,
        sights,
    )


def _sight(search: Search, past: Past) -> Sight:
    """Where noise has no density a sample is a gradient of then, and its noise is taken as it is."""
    if search.settings.kind != "normals":
        return Sight(np.zeros(1), np.ones(1), False)
    sigma = search.arrays["sigma"]
    return Sight((past.arrays["mean"] - search.mean) / sigma, past.arrays["sigma"] / sigma, False)


def _past(search: Search) -> Past:
    arrays = {name: search.arrays[name] for name in ("mean", "sigma")}
    return Past(search.generation, search.digest, arrays)


def _digest(settings: Settings, run: bytes, arrays: Arrays) -> str:
    found = hashlib.sha256(run + settings.kind.encode() + repr(settings.shapes).encode())
    for name in ("mean", "sigma", "scale", "variance", "covariance"):
        if name in arrays:
            found.update(name.encode() + np.ascontiguousarray(arrays[name], dtype="<f8").tobytes())
    return found.hexdigest()
