"""Batch to policy. The table of learners; the verbs configure, fit, to_onnx, save, load. Torch comes when they run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.core.errors import ConfigError, DataError, MissingExtra, did_you_mean
from steersman.core.features import Encoder
from steersman.core.policy import Explorer, Policy, Softmax, Thompson
from steersman.core.simulator import Simulator
from steersman.learn.run import HERE, Keep, Run, rank, world
from steersman.learn.sums import Sums

__all__ = [
    "EXPLORERS",
    "HERE",
    "LEARNERS",
    "PLAYERS",
    "Group",
    "Keep",
    "Learner",
    "Look",
    "Progress",
    "Run",
    "Sums",
    "check_explorer",
    "configure",
    "converted",
    "explorer_of",
    "extend",
    "fit",
    "gives_draws",
    "improve",
    "load",
    "load_sums",
    "save",
    "save_sums",
    "to_onnx",
    "together",
    "untrained",
]

T = TypeVar("T", bound=Struct)

LEARNERS: dict[str, str] = {
    "dqn": "steersman.learn.dqn:DQN",
    "cql": "steersman.learn.dqn:CQL",
    "c51": "steersman.learn.dqn:C51",
    "qr-dqn": "steersman.learn.dqn:QRDQN",
    "ddpg": "steersman.learn.actor_critic:DDPG",
    "td3": "steersman.learn.actor_critic:TD3",
    "td3-bc": "steersman.learn.actor_critic:TD3BC",
    "sac": "steersman.learn.actor_critic:SAC",
    "discrete-sac": "steersman.learn.discrete:SAC",
    "iql": "steersman.learn.policies:IQL",
    "awac": "steersman.learn.policies:AWAC",
    "crr": "steersman.learn.policies:CRR",
    "bc": "steersman.learn.policies:BC",
    "planned": "steersman.learn.planned:Planned",
    "slate-q": "steersman.learn.slateq:SlateQ",
    "plackett-luce": "steersman.learn.plackett_luce:PlackettLuce",
    "linear": "steersman.learn.bandit:Linear",
    "linucb": "steersman.learn.bandit:LinUCB",
    "thompson": "steersman.learn.bandit:LinearThompson",
    "neural-thompson": "steersman.learn.neural:NeuralThompson",
    "ucb1": "steersman.learn.arms:UCB1",
    "beta-thompson": "steersman.learn.arms:BetaThompson",
}
"""Name -> "module:Config". The module is a Learner; its config is a frozen Struct."""

PLAYERS: dict[str, str] = {"ppo": "steersman.learn.gradient:PPO", "reinforce": "steersman.learn.gradient:REINFORCE"}
"""Further names, of those that learn from their own decisions in a simulator alone, see `improve`."""

EXPLORERS: dict[str, Explorer] = {
    **dict.fromkeys(("discrete-sac", "iql", "awac", "crr", "bc", "plackett-luce", *PLAYERS), Softmax(1.0)),
    **dict.fromkeys(("thompson", "neural-thompson", "beta-thompson"), Thompson()),
}
"""Name -> what serves its scores as they were learned, where these are a policy over candidates, or draws of values."""

Progress = Callable[[int, int, dict[str, float]], None]
"""(steps done, steps in all, figures such as loss, q, steps/s) -> None."""

Look = Callable[[int, int, dict[str, float], Callable[[], Policy]], None]
"""(steps done, steps in all, figures, what gives the policy as it is then) -> None."""


class Learner(Protocol):
    """What a module of the table offers."""

    def fit(
        self,
        batch: Batch,
        config: Any,
        seed: int,
        progress: Progress | None = None,
        look: Look | None = None,
        run: Run = HERE,
    ) -> Policy:
        """Learn a policy that takes what it scores best; it explores once somebody gives it an explorer."""
        ...


def configure(name: str, table: Mapping[str, Any], *, simulator: bool = False) -> Struct:
    """The settings of a learner, from a table of a file.

    Args:
        name: of the table of learners.
        table: setting -> value; what is left out has its default.
        simulator: it shall learn by `improve`, so it may be one of PLAYERS, too.
    Raises:
        ConfigError: no such learner or setting, a wrong type, or a number out of range.
        MissingExtra: torch is not installed.
    """
    if name in PLAYERS and not simulator:
        raise ConfigError(
            f"{name} learns from its own decisions, not from a log", hint="steersman simulate", field="learner"
        )
    rows = LEARNERS | PLAYERS if simulator else LEARNERS
    if name not in rows:
        raise ConfigError(f"unknown learner {name!r}", hint=did_you_mean(name, rows), field="learner")
    module, _, kind = rows[name].partition(":")
    config: type[Struct] = getattr(_load(module), kind)
    return converted(table, config, f"learner {name}")


def converted(table: Mapping[str, Any], kind: type[T], who: str) -> T:
    """A table of a file as the settings of a kind.

    Args:
        who: they are of, for errors.
    Raises:
        ConfigError: an unknown setting, a wrong type, or a number out of range.
    """
    for key in table:
        if key not in kind.__struct_fields__:
            raise ConfigError(
                f"{who}: unknown setting {key}", hint=did_you_mean(key, kind.__struct_fields__), field=key
            )
    try:
        return msgspec.convert(dict(table), kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{who}: {error}") from None
    except DataError as error:
        raise ConfigError(f"{who}: {error.message}", hint=error.hint, field=error.field) from None


def improve(
    world: Simulator, config: Struct, turns: Mapping[str, Any], seed: int, progress: Progress | None = None
) -> Policy:
    """Learn a policy from its own decisions in a simulator.

    Args:
        config: from `configure`, of `dqn`, `cql`, `c51`, `qr-dqn`, `ppo` or `reinforce`; for numbers of `ddpg`, `td3`
            or `sac`.
        turns: how playing and learning take turns: setting -> value of `rounds.Rounds` for the Q family, of
            `online.Online` for numbers; the others have none.
        progress: told (done, in all, figures) now and then, in training steps or in episodes.
    Raises:
        ConfigError: the learner can not learn so, or not in this world; or a setting of the turns is wrong.
        TrainingError: the training diverged.
    """
    policy: Policy = _load("steersman.learn.playing").improve(world, config, turns, seed, progress)
    return policy


def gives_draws(config: Struct) -> bool:
    """Whether the learner's scores come as draws of a posterior, which `core.policy.Thompson` samples from."""
    return "draws" in config.__struct_fields__


