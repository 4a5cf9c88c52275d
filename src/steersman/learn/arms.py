"""Bandits without a context: what each named action is worth on average, and how sure that is."""

from __future__ import annotations

import functools
import math
import time
from typing import Literal

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.core.errors import DataError
from steersman.core.policy import EpsilonGreedy, Explorer, Policy, Thompson
from steersman.learn import HERE, Look, Progress, Run, nets
from steersman.learn.bandit import require_draws, require_positive
from steersman.learn.settings import require_candidates
from steersman.learn.sums import Sums, parts

Array = np.ndarray


class Arms(Struct, frozen=True, forbid_unknown_fields=True):
    """What both have.

    Attributes:
        loss: `direct`: the mean reward of the rows in which an action was taken, right where the log chose without a
            look at the context; `mtr`: every row weighted by 1 / propensity, right whatever it looked at. The rows of
            an action then count as (sum w)^2 / sum w^2 of them.
        lowest, highest: the reward's bounds, in units of reward.
    Raises:
        DataError: a number is out of range.
    """

    loss: Literal["mtr", "direct"] = "direct"
    lowest: float = 0.0
    highest: float = 1.0

    def __post_init__(self) -> None:
        if not -math.inf < self.lowest < self.highest < math.inf:
            raise DataError(f"lowest is {self.lowest:g}, must be below highest, {self.highest:g}", field="lowest")


class UCB1(Arms, frozen=True, forbid_unknown_fields=True):
    """The largest mean + width * alpha * sqrt(2 ln(rows in all) / rows of the action); one never taken comes first.

    Attributes:
        alpha: 1 is UCB1 as its authors have it; at least 0.
    Source: Auer, Cesa-Bianchi and Fischer 2002, figure 1; width is highest - lowest.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < math.inf:
            raise DataError(f"alpha is {self.alpha:g}, must be at least 0", field="alpha")


class BetaThompson(Arms, frozen=True, forbid_unknown_fields=True):
    """A Beta posterior of the mean reward of each action, sampled, see `core.policy.Thompson`.

    A reward between its bounds counts as that share of a success: those of 0 or 1 are Bernoulli's.

    Attributes:
        draws: M, of each posterior, an even number.
        successes, failures: of the prior Beta(successes, failures), above 0.
    Source: Chapelle and Li 2011, algorithm 2.
    """

    draws: int = 256
    successes: float = 1.0
    failures: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_draws(self.draws)
        require_positive("successes", self.successes)
        require_positive("failures", self.failures)


Config = UCB1 | BetaThompson


def fit(
    batch: Batch,
    config: Config,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """Learn what named actions are worth on average. Only draws of a posterior are random.

    Raises:
        DataError: actions have no names, or a reward is beyond its bounds.
        ConfigError: the run asks for what a closed form has no use for.
    """
    return extend(batch, config, seed, None, progress, look, run)[0]


def extend(
    batch: Batch,
    config: Config,
    seed: int,
    before: Sums | None,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> tuple[Policy, Sums]:
    """Learn from these rows and all that others were summed up from; see `bandit.extend`."""
    batch = run.plain(batch, "bandits")
    require_candidates(batch, type(config).__name__)
    _check(batch, config)
    names = batch.encoder.candidate_width
    sums = dict(before or {name: np.zeros(names) for name in ("weight", "weight2", "reward", "reward2")})
    begun = time.perf_counter()
    for part in parts(len(batch)):
        taken = batch.candidates[part][np.arange(part.stop - part.start), batch.action[part]].argmax(axis=1)
        weight = 1.0 / batch.propensity[part] if config.loss == "mtr" else np.ones(len(taken))
        reward = (batch.reward[part] - config.lowest) / (config.highest - config.lowest)
        for name, term in (
            ("weight", weight), ("weight2", weight**2), ("reward", weight * reward), ("reward2", weight * reward**2)
        ):  # fmt: skip
            sums[name] = sums[name] + np.bincount(taken, term, minlength=names)
        tell = nets.looking(progress, look, functools.partial(made, batch, config, seed, dict(sums)))
        if tell is not None:
            figures = {"loss": _squared_error(sums, config), "steps/s": part.stop / (time.perf_counter() - begun)}
            tell(part.stop, len(batch), figures)
    return made(batch, config, seed, sums), sums


def made(batch: Batch, config: Config, seed: int, sums: Sums) -> Policy:
    """What the sums of some rows say."""
    rows, mean = counted(sums)
    width = config.highest - config.lowest
    widths = (batch.encoder.context_width, batch.encoder.candidate_width, ())
    explorer: Explorer = EpsilonGreedy(0.0)
    match config:
        case UCB1():
            shape, weight = nets.Shape("arms", *widths), ucb1(rows, mean, config.alpha)[:, None]
        case BetaThompson():
            a, b = config.successes + rows * mean, config.failures + rows * (1.0 - mean)
            draws = np.random.default_rng(seed).beta(a[:, None], b[:, None], size=(len(a), config.draws))
            shape, weight, explorer = nets.Shape("arm-draws", *widths, draws=config.draws), draws, Thompson()
    scorer = nets.TorchScorer(shape, {"weight": config.lowest + width * weight}, 1.0)
    return Policy(batch.encoder, scorer, explorer)


def counted(sums: Sums) -> tuple[Array, Array]:
    """[A] rows of each action, and [A] their mean reward as a share of its bounds; 0 where there are none."""
    weight, square = sums["weight"], sums["weight2"]
    rows = np.divide(weight**2, square, out=np.zeros_like(weight), where=square > 0)
    return rows, np.divide(sums["reward"], weight, out=np.zeros_like(weight), where=weight > 0)


def ucb1(rows: Array, mean: Array, alpha: float) -> Array:
    """[A] indices: of actions without a row one more than the largest of the others.

    >>> ucb1(np.array([2.0, 0.0, 6.0]), np.array([0.5, 0.0, 0.75]), 1.0).round(4).tolist()
    [1.942, 2.942, 1.5826]
    """
    tried = rows > 0
    bonus = alpha * np.sqrt(2.0 * np.log(rows.sum()) / rows[tried])
    index = np.empty(len(rows))
    index[tried] = mean[tried] + bonus
    index[~tried] = index[tried].max() + 1.0
    return index


def _squared_error(sums: Sums, config: Config) -> float:
    """What the mean of each action leaves of the rewards, mean weighted square, in squared units of reward."""
    _, mean = counted(sums)
    left = float((sums["reward2"] - mean * sums["reward"]).sum() / sums["weight"].sum())
    return max(left, 0.0) * (config.highest - config.lowest) ** 2


def _check(batch: Batch, config: Config) -> None:
    if not batch.encoder.actions or batch.encoder.candidate:
        raise DataError(
            "a bandit without context knows actions by their names, and these candidates have "
            + ("features" if batch.encoder.candidate else "no names"),
            hint="name the actions of the problem, or use the learner linear, linucb or thompson",
        )
    beyond = np.flatnonzero((batch.reward < config.lowest) | (batch.reward > config.highest))
    if beyond.size:
        raise DataError(
            f"row {beyond[0]}: the reward is {batch.reward[beyond[0]]:g}, must be in [{config.lowest:g}, "
            f"{config.highest:g}] ({beyond.size} such rows of {len(batch)})",
            hint="set lowest and highest to the bounds of the reward",
            field="reward",
        )
