"""The contract of an estimator, over every row of ESTIMATORS. A new row gets these tests by being there."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import pytest

from steersman.core.batch import Batch, array_fields
from steersman.core.decision import Numbers
from steersman.core.density import Aims, Gaussian, Point
from steersman.core.errors import ConfigError, DataError, SupportError
from steersman.core.features import Continuous, Encoder
from steersman.core.policy import Policy, Softmax
from steersman.core.ranking import Lists
from steersman.evaluate import ESTIMATORS, Evaluation, Settings, evaluate
from steersman.worlds import tabular
from steersman.worlds.dosing import Dosing
from steersman.worlds.rankings import ranking

HORIZON = 40
BANDIT = tabular.bandit(6, 4, chi2=1.0, noise=0.3, seed=1)
UNIFORM = replace(BANDIT, behavior=np.full_like(BANDIT.behavior, 1 / 4))
DOSING = Dosing()
LISTS = ranking("independent", states=4, items=5, slots=2, far=0.6)  # what every estimator assumes holds
MDP = tabular.garnet(8, 3, horizon=HORIZON, stop=0.15, seed=2)
RNG = np.random.default_rng(0)
BEHAVIOR = tabular.softmax(RNG.normal(size=MDP.mean.shape))
TARGET = tabular.mixed(tabular.softmax(np.log(BEHAVIOR) + 0.4 * RNG.normal(size=MDP.mean.shape)), 0.1)


@dataclass(frozen=True)
class Log:
    """A log of some kind, with a target: its probabilities on the rows, and as a policy."""

    batch: Batch
    target: np.ndarray | Aims | Lists
    policy: Policy
    horizon: int | None


@functools.cache
def single_decisions(seed: int, *, same: bool) -> Log:
    table = BANDIT.behavior if same else BANDIT.target
    batch = BANDIT.sample(400, seed)
    return Log(batch, tabular.rows(batch, table), table_policy(table, batch), None)


@functools.cache
def uniform_decisions(seed: int, *, same: bool) -> Log:
    """Single decisions of a policy that takes every action alike; candidates carry a feature, the same for two."""
    table = UNIFORM.behavior if same else UNIFORM.target
    plain = UNIFORM.sample(400, seed)
    feature = np.array([0.0, 0.0, 1.0, 1.0], dtype=np.float32)
    own = np.concatenate([np.eye(4, dtype=np.float32), np.stack([feature, np.zeros(4, dtype=np.float32)], axis=1)], 1)
    encoder = Encoder(context=plain.encoder.context, candidate=(Continuous("price", 0.0, 1.0),),
                      actions=plain.encoder.actions)  # fmt: skip
    batch = replace(plain, encoder=encoder, candidates=np.broadcast_to(own, (400, *own.shape)))
    return Log(batch, tabular.rows(batch, table), table_policy(table, batch), None)


@functools.cache
def sequences(seed: int, *, same: bool) -> Log:
    """Episodes of 1 to 40 steps over 8 contexts."""
    table = BEHAVIOR if same else TARGET
    batch = MDP.sample(250, BEHAVIOR, seed, truncate=True)
    return Log(batch, tabular.rows(batch, table), table_policy(table, batch), HORIZON)


@functools.cache
def ranked_lists(seed: int, *, same: bool) -> Log:
    batch = LISTS.sample(1500, seed)
    policy = LISTS.policy(LISTS.behavior if same else LISTS.target)
    return Log(batch, policy.lists(batch), policy, None)


def rewarded(log: Log, times: float) -> Log:
    """The same log with rewards so many times as large, and no metrics."""
    batch, none = log.batch, np.zeros((len(log.batch), 0))
    changed = {"reward": times * batch.reward, "metric_names": (), "metrics": none}
    if batch.slots is not None:
        reward = times * batch.slots.reward
        changed["slots"] = replace(batch.slots, reward=reward, metrics=np.zeros((*reward.shape, 0)))
    return replace(log, batch=replace(batch, **changed))


def repeated(log: Log) -> Log:
    """Every episode once more, within its unit."""
    n = len(log.batch)
    rows = np.concatenate([np.arange(n), np.arange(n)])
    arrays = {name: getattr(log.batch, name)[rows] for name in array_fields() if name != "next"}
    following = np.concatenate([log.batch.next, np.where(log.batch.next < 0, -1, log.batch.next + n)])
    slots = None if log.batch.slots is None else log.batch.slots.take(rows)
    twice = Batch(encoder=log.batch.encoder, next=following, metric_names=log.batch.metric_names, slots=slots, **arrays)
    target = log.target.take(rows) if isinstance(log.target, Lists) else of_rows(log.target, rows)
    return replace(log, batch=twice, target=target)


class _Never:
    """A chooser for which the scores of a row are the place of the item that it never takes."""

    def probabilities(self, scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
        open_ = mask & (np.arange(mask.shape[1]) != scores[:, :1])
        return open_ / np.maximum(open_.sum(axis=1, keepdims=True), 1)


def unheard(log: Log) -> np.ndarray | Lists:
    """A target that takes none of the logged actions."""
    if isinstance(log.target, Lists):
        first = np.repeat(log.batch.action[:, :1], log.batch.mask.shape[1], axis=1)
        return Lists(_Never(), first, log.batch.mask, log.target.slots)
    never = np.zeros_like(log.target)
    never[np.arange(len(never)), (log.batch.action + 1) % never.shape[1]] = 1.0
    return never


@functools.cache
def walks(seed: int, *, same: bool) -> Log:
    """Episodes of 1 to 15 steps over contexts that never come twice: a number that the two actions push about."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[int, float, int, float, bool]] = []
    for episode in range(250):
        x = float(rng.normal())
        for _ in range(15):
            action = int(rng.integers(2))
            over = bool(rng.random() < 0.15)
            rows.append((episode, x, action, 1.0 - 0.2 * x * x, over))
            if over:
                break
            x = 0.8 * x + (0.5 if action else -0.5) + 0.3 * float(rng.normal())
    unit, number, action, reward, over = (np.array(column) for column in zip(*rows, strict=True))
    n = len(unit)
    last = np.append(unit[1:] != unit[:-1], True)
    encoder = Encoder(context=(Continuous("x", 0.0, 1.0),), actions=("left", "right"))
    batch = Batch(
        encoder=encoder,
        context=np.stack([number, np.zeros(n)], axis=1).astype(np.float32),
        candidates=np.broadcast_to(np.eye(2, dtype=np.float32), (n, 2, 2)),
        mask=np.ones((n, 2), dtype=bool),
        action=action.astype(np.int64),
        propensity=np.full(n, 0.5),
        reward=reward,
        metrics=np.zeros((n, 0)),
        discount=np.where(over, 0.0, 1.0),
        next=np.where(last, -1, np.arange(1, n + 1)),
        unit=unit.astype(np.int64),
    )

    def scorer(context: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        pull = 0.0 if same else 0.3
        return (pull * context[:, :1] * np.array([1.0, -1.0])).astype(np.float32)

    policy = Policy(encoder, scorer, Softmax(1.0))
    return Log(batch, policy.propensities(batch), policy, 15)


@functools.cache
def doses(seed: int, *, same: bool) -> Log:
    """Single decisions whose action is a number within bounds."""
    behavior = DOSING.policy(Gaussian(0.3, 0.2))
    policy = behavior if same else DOSING.policy(Gaussian(0.25, 0.2), 0.5, 0.2)
    batch = DOSING.sample(600, behavior, seed)
    return Log(batch, policy.aims(batch), policy, None)


@functools.cache
def points(seed: int, *, same: bool) -> Log:
    """The same with a target without chance, which no behavior policy can be."""
    policy = DOSING.policy(Point(), 0.5, 0.2)
    batch = DOSING.sample(600, DOSING.policy(Gaussian(0.3, 0.2)), seed)
    return Log(batch, policy.aims(batch), policy, None)


@functools.cache
def dose_walks(seed: int, *, same: bool) -> Log:
    """Episodes of 1 to 3 steps over contexts that never come twice: a number that actions of two numbers push about."""
    rng = np.random.default_rng(seed)
    box = Numbers(low=(-1.0, 0.0), high=(1.0, 2.0))
    encoder = Encoder(context=(Continuous("x", 0.0, 1.0),), numbers=box)
    behavior = Policy(encoder, lambda context, none: np.repeat([[0.0, 1.0]], len(context), axis=0), Gaussian(0.4, 0.2))
    n = 900
    step, unit = np.arange(n) % 3, np.arange(n) // 3
    x, action, density = rng.normal(size=n), np.empty((n, 2)), np.empty(n)
    for t in range(3):
        rows = np.flatnonzero(step == t)
        if t:
            x[rows] = 0.5 * x[rows - 1] + action[rows - 1].sum(axis=1) - 1.0 + 0.3 * x[rows]
        context = np.stack([x[rows], np.zeros(len(rows))], axis=1).astype(np.float32)
        aims = Aims(behavior.explorer, behavior.scorer(context, context), box)
        action[rows] = aims.draws(rng.random((len(rows), 1, 3)))[:, 0]
        density[rows] = aims.density(action[rows])
    batch = Batch(
        encoder=encoder,
        context=np.stack([x, np.zeros(n)], axis=1).astype(np.float32),
        candidates=np.zeros((n, 0, 0), dtype=np.float32),
        mask=np.zeros((n, 0), dtype=bool),
        action=action.astype(np.float32),
        propensity=density,
        reward=1.0 - 0.2 * x * x + action[:, 0] + rng.normal(size=n),
        metrics=np.zeros((n, 0)),
        discount=np.where(step == 2, 0.0, 1.0),
        next=np.where(step == 2, -1, np.arange(1, n + 1)),
        unit=unit,
    )
    pull = 0.0 if same else 0.1
    policy = replace(behavior, scorer=lambda context, none: np.repeat([[pull, 1.0 + pull]], len(context), axis=0))
    return Log(batch, policy.aims(batch), policy, 3)


def table_policy(table: np.ndarray, batch: Batch) -> Policy:
    def scorer(context: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        return np.log(table[context[:, : len(table)].argmax(axis=1)]).astype(np.float32)

    return Policy(batch.encoder, scorer, Softmax(1.0))


NOT_FOR = {
    ("drl", walks),
    ("smis", walks),
    ("samis", walks),
    ("stitched", sequences),
    ("replay", single_decisions),
    ("mips", single_decisions),
}


def logs_for(name: str):
    row = ESTIMATORS[name]
    kinds = [single_decisions, uniform_decisions] * row.one_step + [sequences, walks] * row.sequence
    kinds *= row.actions != "kernel"
    if row.actions != "candidates":
        kinds += [doses] * row.one_step + [dose_walks] * row.sequence
        kinds += [points] * (row.actions == "kernel")
    kinds += [ranked_lists] * row.ranked
    return [kind for kind in kinds if (name, kind) not in NOT_FOR]


CASES = [pytest.param(name, kind, id=f"{name}-{kind.__name__}") for name in ESTIMATORS for kind in logs_for(name)]
JUDGES = [case for case in CASES if ESTIMATORS[case.values[0]].judge]
WEIGHERS = [case for case in JUDGES if ESTIMATORS[case.values[0]].rests_on == "weights"]
WEIGHERS = [case for case in WEIGHERS if not (case.values[0].startswith("kernel") and case.values[1] is doses)]
"""A kernel draws from a target with chance anew in every row, copies too: that is a little more certainty."""


def ask(name: str, log: Log, **changes: object) -> Evaluation:
    headline = name if ESTIMATORS[name].judge else ""
    settings = Settings(estimators=(name,), headline=headline, folds=3)
    asked = {"seed": 0, "horizon": log.horizon, "policy": log.policy, **changes}
    return evaluate(log.batch, log.target, settings, **asked)


def of(name: str, evaluation: Evaluation):
    return next(e for e in evaluation.estimates if e.estimator == name and e.metric == "reward")


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if case.values[1] is not points])
def test_the_behavior_policy_gets_the_logged_mean(name, kind):
    log = kind(3, same=True)
    evaluation = ask(name, log)
    found = of(name, evaluation)
    error = (found.high - found.low) / 2 / 1.96
    assert abs(found.value - evaluation.baseline.value) <= 3 * error + 1e-9


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_scaling_the_reward_scales_the_estimate(name, kind):
    log = kind(4, same=False)
    one = of(name, ask(name, log))
    ten = of(name, ask(name, rewarded(log, -10.0)))
    scale = max(abs(one.low), abs(one.high))
    assert ten.value == pytest.approx(-10 * one.value, abs=1e-3 * scale)
    assert (ten.low, ten.high) == pytest.approx((-10 * one.high, -10 * one.low), abs=1e-2 * scale)
    assert ten.ess == pytest.approx(one.ess, rel=1e-3)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_same_seed_gives_the_same_evaluation(name, kind):
    log = kind(5, same=False)
    assert msgspec.json.encode(ask(name, log)) == msgspec.json.encode(ask(name, log))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_higher_level_widens_the_interval_around_the_same_value(name, kind):
    log = kind(6, same=False)
    headline = name if ESTIMATORS[name].judge else ""
    found = [
        of(name, evaluate(log.batch, log.target, Settings(estimators=(name,), headline=headline, level=level), 0,
                          log.horizon, log.policy))
        for level in (0.8, 0.95)
    ]  # fmt: skip
    assert found[0].value == found[1].value
    assert found[1].low <= found[0].low <= found[0].value <= found[0].high <= found[1].high
    assert found[1].high - found[1].low > found[0].high - found[0].low
    assert found[0].n == log.batch.unit.max() + 1


