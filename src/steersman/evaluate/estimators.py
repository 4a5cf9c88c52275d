"""Estimators: functions from Evidence to Terms. A new one is a function here and a row in ESTIMATORS.

Notation: w_t = target / propensity at step t; W_t = w_0 * ... * w_t, W_{-1} = 1; f_t = product of the discounts before
step t; q_t and v_t = model of the action taken, and its mean over the target's actions (0 without a model). Sums
run over the steps of an episode, means over episodes. One decision is an episode of one step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from steersman.core.errors import SupportError
from steersman.evaluate.evidence import Evidence
from steersman.evaluate.intervals import Halves, Influence, Terms, ratio
from steersman.evaluate.magic import magic
from steersman.evaluate.one_step import (
    balanced_ips,
    clipped_ips,
    control_variate_ips,
    dros,
    ips,
    mips,
    mrdr,
    replay,
    sndr,
    snips,
    sub_gaussian_dr,
    sub_gaussian_ips,
    switch_dr,
)
from steersman.evaluate.ranked import iips, list_dr, pseudo_inverse, sn_iips, sn_list_dr, sn_pseudo_inverse
from steersman.evaluate.smoothed import kernel_dr, kernel_ips, kernel_snips
from steersman.evaluate.trajectories import dr, pdis, sn_pdis, sn_tis, tis, wdr
from steersman.evaluate.visits import drl, samis, smis

Array = np.ndarray


@dataclass(frozen=True)
class Estimator:
    """A row of ESTIMATORS.

    Attributes:
        terms: the function.
        one_step, sequence, ranked: the logs it is for; ranked lists are one step each.
        model: whether it asks the model of rewards or action values (`q`, `v`, `marginal`).
        judge: whether it knows its own error, so that a gate may rest on it.
        rests_on: `weights` that multiply rewards, so that a few can be all of the value; `visits` to logged (context,
            action) pairs; or `matches` with logged steps, with the worst counted in the interval where there are none.
        actions: what it is for: `candidates`; `any`: also numbers, by densities; `kernel`: numbers, by what was
            logged nearby.
    """

    terms: Callable[[Evidence], Terms]
    one_step: bool
    sequence: bool
    ranked: bool = False
    model: bool = True
    judge: bool = True
    rests_on: Literal["weights", "visits", "matches"] = "weights"
    actions: Literal["candidates", "any", "kernel"] = "candidates"


def logged(evidence: Evidence) -> Influence:
    """Value of the behavior policy: mean over episodes of sum f_t r_t. It is what every lift is measured against."""
    paths = evidence.paths
    returns = paths.per_cluster(paths.per_episode(paths.factor * evidence.reward))
    episodes = paths.per_cluster(np.ones(paths.episodes))
    return Influence(*ratio(returns, episodes), ((returns, episodes),))


def direct(evidence: Evidence) -> Terms:
    """Direct method: mean of v_0, the model's word for it. For sequences: fitted Q evaluation.

    A model can not know its own bias: a nominal 95% interval of it covers 4 to 58% of the time. So the interval is
    that of the doubly robust estimate with the same model (`dr`; `drl` for sequences), widened to contain the value.
    Source: Dudik et al. 2011, arXiv:1103.4601, eq. 1; Le et al. 2019, arXiv:1903.08738.
    """
    paths = evidence.paths
    start = paths.per_cluster(evidence.v[paths.steps[0]])
    value = float(start.sum()) / paths.episodes
    return replace(drl(evidence) if evidence.marginal is not None else dr(evidence), value=value)


def stitched(evidence: Evidence) -> Terms:
    """Model-free Monte Carlo: mean return of episodes stitched together from logged steps; see `stitched.py`.

    Interval: half-samples of units, around the return if whoever leaves what the log knows gets the worst from there
    on (low side) or the best (high side).
    Source: Fonteneau, Murphy, Wehenkel and Ernst 2010 (AISTATS).
    """
    found = evidence.stitch
    if found is None:
        raise SupportError(
            "episodes can not be stitched: the policy is not at hand, the contexts are few, the candidates are not "
            "always the same, or the units are too few",
            hint="use drl where contexts are few, else wdr",
        )
    low = Halves(min(found.worst, found.value), found.worst_moved, found.logged_moved, found.ess)
    high = Halves(max(found.best, found.value), found.best_moved, found.logged_moved, found.ess)
    return Terms(found.value, low, high, evidence.paths.clusters, found.ess, None)


ESTIMATORS: dict[str, Estimator] = {
    "dm": Estimator(direct, one_step=True, sequence=False, ranked=True, judge=False, actions="any"),
    "ips": Estimator(ips, one_step=True, sequence=False, model=False, actions="any"),
    "snips": Estimator(snips, one_step=True, sequence=False, model=False, actions="any"),
    "dr": Estimator(dr, one_step=True, sequence=True, actions="any"),
    "sndr": Estimator(sndr, one_step=True, sequence=False, actions="any"),
    "mrdr": Estimator(mrdr, one_step=True, sequence=False, model=False),
    "ips-cv": Estimator(control_variate_ips, one_step=True, sequence=False, model=False, actions="any"),
    "replay": Estimator(replay, one_step=True, sequence=False, model=False),
    "cips": Estimator(clipped_ips, one_step=True, sequence=False, model=False, judge=False, actions="any"),
    "sg-ips": Estimator(sub_gaussian_ips, one_step=True, sequence=False, model=False, judge=False, actions="any"),
    "balanced-ips": Estimator(balanced_ips, one_step=True, sequence=False, model=False, judge=False),
    "mips": Estimator(mips, one_step=True, sequence=False, model=False, judge=False),
    "switch-dr": Estimator(switch_dr, one_step=True, sequence=False, judge=False, actions="any"),
    "dros": Estimator(dros, one_step=True, sequence=False, judge=False, actions="any"),
    "sg-dr": Estimator(sub_gaussian_dr, one_step=True, sequence=False, judge=False, actions="any"),
    "kernel-ips": Estimator(kernel_ips, one_step=True, sequence=False, model=False, actions="kernel"),
    "kernel-snips": Estimator(kernel_snips, one_step=True, sequence=False, model=False, actions="kernel"),
    "kernel-dr": Estimator(kernel_dr, one_step=True, sequence=False, actions="kernel"),
    "tis": Estimator(tis, one_step=False, sequence=True, model=False, actions="any"),
    "sn-tis": Estimator(sn_tis, one_step=False, sequence=True, model=False, actions="any"),
    "pdis": Estimator(pdis, one_step=False, sequence=True, model=False, actions="any"),
    "sn-pdis": Estimator(sn_pdis, one_step=False, sequence=True, model=False, actions="any"),
    "wdr": Estimator(wdr, one_step=False, sequence=True, actions="any"),
    "magic": Estimator(magic, one_step=False, sequence=True, judge=False, actions="any"),
    "fqe": Estimator(direct, one_step=False, sequence=True, judge=False, actions="any"),
    "smis": Estimator(smis, one_step=False, sequence=True, rests_on="visits"),
    "samis": Estimator(samis, one_step=False, sequence=True, rests_on="visits"),
    "drl": Estimator(drl, one_step=False, sequence=True, rests_on="visits"),
    "stitched": Estimator(stitched, one_step=False, sequence=True, model=False, rests_on="matches"),
    "sips": Estimator(tis, one_step=False, sequence=False, ranked=True, model=False),
    "sn-sips": Estimator(sn_tis, one_step=False, sequence=False, ranked=True, model=False),
    "list-dr": Estimator(list_dr, one_step=False, sequence=False, ranked=True),
    "sn-list-dr": Estimator(sn_list_dr, one_step=False, sequence=False, ranked=True),
    "rips": Estimator(pdis, one_step=False, sequence=False, ranked=True, model=False),
    "sn-rips": Estimator(sn_pdis, one_step=False, sequence=False, ranked=True, model=False),
    "cascade-dr": Estimator(dr, one_step=False, sequence=False, ranked=True),
    "sn-cascade-dr": Estimator(wdr, one_step=False, sequence=False, ranked=True),
    "iips": Estimator(iips, one_step=False, sequence=False, ranked=True, model=False, judge=False),
    "sn-iips": Estimator(sn_iips, one_step=False, sequence=False, ranked=True, model=False, judge=False),
    "pi": Estimator(pseudo_inverse, one_step=False, sequence=False, ranked=True, model=False, judge=False),
    "sn-pi": Estimator(sn_pseudo_inverse, one_step=False, sequence=False, ranked=True, model=False, judge=False),
}
"""Name -> estimator, in the order in which they are reported."""
