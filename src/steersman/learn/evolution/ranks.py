"""What a reward is worth among the others: only its rank counts, and equal rewards are worth the same."""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def centered(reward: Array, stratum: Array) -> Array:
    """[N] f64 in [-0.5, 0.5], the rank within its stratum; 0 where all are equal or there is only one.

    Args:
        reward: [N] finite, more is better.
        stratum: [N] i64, what is compared with each other, e.g. a version within an hour.
    Source: Salimans et al. 2017, arXiv:1703.03864; ties share the mean of their ranks.

    >>> centered(np.array([3.0, 1.0, 3.0, 100.0]), np.zeros(4, dtype=int))
    array([ 0. , -0.5,  0. ,  0.5])
    """
    found = np.zeros(len(reward))
    for rows in _strata(stratum):
        if len(rows) > 1:
            found[rows] = _shared(reward[rows], np.arange(len(rows))) / (len(rows) - 1) - 0.5
    return found


def logarithmic(reward: Array, stratum: Array) -> Array:
    """[N] f64, the utilities of natural evolution strategies times the size of the stratum; their mean is 0.

    Source: Wierstra et al. 2014, JMLR 15, section 3.1; ties share the mean of their utilities.
    """
    found = np.zeros(len(reward))
    for rows in _strata(stratum):
        n = len(rows)
        best_first = np.maximum(0.0, np.log(n / 2 + 1) - np.log(np.arange(1, n + 1)))
        shared = _shared(reward[rows], best_first[::-1] / best_first.sum() * n - 1.0)
        found[rows] = shared if np.ptp(reward[rows]) > 0 else 0.0
    return found


def by_rank(reward: Array, best_first: Array) -> Array:
    """[N] f64: the i-th best reward gets the i-th of the weights; equal rewards share the mean of theirs."""
    return _shared(reward, best_first[::-1])


def tied(reward: Array, stratum: Array) -> bool:
    """Whether no reward differs from another of its stratum: such a batch says nothing."""
    return all(np.ptp(reward[rows]) == 0 for rows in _strata(stratum))


def _strata(stratum: Array) -> list[Array]:
    order = np.argsort(stratum, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(stratum[order])) + 1) if len(order) else []


def _shared(reward: Array, ascending: Array) -> Array:
    """[N]: the value of each rank, smallest reward first, shared by equal rewards."""
    _, place, counts = np.unique(reward, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    sums = np.concatenate([[0.0], np.cumsum(ascending)])
    means = np.where(counts == 1, ascending[ends - 1], (sums[ends] - sums[ends - counts]) / counts)
    return np.asarray(means[place])
