"""Linear bandits: what a candidate is worth at once, by regressions in closed form. A loss is what they regress.

Every regression is a ridge, so one pass over the rows that adds up `sums` is all the training there is: rows may be
more than memory holds, and new rows are added to the sums of old ones. A head makes a scorer of the sums.
"""

from __future__ import annotations

import functools
import math
import time
from typing import Literal, Protocol

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.core.errors import DataError
from steersman.core.policy import EpsilonGreedy, Explorer, Policy, Thompson
from steersman.learn import HERE, Look, Progress, Run, nets
from steersman.learn.settings import require_candidates
from steersman.learn.sums import (
    Coefficients,
    Design,
    LossName,
    Regression,
    Ridge,
    Sums,
    gather,
    mean_of,
    regression,
    ridge_of,
    squared_error,
)

Array = np.ndarray


class Linear(Struct, frozen=True, forbid_unknown_fields=True):
    """A linear model of the reward; the candidate with the largest is taken.

    Attributes:
        loss: `mtr`: importance-weighted regression on the taken candidates; `direct`: the same without weights, best
            where the model is right; `ips`, `dr`: regression, over all candidates, of what the log says of each:
            inverse propensity scores, or these around a direct model.
        ridge: penalty on the squared coefficients, in rows, above 0; `auto`: the one under which the rewards of the
            log are likeliest, which is what to ask for where rows are not many times the coefficients.
        coefficients: `disjoint`: each named action has its own over [1, context]; `joint`: one for every product of
            [1, context] and [1, candidate], so that candidates with common features learn from each other; `auto`:
            disjoint for named actions without features, else joint.
    Raises:
        DataError: the ridge is not above 0.
    """

    loss: LossName = "mtr"
    ridge: Ridge = 1.0
    coefficients: Coefficients = "auto"

    def __post_init__(self) -> None:
        require_ridge(self.ridge)


class LinUCB(Struct, frozen=True, forbid_unknown_fields=True):
    """A linear model of the reward, with a bonus for what is not known yet.

    Attributes:
        alpha: standard errors of a candidate's mean reward that are added to it, at least 0.
        loss: see `Linear`; the errors are those of a regression on the taken candidates.
        ridge, coefficients: see `Linear`; `disjoint` is algorithm 1 of the paper, `joint` one model with the products
            of algorithm 2 as its features.
    Raises:
        DataError: a number is out of range.
    """

    alpha: float = 1.0
    loss: Literal["mtr", "direct"] = "direct"
    ridge: Ridge = 1.0
    coefficients: Coefficients = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise DataError(f"alpha is {self.alpha:g}, must be at least 0", field="alpha")
        require_ridge(self.ridge)


class LinearThompson(Struct, frozen=True, forbid_unknown_fields=True):
    """Bayesian linear regression of the reward; its posterior is sampled, see `core.policy.Thompson`.

    Coefficients have the prior N(0, noise^2 / ridge) and rewards the deviation `noise` around the model, so the
    posterior is N(theta, noise^2 (G + ridge)^-1) with G and theta those of the ridge regression.

    Attributes:
        draws: M, of the posterior, an even number: they come in pairs mirrored at its mean, so that their own mean is
            the posterior's.
        noise: deviation of the reward around the model, in units of reward, above 0; None: under which the rewards
            of the log are likeliest.
        scale: times the posterior's deviations, at least 0: below 1 explores less than Thompson sampling.
        loss: see `LinUCB`; with `mtr` rows count by their weight, in the posterior too.
        ridge, coefficients: see `Linear`.
    Raises:
        DataError: a number is out of range.
    """

    draws: int = 128
    noise: float | None = None
    scale: float = 1.0
    loss: Literal["mtr", "direct"] = "direct"
    ridge: Ridge = 1.0
    coefficients: Coefficients = "auto"

    def __post_init__(self) -> None:
        require_draws(self.draws)
        require_ridge(self.ridge)
        if self.noise is not None:
            require_positive("noise", self.noise)
        if not 0 <= self.scale < math.inf:
            raise DataError(f"scale is {self.scale:g}, must be at least 0", field="scale")


Config = Linear | LinUCB | LinearThompson


