"""Evolution in a world, without a server: perturbed policies play, their rewards move the search."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from msgspec import Struct

from steersman.core.errors import ConfigError, NotFoundError
from steersman.learn import evolution as es
from steersman.learn.evolution.population import Net
from steersman.worlds.episodes import World
from steersman.worlds.poles import Poles
from steersman.worlds.registered import registered

Array = np.ndarray

WORLDS: dict[str, World] = {"cartpole": Poles()}
"""Those of our own; every other name is asked of Gymnasium's registry."""

HIDDEN = (20,)
"""Units of the layers of tanh between an observation and an action."""

POPULATION = 16
EPISODES = 20
"""Of the policy without noise, in every generation: whether the world is solved. They are no evaluations."""

Common = Literal["none", "pair", "generation"]
"""Whose episodes begin alike: nobody's; those of the two keys of a mirrored pair; those of all keys of a batch."""


class Generation(Struct, frozen=True):
    """What the perturbed policies of a batch earned, and what the one without noise did.

    Attributes:
        generation: of the search that was perturbed; it stays where a batch says nothing.
        evaluations: episodes of perturbed policies until now.
        mean, best: return of an episode over the perturbed policies.
        clean: mean return of `EPISODES` episodes without noise.
    """

    generation: int
    evaluations: int
    mean: float
    best: float
    clean: float


class Evolved(Struct, frozen=True):
    """How it ended.

    Attributes:
        solved: the policy without noise has the mean return that counts as solved in the world, where one does.
        evaluations: episodes of perturbed policies that it took.
        clean: mean return of the policy without noise, `EPISODES` episodes.
        batches: that were told.
        refused: rewards that were no numbers.
    """

    solved: bool
    evaluations: int
    clean: float
    batches: int
    refused: int


class Game(NamedTuple):
    """What plays, and where."""

    world: World
    net: Net


Tell = Callable[[Generation], None]
Evaluate = Callable[[Game, es.Search, Array, Array], Array]
"""How returns are found: `evaluate`, or a cluster that gives the same bits."""


def find(name: str) -> World:
    """A world by its name: one of `WORLDS`, or the id of an environment that Gymnasium makes.

    Raises:
        ConfigError: there is none, or it can not be played; see `registered`.
        MissingExtra: it is none of `WORLDS`, and Gymnasium is not installed.
    """
    return WORLDS[name] if name in WORLDS else registered(name, tuple(WORLDS))


def net(world: World, hidden: tuple[int, ...] = HIDDEN) -> Net:
    """What plays there."""
    return Net((world.inputs, *hidden, world.outputs))


def evaluate(game: Game, search: es.Search, keys: Array, begun: Array) -> Array:
    """[P] f64: the return of an episode of each perturbed policy, and of the search's own where there are more starts.

    The return of a row does not depend on the rows beside it, to the bit.

    Args:
        keys: [K] u64, of the first rows.
        begun: [P, ...], how each begins, at least K.
    """
    clean = np.broadcast_to(search.mean.astype(np.float32), (len(begun) - len(keys), game.net.size))
    rows = np.concatenate([search.perturbed(keys), clean]) if len(keys) else clean
    return game.world.play(game.net.members(rows), begun)


def starts(world: World, common: Common, population: int, rng: np.random.Generator) -> Array:
    """[population, ...]: how the episodes of a batch begin; a world's chance is nothing else than that.

    Common random numbers: what both keys of a pair meet goes out of their difference.

    Raises:
        ConfigError: there are pairs and the population is odd.
    """
    alike = {"none": 1, "pair": 2, "generation": population}[common]
    if population % alike:
        raise ConfigError(f"{population} perturbed policies in pairs", hint="take an even number", field="population")
    return np.repeat(world.starts(population // alike, rng), alike, axis=0)


def evolve(  # noqa: PLR0913  (all but the first two by keyword)
    world: World,
    settings: es.Settings,
    *,
    hidden: tuple[int, ...] = HIDDEN,
    population: int = POPULATION,
    batches: int = 200,
    common: Common = "none",
    seed: int | None = None,
    path: Path | None = None,
    tell: Tell = lambda _: None,
    by: Evaluate = evaluate,
) -> Evolved:
    """Search until the policy without noise solves the world, or until so many batches were told.

    Args:
        hidden: units of each layer between an observation and an action.
        population: perturbed policies in a generation, an episode each.
        common: who meets the same chance of the world.
        seed: of the world and of the keys, so that it can be repeated; None: both from the system's entropy.
        path: of the search: it goes on from there if there is one, and is written after every generation.
        tell: called with every batch.
        by: where the episodes are played.
    Raises:
        ConfigError: the search at `path` has other settings or another net, or its keys are no pairs.
    """
    if common == "pair" and not settings.solver.mirrored:
        raise ConfigError(f"{type(settings.solver).__name__} has no mirrored pairs", hint="none, or generation")
    game = Game(world, net(world, hidden))
    search, goal = _begun(settings, game.net.size, seed, path), math.inf if world.solved is None else world.solved
    evaluations = refused = idle = 0
    for batch in itertools.count():
        entropy, rng = _drawn(seed, search.generation, idle)
        keys = es.ask(search, population, entropy)
        begun = np.concatenate([starts(world, common, population, rng), world.starts(EPISODES, rng)])
        returns = by(game, search, keys, begun)
        earned, value = returns[:population], float(returns[population:].mean())
        if value >= goal or batch == batches:  # what these perturbed policies earned changes nothing any more
            break
        evaluations += population
        tell(Generation(search.generation, evaluations, float(earned.mean()), float(earned.max()), value))
        generation = np.full(population, search.generation)
        told = es.Told(search.run, keys, generation, earned, {search.generation: search.digest})
        search, account = es.tell(search, told)
        refused += account.refused
        idle = 0 if account.moved else idle + 1
        if path is not None:
            es.save(search, path)
    return Evolved(value >= goal, evaluations, value, batch, refused)


def _begun(settings: es.Settings, size: int, seed: int | None, path: Path | None) -> es.Search:
    if path is not None:
        try:
            found = es.load(path)
        except NotFoundError:
            pass
        else:
            if found.settings != settings:
                raise ConfigError(f"{path} has other settings: {found.settings}", hint="name another file")
            if len(found.mean) != size:
                message = f"{path} has {len(found.mean)} parameters, the net of this world has {size}"
                raise ConfigError(message, hint="name another file, or the world it was begun in")
            return found
    run = os.urandom(16) if seed is None else np.random.default_rng([seed, 2**32]).bytes(16)
    return es.begin(settings, np.zeros(size), run)


def _drawn(seed: int | None, generation: int, idle: int) -> tuple[Callable[[int], bytes], np.random.Generator]:
    """What keys and starts of a batch are drawn from: of a seed each has its own, so a restart repeats none."""
    if seed is None:
        return os.urandom, np.random.default_rng()
    keys, world = np.random.SeedSequence([seed, generation, idle]).spawn(2)
    return np.random.default_rng(keys).bytes, np.random.default_rng(world)