def of_rows(target: np.ndarray | Aims, rows: np.ndarray) -> np.ndarray | Aims:
    return target.take(rows) if isinstance(target, Aims) else target[rows]


@pytest.mark.parametrize(("name", "kind"), WEIGHERS)
def test_copying_every_episode_within_its_unit_adds_no_certainty(name, kind):
    log = kind(7, same=False)
    one, two = of(name, ask(name, log)), of(name, ask(name, repeated(log)))
    width = one.high - one.low
    assert two.n == one.n
    assert two.value == pytest.approx(one.value, abs=0.03 * width + 1e-9)
    assert two.high - two.low == pytest.approx(width, rel=0.02)


@pytest.mark.parametrize(
    ("name", "kind"), [case for case in CASES if case.values[1] not in (doses, dose_walks, points)]
)
def test_a_target_that_takes_none_of_the_logged_actions_is_refused(name, kind):
    log = kind(8, same=False)
    with pytest.raises(SupportError, match="none of the"):
        ask(name, replace(log, target=unheard(log)))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_one_unit_is_refused(name, kind):
    log = kind(9, same=False)
    alone = replace(log.batch, unit=np.zeros(len(log.batch), dtype=np.int64))
    with pytest.raises(DataError, match="1 unit"):
        ask(name, replace(log, batch=alone))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_refuses_the_other_kinds_of_log(name):
    row = ESTIMATORS[name]
    others = [single_decisions] * (not row.one_step) + [sequences] * (not row.sequence)
    others += [dose_walks] * (row.actions == "kernel") + [ranked_lists] * (not row.ranked)
    for kind in others:
        log = kind(10, same=False)
        with pytest.raises(ConfigError, match=f"{name} is not for a log of"):
            evaluate(log.batch, log.target, Settings(estimators=(name,)), 0, log.horizon)


