"""CMA-ES with a full covariance, for some hundred parameters, and with a diagonal one, for more."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from steersman.core.errors import DataError
from steersman.learn.evolution import ranks
from steersman.learn.evolution.evidence import Evidence
from steersman.learn.evolution.solvers import Arrays, Solver

Array = np.ndarray

FEWEST = 4
"""Samples that CMA learns a covariance from: the better half of fewer is one, which says nothing of a spread."""


@dataclass(frozen=True)
class _Rates:
    """What the numbers of samples and of parameters say: the weights of the ranks, and how fast everything moves."""

    weights: Array  # [N], best first, the negative ones last
    mu_eff: float
    path_sigma: float  # c_sigma
    damping: float
    path: float  # c_c
    rank_one: float  # c_1
    rank_mu: float
    length: float  # of a standard normal vector


def _rates(n: int, d: int) -> _Rates:
    """Hansen 2016, table 1."""
    raw = math.log((n + 1) / 2) - np.log(np.arange(1, n + 1))
    half = n // 2
    mu_eff = float(raw[:half].sum() ** 2 / (raw[:half] ** 2).sum())
    mu_eff_negative = float(raw[half:].sum() ** 2 / (raw[half:] ** 2).sum())
    rank_one = 2 / ((d + 1.3) ** 2 + mu_eff)
    rank_mu = min(1 - rank_one - 1e-8, 2 * (mu_eff - 2 + 1 / mu_eff) / ((d + 2) ** 2 + mu_eff))
    bound = min(
        1 + rank_one / rank_mu, 1 + 2 * mu_eff_negative / (mu_eff + 2), (1 - rank_one - rank_mu) / (d * rank_mu)
    )
    best, worst = np.maximum(raw, 0.0), np.minimum(raw, 0.0)
    path_sigma = (mu_eff + 2) / (d + mu_eff + 5)
    return _Rates(
        weights=best / best.sum() - bound * worst / worst.sum(),
        mu_eff=mu_eff,
        path_sigma=path_sigma,
        damping=_damping(mu_eff, d) + path_sigma,
        path=(4 + mu_eff / d) / (d + 4 + 2 * mu_eff / d),
        rank_one=rank_one,
        rank_mu=rank_mu,
        length=_length(d),
    )


def _rates_of_a_diagonal(n: int, d: int) -> _Rates:
    """Ros and Hansen 2008: there are fewer variances to learn than covariances. Its rank-one rate as in `cmaes`."""
    half = n // 2
    raw = np.maximum(0.0, math.log(half + 1) - np.log(np.arange(1, n + 1)))
    weights = raw / raw.sum()
    mu_eff = float(1 / (weights**2).sum())
    rank_one = 2 / ((d + 1.3) ** 2 + mu_eff)
    whole = min(1.0, (2 * mu_eff - 1) / ((d + 2) ** 2 + mu_eff))
    rank_mu = (d + 2) / 3 * (2 / mu_eff / (d + math.sqrt(2)) ** 2 + (1 - 1 / mu_eff) * whole)
    path_sigma = (mu_eff + 2) / (d + mu_eff + 3)
    return _Rates(
        weights=weights,
        mu_eff=mu_eff,
        path_sigma=path_sigma,
        damping=_damping(mu_eff, d) + path_sigma,
        path=4 / (d + 4),
        rank_one=rank_one,
        rank_mu=min(1 - rank_one, rank_mu),
        length=_length(d),
    )


def _damping(mu_eff: float, d: int) -> float:
    return 1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (d + 1)) - 1)


def _length(d: int) -> float:
    return math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d**2))


class _Paths(Solver, frozen=True):
    """What both share: samples of one version, not mirrored, since mirrored ones would shorten the paths."""

    kinds = ("normals",)
    mirrored = False
    reuses = False

    def _sigma(self, arrays: Arrays, rates: _Rates, whitened: Array) -> tuple[Arrays, float]:
        """The path and the scale after the step `whitened`, [d]; and 1 if the other path may grow, or 0."""
        c, d = rates.path_sigma, len(whitened)
        path = (1 - c) * arrays["path_sigma"] + math.sqrt(c * (2 - c) * rates.mu_eff) * whitened
        length = float(np.sqrt(np.sum(path**2)))
        scale = arrays["scale"] * math.exp(min(1.0, c / rates.damping * (length / rates.length - 1)))
        generation = arrays["generation"] + 1
        usual = length / math.sqrt(1 - (1 - c) ** (2 * float(generation[0])))
        grows = float(usual < (1.4 + 2 / (d + 1)) * rates.length)
        return {"path_sigma": path, "scale": scale, "generation": generation}, grows


def _begin(mean: Array, sigma: float) -> Arrays:
    nothing = np.zeros(len(mean))
    return {"mean": mean, "scale": np.full(1, sigma), "path_sigma": nothing, "path": nothing, "generation": np.zeros(1)}


class SepCMA(_Paths, frozen=True, tag="sep-cma"):
    """CMA-ES with a diagonal covariance: Ros and Hansen 2008, "A simple modification in CMA-ES".

    Only the better half of the samples moves it. The rewards' ranks are those of one stratum.
    """

    def begin(self, mean: Array, sigma: float) -> Arrays:
        return _begin(mean, sigma) | {"variance": np.ones(len(mean))}

    def spread(self, arrays: Arrays) -> Callable[[Array], Array]:
        return functools.partial(np.multiply, arrays["scale"] * np.sqrt(arrays["variance"]))

    def tell(self, arrays: Arrays, evidence: Evidence) -> Arrays:
        n, d = len(evidence.keys), evidence.size
        rates = _rates_of_a_diagonal(n, d)
        weights = ranks.by_rank(evidence.reward, rates.weights)
        whitened = evidence.first(weights)
        variance = arrays["variance"]
        after, grows = self._sigma(arrays, rates, whitened)
        c = rates.path
        path = (1 - c) * arrays["path"] + grows * math.sqrt(c * (2 - c) * rates.mu_eff) * np.sqrt(variance) * whitened
        kept = 1 + (1 - grows) * rates.rank_one * c * (2 - c) - rates.rank_one - rates.rank_mu * weights.sum()
        new = kept * variance + rates.rank_one * path**2 + rates.rank_mu * variance * evidence.second(weights)
        mean = arrays["mean"] + arrays["scale"] * np.sqrt(variance) * whitened
        return arrays | after | {"mean": mean, "path": path, "variance": new}


class CMA(_Paths, frozen=True, tag="cma"):
    """CMA-ES with the whole covariance and negative weights: Hansen 2016, arXiv:1604.00772.

    Memory and time of a batch grow with the square and the third power of the number of parameters.
    """

    def begin(self, mean: Array, sigma: float) -> Arrays:
        return _begin(mean, sigma) | {"covariance": np.eye(len(mean))}

    def spread(self, arrays: Arrays) -> Callable[[Array], Array]:
        return functools.partial(_turned, arrays["scale"], *_axes(arrays["covariance"]))

    def tell(self, arrays: Arrays, evidence: Evidence) -> Arrays:
        noise = evidence.rows().astype(np.float64)
        n, d = noise.shape
        if n < FEWEST:
            raise DataError(f"{n} samples for CMA, must be at least {FEWEST}", hint="use more, or SepCMA")
        rates = _rates(n, d)
        weights = ranks.by_rank(evidence.reward, rates.weights)
        covariance = arrays["covariance"]
        axes, lengths = _axes(covariance)
        steps = (noise * lengths) @ axes.T  # [N, d]
        best = np.maximum(weights, 0.0)
        moved = best @ steps
        after, grows = self._sigma(arrays, rates, axes @ (best @ noise))
        c = rates.path
        path = (1 - c) * arrays["path"] + grows * math.sqrt(c * (2 - c) * rates.mu_eff) * moved
        of_steps = np.where(weights >= 0, weights, weights * d / (np.sum(noise**2, axis=1) + 1e-8))
        kept = 1 + (1 - grows) * rates.rank_one * c * (2 - c) - rates.rank_one - rates.rank_mu * weights.sum()
        new = kept * covariance + rates.rank_one * np.outer(path, path) + rates.rank_mu * (steps.T * of_steps) @ steps
        return arrays | after | {
            "mean": arrays["mean"] + arrays["scale"] * moved, "path": path, "covariance": (new + new.T) / 2,
        }  # fmt: skip


def _axes(covariance: Array) -> tuple[Array, Array]:
    """The eigenvectors as columns, and the square roots of the eigenvalues."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors, np.sqrt(np.maximum(values, 1e-20))


def _turned(scale: Array, axes: Array, lengths: Array, noise: Array) -> Array:
    return scale * ((noise * lengths) @ axes.T)