def fit(
    batch: Batch,
    config: Struct,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """Learn a policy from a batch.

    Args:
        config: from `configure`; its type says which learner.
        seed: of every random number.
        progress: told (steps done, steps in all, figures) every hundred steps or so.
        look: told the same, and may ask for the policy as it is; at the end too.
        run: which rows are learned from, where, and what the training goes on from.
    Returns:
        a policy that takes the best candidate, or for numbers does what it learned, a point or a density; put the
        explorer it shall be served with in its place.
    Raises:
        ConfigError: the config belongs to no learner.
        DataError: the learner can not learn from such a batch.
        TrainingError: the training diverged.
    """
    learner: Learner = _learner(config)
    return learner.fit(batch, config, seed, progress, look, run)


def extend(
    batch: Batch,
    config: Struct,
    seed: int,
    before: Sums | None = None,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> tuple[Policy, Sums | None]:
    """Learn a policy from a batch and from all rows that earlier sums are of, as `fit` does from all of them at once.

    Args:
        before: what an earlier call gave for rows with the same encoder and the same config; None: there are none.
        config, seed, progress, look, run: see `fit`.
    Returns:
        the policy, and the sums that later rows can be added to; None: the learner keeps nothing.
    Raises:
        ConfigError: there are sums, and the learner can not add to them; or as `fit`.
    """
    learner = _learner(config)
    if hasattr(learner, "extend"):
        policy, sums = learner.extend(batch, config, seed, before, progress, look, run)
        return policy, sums
    if before is not None:
        raise ConfigError(f"{type(config).__name__} can not add rows to what it learned", hint="train it anew")
    return learner.fit(batch, config, seed, progress, look, run), None


def save_sums(sums: Sums, path: Path) -> None:
    """Write sums to a file that appears whole. The same sums give the same bytes."""
    _load("steersman.learn.stored").save_sums(sums, path)


def load_sums(path: Path) -> Sums:
    """Read sums that `save_sums` wrote.

    Raises:
        NotFoundError: there are none.
        DataError: the file is damaged.
    """
    sums: Sums = _load("steersman.learn.stored").load_sums(path)
    return sums


def check_explorer(config: Struct, encoder: Encoder, explorer: Explorer) -> None:
    """Whether an explorer can read what the learner will score, before anything is learned.

    Raises:
        ConfigError: it can not.
    """
    readers = getattr(type(config), "EXPLORERS", ())
    if encoder.numbers is not None and readers and not isinstance(explorer, tuple(map(type, readers))):
        raise ConfigError(
            f"the explorer {_kind(explorer)} can not read what {type(config).__name__} learns over numbers",
            hint=f"use an explorer of kind {' or '.join(map(_kind, readers))}",
            field="explorer",
        )


def explorer_of(name: str, config: Struct, numbers: bool) -> Explorer | None:
    """What serves the scores of a learner as they were learned; None: they are values, and any explorer will do.

    Args:
        name, config: of the learner.
        numbers: the actions are numbers.
    """
    if not numbers:
        return EXPLORERS.get(name)
    readers: tuple[Explorer, ...] = getattr(type(config), "EXPLORERS", ())
    return readers[0] if readers else None


def _kind(explorer: Explorer) -> str:
    return str(type(explorer).__struct_config__.tag)


@dataclass(frozen=True)
class Group:
    """The processes that train together.

    Attributes:
        first: this one is the first of them, which writes; also where there is only one.
        wait: until all of them are here.
    """

    first: bool
    wait: Callable[[], None]


@contextmanager
def together(run: Run) -> Iterator[Group]:
    """Meanwhile this process and the others that torchrun started train as one.

    Raises:
        ConfigError: there are fewer CUDA devices than processes.
    """
    if world() == 1:
        yield Group(True, lambda: None)
        return
    nets = _load("steersman.learn.nets")
    with nets.joined(run):
        yield Group(rank() == 0, nets.wait)


def to_onnx(policy: Policy) -> bytes:
    """The scorer of a learned policy as an ONNX graph.

    Returns:
        a model with the inputs `context` [N, F] f32 and `candidates` [N, K, A] f32 and the output `scores`
        [N, K] f32, for numbers without the candidates and [N, S] f32; the same policy gives the same bytes.
    Raises:
        DataError: no learner made the policy.
    """
    graph: bytes = _load("steersman.learn.nets").scorer_of(policy).to_onnx()
    return graph


def untrained(encoder: Encoder, hidden: tuple[int, ...], explorer: Explorer, seed: int) -> Policy:
    """A policy whose net has random weights: every one uniform within 1 / sqrt(inputs of its layer).

    Args:
        hidden: width of each hidden layer; empty: a linear net.
        seed: of the weights.
    Raises:
        DataError: the actions are numbers, the candidates have no columns, or a width is out of range.
    """
    made: Policy = _load("steersman.learn.random_net").policy(encoder, hidden, explorer, seed)
    return made


def save(policy: Policy, directory: Path) -> None:
    """Write a policy to a directory that appears whole: aside first, then renamed. One that is there is replaced.

    The same policy gives the same bytes.

    Raises:
        DataError: no learner made the policy.
    """
    _load("steersman.learn.stored").save(policy, directory)


def load(directory: Path) -> Policy:
    """Read a policy that `save` wrote. What is read is data, never code.

    Raises:
        NotFoundError: there is none.
        DataError: a file is damaged, or not one of ours.
    """
    policy: Policy = _load("steersman.learn.stored").load(directory)
    return policy


def _learner(config: Struct) -> Any:
    """The module whose config it is: a Learner; one that can add rows to what it learned has `extend`, too."""
    module, kind = type(config).__module__, type(config).__qualname__
    if f"{module}:{kind}" not in LEARNERS.values():
        raise ConfigError(f"{kind} is not the config of a learner", hint="configure makes one")
    return _load(module)


def _load(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtra("torch", "learn") from None