TRUTH = {
    single_decisions: BANDIT.value(BANDIT.target),
    uniform_decisions: BANDIT.value(BANDIT.target),
    sequences: MDP.value(TARGET),
    doses: DOSING.value(DOSING.policy(Gaussian(0.25, 0.2), 0.5, 0.2)),
    ranked_lists: LISTS.value(LISTS.target),
}


UNBIASED = [case for case in JUDGES if case.values[1] in TRUTH and ESTIMATORS[case.values[0]].actions != "kernel"]
"""Kernels smooth: their value leans by what that costs, and only their interval is narrow enough to forget it."""


@functools.cache
def of_all(kind, seed: int) -> Evaluation:
    """By all of them at once: they share the models of a log."""
    log, names = kind(seed, same=False), tuple(case.values[0] for case in UNBIASED if case.values[1] is kind)
    settings = Settings(estimators=names, folds=3)
    return evaluate(log.batch, log.target, settings, 0, log.horizon, log.policy)


@pytest.mark.parametrize(("name", "kind"), UNBIASED)
def test_the_mean_over_logs_is_the_true_value(name, kind):
    logs = 30
    values = [of(name, of_all(kind, 100 + seed)).value for seed in range(logs)]
    error = np.std(values, ddof=1) / np.sqrt(logs)
    assert np.mean(values) == pytest.approx(TRUTH[kind], abs=4 * error)
