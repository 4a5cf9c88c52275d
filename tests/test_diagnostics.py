"""What a log says about itself: support, propensities, change within the window; how often each alarm is false."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest

from steersman.core.batch import Batch
from steersman.core.report import Verdict
from steersman.evaluate import Evaluation, Gates, Paths, Settings, evaluate, judge
from steersman.evaluate.change import ALARM, changes
from steersman.evaluate.nuisance import folds_of
from steersman.evaluate.propensities import propensities
from steersman.evaluate.unlogged import never_logged
from steersman.worlds import tabular

WORLD = tabular.bandit(6, 4, chi2=1.0, noise=0.5, seed=1)
A = tabular.world_a()


def verdict(found: Evaluation, gate: str, gates: Gates | None = None) -> Verdict:
    return next(v for v in judge(found, gates or Gates()) if v.gate == gate)


# support


def test_the_share_never_logged_is_the_target_s_mass_on_what_the_log_never_took():
    """The log never takes action 3 in states 0 and 1; the target takes it half the time everywhere."""
    behavior = WORLD.behavior.copy()
    behavior[:2, 3] = 0.0
    behavior /= behavior.sum(axis=1, keepdims=True)
    target = 0.5 * behavior
    target[:, 3] += 0.5
    batch = sampled(WORLD, behavior, 4000, 0)
    state = tabular.states(batch)
    found = never_logged(batch, target[state])
    shares = [float(target[state][state == s, 3].sum()) / 4000 for s in (0, 1)]
    assert found.share == pytest.approx(max(shares))
    assert found.where in ("state=s0", "state=s1")
    assert found.kinds == ("a3",)


def test_an_action_that_was_never_logged_at_all_is_told_without_a_context():
    behavior = WORLD.behavior.copy()
    behavior[:, 3] = 0.0
    behavior /= behavior.sum(axis=1, keepdims=True)
    target = 0.7 * behavior
    target[:, 3] += 0.3
    batch = sampled(WORLD, behavior, 2000, 0)
    found = never_logged(batch, tabular.rows(batch, target))
    assert found.share == pytest.approx(0.3)
    assert (found.where, found.kinds) == ("", ("a3",))
    judged = evaluate(batch, tabular.rows(batch, target), Settings(), 0)
    answer = verdict(judged, "support")
    assert answer.status == "not identified"
    assert answer.value == pytest.approx(0.3)
    assert "by the mean weight it is 0.3" in answer.reason
    assert "explore" in answer.next


def test_a_large_log_is_looked_at_evenly():
    behavior = WORLD.behavior.copy()
    behavior[:, 3] = 0.0
    behavior /= behavior.sum(axis=1, keepdims=True)
    target = 0.7 * behavior
    target[:, 3] += 0.3
    batch = sampled(WORLD, behavior, 150_000, 0)
    assert never_logged(batch, tabular.rows(batch, target)).share == pytest.approx(0.3, abs=0.001)


# propensities


def calibrated(batch: Batch, propensity: np.ndarray | None = None):
    batch = batch if propensity is None else dataclasses.replace(batch, propensity=propensity)
    paths = Paths.of(batch)
    return propensities(batch, folds_of(paths, 5, 0)[paths.episode])


def test_propensities_that_are_too_small_are_told_and_right_ones_are_not():
    batch = A.sample(2000, 0)
    assert calibrated(batch).chance > 0.01
    found = calibrated(batch, 0.8 * batch.propensity)
    assert found.chance < 1e-6
    assert found.ratio == pytest.approx(1.25, abs=0.05)


def test_the_propensities_of_another_version_are_told_though_their_mean_is_right():
    """Those of the state before. Uniform weights can not see it: mean of 1 / (K p) is 1 in any case."""
    batch = A.sample(2000, 0)
    other = np.roll(A.behavior, 1, axis=0)[tabular.states(batch), batch.action]
    assert calibrated(batch, other).chance < 1e-6


def test_the_verdict_says_which_action_came_too_often_for_its_propensity():
    batch = A.sample(4000, 0)
    wrong = batch.propensity * np.where(batch.action == 2, 0.5, 1.0)
    found = calibrated(batch, wrong)
    assert found.worst == "a2"
    judged = evaluate(dataclasses.replace(batch, propensity=wrong), tabular.rows(batch, A.target), Settings(), 0)
    answer = verdict(judged, "propensities")
    assert answer.status == "fail"
    assert "most of all a2" in answer.reason
    assert (answer.value, answer.limit) == (found.chance, 0.001)


def test_policies_that_follow_each_other_are_not_taken_for_wrong_propensities():
    """First at random, then nearly always the best action: no one model has these propensities, and all are right."""
    first, then = tabular.mixed(WORLD.behavior, 1.0), np.full_like(WORLD.behavior, 0.01)
    then[np.arange(6), WORLD.mean.argmax(axis=1)] = 0.97
    chances = [calibrated(joined(WORLD, first, then, 1000, seed)).chance for seed in range(40)]
    assert min(chances) > 0.001


# change within the window


def moved(batch: Batch, surprise: np.ndarray | None = None):
    surprise = batch.reward if surprise is None else surprise
    return {c.kind: c for c in changes(batch, Paths.of(batch), np.arange(len(batch)), surprise)}


def test_a_policy_that_follows_another_is_told_with_shares():
    first, then = tabular.mixed(WORLD.behavior, 1.0), np.full_like(WORLD.behavior, 0.01)
    then[np.arange(6), WORLD.mean.argmax(axis=1)] = 0.97
    batch = joined(WORLD, first, then, 1000, 0)
    found = moved(batch)["policy"]
    assert found.column == "propensity of the action taken"
    assert (found.before, found.after) == pytest.approx((0.25, 0.94), abs=0.02)
    assert 0.6 < found.proven < found.size < 0.75
    times = np.arange(len(batch))
    judged = evaluate(batch, tabular.rows(batch, WORLD.target), Settings(), 0, at=times)
    assert verdict(judged, "policy drift").status == "pass"
    answer = verdict(judged, "policy drift", Gates(max_policy_drift=0.3))
    assert answer.status == "fail"
    assert "mixture" in answer.next


def test_a_reward_that_changes_is_told_apart_from_a_policy_that_changes():
    first, then = tabular.mixed(WORLD.behavior, 1.0), WORLD.target
    batch = joined(WORLD, first, then, 2000, 0)
    target, times = tabular.rows(batch, WORLD.target), np.arange(len(batch))
    steady = evaluate(batch, target, Settings(), 0, at=times)
    assert abs(verdict(steady, "reward drift").value) < 0.1
    later = batch.reward + np.where(times >= 2000, 1.0, 0.0)
    answer = verdict(
        evaluate(dataclasses.replace(batch, reward=later), target, Settings(), 0, at=times), "reward drift"
    )
    assert answer.status == "fail"
    assert answer.value > 0.5


def test_contexts_that_change_are_told_with_their_column():
    world = dataclasses.replace(WORLD, starts=np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.1]))
    batch = concatenated([WORLD.sample(1000, 0), world.sample(1000, 1)])
    found = moved(batch)["contexts"]
    assert found.column == "state=s0"
    assert found.after == pytest.approx(0.5, abs=0.05)
    assert found.proven > 0.3


def test_nothing_is_told_of_a_window_whose_halves_are_one_unit_each():
    batch = WORLD.sample(20, 0)
    one = dataclasses.replace(batch, unit=np.repeat([0, 1], 10))
    assert moved(one) == {}


def test_the_halves_are_those_of_the_clock_whatever_the_order_of_the_rows():
    first, then = tabular.mixed(WORLD.behavior, 1.0), WORLD.target
    batch = joined(WORLD, first, then, 1000, 0)
    order = np.random.default_rng(0).permutation(len(batch))
    arrays = {f: getattr(batch, f)[order] for f in ("context", "action", "propensity", "reward", "metrics", "discount")}
    shuffled = dataclasses.replace(batch, **arrays)
    there = changes(shuffled, Paths.of(shuffled), order, shuffled.reward)
    here = changes(batch, Paths.of(batch), np.arange(len(batch)), batch.reward)
    for one, other in zip(there, here, strict=True):
        assert dataclasses_of(one) == pytest.approx(dataclasses_of(other))


def dataclasses_of(change) -> tuple[float, ...]:
    return change.before, change.after, change.size, change.proven


def test_a_bound_on_a_change_is_above_the_truth_as_rarely_as_it_says():
    """400 logs of 60 units that have a level of their own and five decisions each, without a change and with one."""
    false, found_it = 0, 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        unit = np.repeat(np.arange(60), 5)
        batch = dataclasses.replace(WORLD.sample(300, seed), unit=unit)
        level = rng.normal(size=60)[unit]
        at = rng.permutation(300)
        steady = {c.kind: c for c in changes(batch, Paths.of(batch), at, level + rng.normal(size=300))}
        false += any(c.proven > 0 for c in steady.values())
        shifted = level + rng.normal(size=300) + np.where(at >= 150, 1.5, 0.0)
        found_it += {c.kind: c for c in changes(batch, Paths.of(batch), at, shifted)}["reward"].proven > 0
    assert false <= 400 * 3 * ALARM + 3 * np.sqrt(400 * 3 * ALARM) + 1
    assert found_it > 380


# disagreement


def test_a_model_that_sees_half_of_the_states_disagrees_with_what_does_not_rest_on_it():
    world = tabular.garnet(10, 3, horizon=20, stop=0.0, seed=2)
    rng = np.random.default_rng(0)
    scores = rng.normal(size=world.mean.shape)
    behavior, target = tabular.softmax(scores), tabular.softmax(scores + 0.3 * rng.normal(size=scores.shape))
    batch = world.sample(2000, behavior, 0)
    seen = evaluate(batch, tabular.rows(batch, target), Settings(), 0, horizon=20)
    assert seen.support.disagreement < 2
    assert verdict(seen, "disagreement").status == "pass"
    apart = msgspec.structs.replace(seen.support, disagreement=2.5)
    found = msgspec.structs.replace(seen, support=apart)
    answer = verdict(found, "disagreement")
    assert (answer.status, answer.value, answer.limit) == ("fail", 2.5, 2.0)
    assert "wdr" in answer.next


# worlds


def sampled(world: tabular.Bandit, behavior: np.ndarray, n: int, seed: int) -> Batch:
    """A log of a policy that has zeros."""
    rng = np.random.default_rng(seed)
    state = tabular.pick(np.broadcast_to(world.starts, (n, len(world.starts))), rng)
    action = tabular.pick(behavior[state], rng)
    whole = world.sample(n, seed)
    context = np.eye(len(world.starts), dtype=np.float32)[state]
    assert tabular.states(whole).shape == state.shape
    return dataclasses.replace(
        whole,
        context=np.pad(context, ((0, 0), (0, whole.context.shape[1] - context.shape[1]))),
        action=action,
        propensity=behavior[state, action],
        reward=world.mean[state, action] + (world.noise or 0.0) * rng.standard_normal(n),
    )


def concatenated(batches: list[Batch]) -> Batch:
    fields = ("context", "action", "propensity", "reward", "metrics", "discount", "next", "limited", "begun")
    arrays = {f: np.concatenate([getattr(b, f) for b in batches]) for f in fields}
    n = len(arrays["action"])
    shared = batches[0].candidates[:1]
    return dataclasses.replace(
        batches[0],
        candidates=np.broadcast_to(shared, (n, *shared.shape[1:])),
        mask=np.ones((n, shared.shape[1]), dtype=bool),
        unit=np.arange(n),
        **arrays,
    )


def joined(world: tabular.Bandit, first: np.ndarray, then: np.ndarray, n: int, seed: int) -> Batch:
    """n decisions of one policy, then n of another."""
    logs = [dataclasses.replace(world, behavior=p).sample(n, 2 * seed + k) for k, p in enumerate((first, then))]
    return concatenated(logs)


# how often alarms are false, and whether they ring


ALARMS = ("mean weight", "support", "propensities", "policy drift", "reward drift", "context drift", "disagreement")


@pytest.mark.slow
@pytest.mark.parametrize("world", ["a", "c", "garnet"])
def test_hardly_any_clean_log_fails_an_alarm(world):
    """Every alarm by itself on at most 2% of logs in which nothing is wrong; models disagree by chance on up to 5%."""
    logs, failed = 60 if world == "c" else 300, dict.fromkeys(ALARMS, 0)
    for seed in range(logs):
        found = evaluated(world, seed)
        for one in judge(found, Gates(max_policy_drift=0.3, max_context_drift=0.5)):
            if one.gate in failed:
                failed[one.gate] += one.status != "pass"
    assert failed.pop("disagreement") / logs <= 0.05
    assert all(count / logs <= 0.02 for count in failed.values()), failed


def evaluated(world: str, seed: int) -> Evaluation:
    if world == "garnet":
        made, behavior, target = sequences()
        batch = made.sample(300, behavior, seed)
        at = np.random.default_rng(seed).permutation(300)[batch.episode]
        names = Settings(estimators=("wdr", "fqe", "drl"))
        return evaluate(batch, tabular.rows(batch, target), names, seed, horizon=20, at=at)
    made = getattr(tabular, f"world_{world}")()
    batch = made.sample(10_000 if world == "c" else 2000, seed)
    at = np.random.default_rng(seed).permutation(len(batch))
    return evaluate(batch, tabular.rows(batch, made.target), Settings(estimators=("dr",)), seed, at=at)


def sequences() -> tuple[tabular.Mdp, np.ndarray, np.ndarray]:
    world, rng = tabular.garnet(12, 3, horizon=20, stop=0.02, seed=5), np.random.default_rng(5)
    scores = rng.normal(size=world.mean.shape)
    return world, tabular.softmax(scores), tabular.softmax(scores + 0.5 * rng.normal(size=scores.shape))


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["a fifth too small", "of another version", "of a flatter policy"])
def test_wrong_propensities_are_told_from_2000_decisions(wrong):
    """At a threshold of 0.001, in 90% of 100 logs; those of a policy with its temperature 1.3 times lower in 60%."""
    told = 0
    for seed in range(100):
        batch = A.sample(2000, seed)
        state = tabular.states(batch)
        sharper = A.behavior**1.3 / (A.behavior**1.3).sum(axis=1, keepdims=True)
        propensity = {
            "a fifth too small": 0.8 * batch.propensity,
            "of another version": np.roll(A.behavior, 1, axis=0)[state, batch.action],
            "of a flatter policy": sharper[state, batch.action],
        }[wrong]
        told += calibrated(batch, propensity).chance < 0.001
    assert told >= (60 if wrong == "of a flatter policy" else 90)