def fit(
    batch: Batch,
    config: Config,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """Learn a linear bandit. Only the draws of a posterior have random numbers: else the seed changes nothing.

    Each row counts as a decision of its own: what comes after it in its episode is not looked at.

    Sources: Bietti, Agarwal and Langford 2021, arXiv:1802.04064, section 3.2, for the losses; Li, Chu, Langford and
    Schapire 2010, arXiv:1003.0146, algorithms 1 and 2, for the bonus; Agrawal and Goyal 2013, arXiv:1209.3352,
    algorithm 1, for sampling.
    Raises:
        DataError: actions are no single candidates, candidates have no columns, or the columns are too many.
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
    """Learn from these rows and all that others were summed up from: as `fit` on all of them at once.

    Args:
        before: sums that this function gave for rows with the same encoder and config; None: there are none.
    """
    batch = run.plain(batch, "bandits")
    require_candidates(batch, type(config).__name__)
    design = Design.of(batch.encoder, config.coefficients)
    begun = time.perf_counter()
    sums: Sums = {}
    for done, sums in gather(batch, design, config.loss, before):
        tell = nets.looking(progress, look, functools.partial(made, batch, design, config, seed, sums))
        if tell is not None:
            ridge = ridge_of(sums, config.loss, config.ridge)
            coefficients = regression(sums, config.loss, ridge).solve(ridge)
            left = squared_error(sums, config.loss, coefficients)
            tell(done, len(batch), {"loss": left, "steps/s": done / (time.perf_counter() - begun)})
    return made(batch, design, config, seed, sums), sums


def made(batch: Batch, design: Design, config: Config, seed: int, sums: Sums) -> Policy:
    """What the sums of some rows say."""
    ridge, mean = ridge_of(sums, config.loss, config.ridge), mean_of(sums)
    found = regression(sums, config.loss, ridge)
    coefficients = found.solve(ridge)
    widths = (batch.encoder.context_width, batch.encoder.candidate_width, ())
    explorer: Explorer = EpsilonGreedy(0.0)
    match config:
        case Linear():
            shape, weights = nets.Shape("bilinear", *widths), {"weight": design.table(coefficients, mean)}
        case LinUCB():
            root = config.alpha * math.sqrt(found.variance(coefficients)) * found.roots(ridge)
            shape = nets.Shape("own-optimist" if design.own else "optimist", *widths)
            weights = {
                "mean.weight": design.table(coefficients, mean),
                "root": root if design.own else root[0],
            }
        case LinearThompson():
            posterior = sampled(found, ridge, config, seed)
            shape, explorer = nets.Shape("draws", *widths, draws=config.draws), Thompson()
            weights = {"weight": np.moveaxis(design.table(posterior, mean), 0, 2).copy()}
    return Policy(batch.encoder, nets.TorchScorer(shape, weights, 1.0), explorer)


class Posterior(Protocol):
    """What a learner with a linear posterior asks about it: see `LinearThompson`."""

    @property
    def draws(self) -> int: ...

    @property
    def noise(self) -> float | None: ...

    @property
    def scale(self) -> float: ...


def sampled(found: Regression, ridge: float, config: Posterior, seed: int) -> Array:
    """[M, B, P] f64, draws of the posterior, the second half of them mirrored at its mean."""
    deviation = math.sqrt(found.likeliest_noise(ridge)) if config.noise is None else config.noise
    normal = np.random.default_rng(seed).normal(size=(config.draws // 2, *found.target.shape))
    away = config.scale * deviation * np.einsum("bpq,mbq->mbp", found.roots(ridge), normal)
    return found.solve(ridge) + np.concatenate([away, -away])


def require_ridge(ridge: Ridge) -> None:
    """Raise DataError unless it is above 0, or `auto`."""
    if ridge != "auto":
        require_positive("ridge", ridge)


def require_positive(name: str, value: float) -> None:
    """Raise DataError unless it is above 0 and finite."""
    if not 0 < value < math.inf:
        raise DataError(f"{name} is {value:g}, must be above 0", field=name)


def require_draws(draws: int) -> None:
    """Raise DataError unless the draws are an even number that a net may have."""
    if not (2 <= draws <= nets.WIDEST and draws % 2 == 0):
        raise DataError(f"draws is {draws}, must be an even number in [2, {nets.WIDEST}]", field="draws")
