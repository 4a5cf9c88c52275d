"""Gates: each says yes, no, or that the log can not tell; with its number, its limit, and what to do next."""

from __future__ import annotations

import re
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from steersman.core.errors import ConfigError, DataError, SupportError
from steersman.core.report import Verdict
from steersman.evaluate import Evaluation, Evidence, Gates, Paths, Settings, evaluate, judge
from steersman.evaluate.anytime import bernstein_floor, lift_terms
from steersman.evaluate.estimators import logged
from steersman.evaluate.evaluation import Bets, Floor, Paired
from steersman.evaluate.evidence import weights
from steersman.evaluate.gates import lower_bound, more_decisions
from steersman.evaluate.trajectories import dr
from steersman.worlds import tabular

WORLD = tabular.bandit(6, 4, chi2=1.0, noise=0.5, seed=1)
CLICKS = replace(WORLD, noise=None)


def evaluation(n: int = 2000, seed: int = 0, target: np.ndarray | None = None, **changes: object) -> Evaluation:
    batch = WORLD.sample(n, seed)
    table = WORLD.target if target is None else target
    return evaluate(batch, tabular.rows(batch, table), Settings(**changes), seed)


def verdict(found: Evaluation, gate: str, gates: Gates | None = None):
    return next(v for v in judge(found, gates or Gates()) if v.gate == gate)


def test_a_better_policy_with_enough_decisions_passes_every_gate():
    found = evaluation(4000)
    verdicts = judge(found, Gates())
    assert [v.gate for v in verdicts] == [
        "lower bound",
        "mean weight",
        "ess",
        "largest weight",
        "support",
        "propensities",
    ]
    assert {v.status for v in verdicts} == {"pass"}
    assert all(v.next == "" for v in verdicts)


def test_the_lower_bound_is_of_the_paired_lift_and_one_sided():
    found = evaluation()
    two_sided = found.lift.low
    fixed = Gates(bound="fixed")
    assert two_sided < lower_bound(found, fixed) < found.lift.value
    assert lower_bound(found, Gates(bound="fixed", level=0.975)) == pytest.approx(two_sided)
    assert verdict(found, "lower bound", fixed).value == lower_bound(found, fixed)


def test_the_lower_bound_holds_however_often_one_looks_unless_one_look_was_planned():
    """2,000 units, tuned for 4,000: u = log(1 + u) - 2 log(0.1) is 6.638, so s = 3.319 and sqrt(2 (1 + 1/s) log(1 +
    sqrt(s + 1) / 0.1)) = 2.832 of the lift's standard errors; 1.645 for a planned look."""
    found = evaluation()
    floor = found.lift_floor
    anytime = (floor.center - lower_bound(found, Gates())) / floor.error
    fixed = (floor.center - lower_bound(found, Gates(bound="fixed"))) / floor.error
    assert anytime == pytest.approx(2.832, rel=0.05)
    assert fixed == pytest.approx(1.645, rel=0.05)
    assert "however often one looks" in verdict(found, "lower bound").reason
    assert "for one look that was planned" in verdict(found, "lower bound", Gates(bound="fixed")).reason


def test_a_target_equal_to_the_behavior_never_passes_on_rounding():
    for name in ("ips", "snips", "dr"):
        found = evaluation(target=WORLD.behavior, estimators=(name,), headline=name)
        answer = verdict(found, "lower bound")
        assert answer.status == "fail", name


def test_a_worse_policy_fails_and_is_not_told_to_log_more():
    worse = tabular.softmax(-3 * WORLD.mean)
    found = evaluation(target=worse)
    answer = verdict(found, "lower bound")
    assert answer.status == "fail"
    assert more_decisions(found, Gates()) is None
    assert "train another policy" in answer.next


@pytest.mark.parametrize("bound", ["fixed", "anytime"])
def test_a_promising_policy_fails_with_about_how_many_more_decisions_settle_it(bound):
    """The advice, followed, gives a bound at the margin."""
    gates = Gates(bound=bound)
    slightly = 0.9 * WORLD.behavior + 0.1 * WORLD.target
    found = next(
        e for e in (evaluation(300, seed, slightly) for seed in range(50))
        if e.lift.value > 0 and 300 < (more_decisions(e, gates) or 0) < 20_000
    )  # fmt: skip
    answer = verdict(found, "lower bound", gates)
    assert answer.status == "fail"
    assert re.fullmatch(r"about [\d,]+ more decisions would settle it", answer.next)
    followed = longer(found, (300 + more_decisions(found, gates)) / 300)
    assert lower_bound(followed, gates) == pytest.approx(0.0, abs=0.02 * found.lift.value)
    half_of_it = longer(found, (300 + more_decisions(found, gates) / 2) / 300)
    assert lower_bound(half_of_it, gates) < -0.02 * found.lift.value


def longer(found: Evaluation, times: float) -> Evaluation:
    """The same estimates from a log that is so many times as long: errors fall with its root."""
    lift = msgspec.structs.replace(found.lift, n=round(found.lift.n * times))
    floor = msgspec.structs.replace(found.lift_floor, error=found.lift_floor.error / np.sqrt(times))
    return msgspec.structs.replace(found, lift=lift, lift_floor=floor)


def test_a_bound_from_halves_of_the_units_says_so_and_is_widened_as_a_mean_of_the_units():
    found = sequences(0.0)
    halves = msgspec.structs.replace(found.lift_floor, n=8, df=7.0, skew=0.0)
    found = msgspec.structs.replace(found, lift_floor=halves)
    answer = verdict(found, "lower bound")
    assert "from 8 random halves of the units" in answer.reason
    assert "a mean of 400 units" in answer.reason
    away = (halves.center - answer.value) / halves.error
    fixed = (halves.center - lower_bound(found, Gates(bound="fixed"))) / halves.error
    assert fixed == pytest.approx(1.895, abs=0.001)  # t of 7 degrees of freedom
    assert 2.17 * fixed < away < 10  # 2.17: the sequence over the normal bound at 400 units


def test_a_hard_bound_is_of_the_weighted_rewards_whatever_the_weights():
    found = hard(4000)
    gates = Gates(bound="hard")
    answer = verdict(found, "lower bound", gates)
    assert answer.status == "pass"
    assert 0 < answer.value < lower_bound(found, Gates()) < lower_bound(found, Gates(bound="fixed"))
    assert "however large the weights are" in answer.reason
    batch = CLICKS.sample(4000, 0)
    terms = lift_terms(batch.reward, weights(batch, tabular.rows(batch, CLICKS.target)), -1.0, 1.0)
    assert answer.value == pytest.approx(2 * bernstein_floor(4000, terms.sum(), terms @ terms, 0.95))


def test_a_hard_bound_that_is_too_low_says_how_many_more_decisions_settle_it():
    found, gates = hard(300), Gates(bound="hard")
    answer = verdict(found, "lower bound", gates)
    assert answer.status == "fail"
    assert re.fullmatch(r"about [\d,]+ more decisions would settle it", answer.next)
    bets = found.bets
    times = (300 + more_decisions(found, gates)) / 300
    followed = Bets(round(bets.n * times), bets.total * times, bets.square * times, bets.unit)
    followed = msgspec.structs.replace(found, bets=followed)
    assert lower_bound(followed, gates) == pytest.approx(0.0, abs=0.02)
    none = msgspec.structs.replace(found, bets=Bets(300, -1.0, 200.0, 1.0))
    assert "weighted rewards alone" in verdict(none, "lower bound", gates).next


def test_a_hard_bound_needs_single_decisions_and_the_range_of_their_reward():
    gates = Gates(bound="hard")
    answer = verdict(evaluation(), "lower bound", gates)
    assert (answer.status, answer.value) == ("not identified", None)
    assert "reward_range" in answer.next
    assert more_decisions(evaluation(), gates) is None
    answer = verdict(sequences(0.0), "lower bound", gates)
    assert answer.status == "not identified"
    assert "sequences" in answer.reason


def hard(n: int) -> Evaluation:
    batch = CLICKS.sample(n, 0)
    target = tabular.rows(batch, CLICKS.target)
    found = evaluate(batch, target, Settings(), 0)
    return msgspec.structs.replace(found, bets=Bets.of(batch.reward, weights(batch, target), (-1.0, 1.0)))


def test_bets_are_sums_of_the_terms_and_need_a_range_that_holds_the_rewards():
    assert Bets.of(np.zeros(2), np.ones(2), ()) is None
    found = Bets.of(np.array([2.0, 4.0]), np.array([3.0, 0.5]), (2.0, 6.0))
    assert found == Bets(2, -0.25, 0.0625, 4.0)  # (3 - 1) * 0 and (0.5 - 1) * 2/4
    with pytest.raises(DataError, match="outside the declared range"):
        Bets.of(np.array([2.0, 7.0]), np.ones(2), (2.0, 6.0))
    for bad in ((1.0,), (1.0, 1.0), (0.0, float("inf"))):
        with pytest.raises(ConfigError, match="reward_range"):
            Settings(reward_range=bad)


def guarded(lift: float, error: float = 0.01, n: int = 4000) -> Evaluation:
    """An evaluation with a metric `clicks` whose paired lift and standard error are given, and one that is absent."""
    found = evaluation()
    side = Floor(lift, error, n - 1.0, 0.0, n)
    value = msgspec.structs.replace(found.headline, metric="clicks", value=0.5 + lift, low=-9.0, high=9.0)
    paired = Paired(
        baseline=msgspec.structs.replace(found.baseline, metric="clicks", value=0.5, low=-9.0, high=9.0),
        value=value,
        lift=msgspec.structs.replace(found.lift, metric="clicks", value=lift, low=-9.0, high=9.0),
        low=side,
        high=side,
    )
    absent = Verdict(
        gate="metric orders", status="not identified", reason="7 decisions have no orders", next="see to it"
    )
    lift_of_all = msgspec.structs.replace(found.lift, n=n)
    return msgspec.structs.replace(found, metrics=(paired,), refused=(absent,), lift=lift_of_all)


def test_a_metric_may_fall_and_rise_as_far_as_its_limit_says():
    """4,000 units: 2.779 standard errors of 0.01 however often one looks; 1.645 for one look."""
    found = guarded(-0.01)
    gates = Gates(max_fall={"clicks": 0.04}, max_rise={"clicks": 0.02})
    assert [v.gate for v in judge(found, gates)][:3] == ["lower bound", "fall of clicks", "rise of clicks"]
    fall, rise = verdict(found, "fall of clicks", gates), verdict(found, "rise of clicks", gates)
    assert (fall.status, rise.status) == ("pass", "pass")
    assert fall.value == pytest.approx(-0.01 - 0.02779, abs=1e-4)
    assert rise.value == pytest.approx(-0.01 + 0.02779, abs=1e-4)
    assert (fall.limit, rise.limit) == (-0.04, 0.02)
    fixed = verdict(found, "fall of clicks", Gates(bound="fixed", max_fall={"clicks": 0.04}))
    assert fixed.value == pytest.approx(-0.01 - 0.01645, abs=1e-4)
    hard_too = verdict(found, "fall of clicks", Gates(bound="hard", max_fall={"clicks": 0.04}))
    assert hard_too.value == fall.value
    assert "weights" not in hard_too.reason


def test_a_metric_that_may_be_worse_than_its_limit_fails_with_what_would_settle_it():
    gates = Gates(max_fall={"clicks": 0.02}, max_rise={"clicks": 0.0})
    fall = verdict(guarded(-0.01), "fall of clicks", gates)
    assert fall.status == "fail"
    assert "at worst by -0.03" in fall.reason
    assert "may fall by at most 0.02" in fall.reason
    assert re.fullmatch(r"about [\d,]+ more decisions would settle it", fall.next)
    rise = verdict(guarded(0.01), "rise of clicks", gates)
    assert rise.status == "fail"
    assert "train another policy" in rise.next


def test_a_metric_with_a_limit_and_no_bound_is_not_identified():
    gates = Gates(max_fall={"orders": 0.1, "click": 0.1})
    assert verdict(guarded(0.0), "fall of orders", gates).status == "not identified"
    assert verdict(guarded(0.0), "fall of orders", gates).reason == "7 decisions have no orders"
    unknown = verdict(guarded(0.0), "fall of click", gates)
    assert unknown.status == "not identified"
    assert unknown.next == "did you mean clicks?"


def test_guardrails_are_tables_of_the_config():
    table = {"bound": "fixed", "tuned": 800, "max_fall": {"revenue": 0.5}, "max_rise": {"complaints": 0.002}}
    assert msgspec.convert(table, Gates).max_rise == {"complaints": 0.002}
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value"):
        msgspec.convert({"bound": "always"}, Gates)


def test_a_margin_raises_the_bar():
    found = evaluation(4000)
    bound = lower_bound(found, Gates())
    assert verdict(found, "lower bound", Gates(margin=bound - 0.001)).status == "pass"
    assert verdict(found, "lower bound", Gates(margin=bound + 0.001)).status == "fail"


def test_few_effective_units_are_not_identified():
    found = evaluation(150)
    answer = verdict(found, "ess")
    assert answer.status == "not identified"
    assert answer.value == found.headline.ess < answer.limit == 200
    assert "more decisions" in answer.next


def test_one_unit_with_most_of_the_weight_is_not_identified():
    batch = WORLD.sample(300, 0)
    arrays = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    target, propensity = tabular.rows(batch, WORLD.target), batch.propensity.copy()
    for weight, share in ((100.0, 0.25), (10_000.0, None)):
        propensity[5] = target[5, batch.action[5]] / weight
        heavy = type(batch)(**arrays | {"propensity": propensity})
        if share is None:  # one unit is all there is: no number at all
            with pytest.raises(SupportError, match=r"not identified: dr rests on an effective 1\.\d of 300 units"):
                evaluate(heavy, target, Settings(), 0)
        else:
            answer = verdict(evaluate(heavy, target, Settings(), 0), "largest weight")
            assert answer.status == "not identified"
            assert answer.value == pytest.approx(share, abs=0.05)


def test_propensities_that_are_too_small_fail_the_mean_weight():
    batch = WORLD.sample(2000, 0)
    arrays = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    batch = type(batch)(**arrays | {"propensity": batch.propensity / 2})
    found = evaluate(batch, tabular.rows(batch, WORLD.target), Settings(), 0)
    answer = verdict(found, "mean weight")
    assert answer.status == "fail"
    assert answer.value == pytest.approx(2.0, abs=0.3)
    assert "propensities" in answer.next


def test_a_target_that_was_half_never_logged_fails_the_mean_weight():
    """The behavior never takes the last action; the target takes it half the time."""
    behavior = WORLD.behavior.copy()
    behavior[:, -1] = 1e-300
    behavior /= behavior.sum(axis=1, keepdims=True)
    batch = replace(WORLD, behavior=behavior).sample(2000, 0)
    target = behavior / 2
    target[:, -1] += 0.5
    found = evaluate(batch, tabular.rows(batch, target), Settings(), 0)
    answer = verdict(found, "mean weight")
    assert answer.status == "fail"
    assert answer.value == pytest.approx(0.5, abs=0.1)
    assert "never or hardly logged" in answer.next


def test_the_mean_weight_of_the_behavior_policy_is_1_exactly():
    answer = verdict(evaluation(target=WORLD.behavior), "mean weight")
    assert answer.status == "pass"
    assert answer.value == pytest.approx(1.0)


def sequences(open_share: float) -> Evaluation:
    world = tabular.garnet(6, 3, horizon=None, stop=0.3, seed=1)
    behavior = tabular.softmax(np.random.default_rng(1).normal(size=world.mean.shape))
    batch = world.sample(400, behavior, 0)
    ends = np.flatnonzero(batch.terminated)
    discount = batch.discount.copy()
    discount[ends[: int(open_share * len(ends))]] = 1.0
    arrays = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    batch = type(batch)(**arrays | {"discount": discount})
    return evaluate(batch, tabular.rows(batch, behavior), Settings(), 0)


def test_many_open_episodes_are_not_identified():
    few, many = sequences(0.02), sequences(0.2)
    assert verdict(few, "open episodes").status == "pass"
    answer = verdict(many, "open episodes")
    assert answer.status == "not identified"
    assert answer.value == pytest.approx(0.2)
    assert "80 of 400" in answer.reason


def test_where_visits_are_weighed_the_gates_ask_where_the_target_goes():
    assert [v.gate for v in judge(sequences(0.0), Gates())] == [
        "lower bound",
        "mean weight",
        "ess",
        "outside",
        "open episodes",
        "disagreement",
        "propensities",
    ]


def test_where_steps_are_matched_the_bound_itself_counts_what_was_never_logged():
    found = sequences(0.0)
    found = msgspec.structs.replace(found, headline=msgspec.structs.replace(found.headline, estimator="stitched"))
    gates = [v.gate for v in judge(found, Gates())]
    assert gates == ["lower bound", "mean weight", "ess", "open episodes", "disagreement", "propensities"]


def test_a_bound_held_down_by_what_was_never_logged_asks_for_exploration():
    """The estimate is above the baseline; counted at its worst where the log never was, it is not."""
    found = sequences(0.0)
    floor = msgspec.structs.replace(found.lift_floor, center=-1.0)
    lift = msgspec.structs.replace(found.lift, value=0.5, low=-2.0, high=1.0)
    answer = verdict(msgspec.structs.replace(found, lift=lift, lift_floor=floor), "lower bound")
    assert answer.status == "fail"
    assert "log with more exploration" in answer.next


def test_a_target_that_goes_where_the_log_never_was_is_not_identified():
    world = tabular.garnet(6, 3, horizon=None, stop=0.3, seed=1)
    behavior = tabular.softmax(np.random.default_rng(1).normal(size=world.mean.shape))
    behavior[:, 2] = 1e-300
    behavior /= behavior.sum(axis=1, keepdims=True)
    batch = world.sample(400, behavior, 0)
    found = evaluate(batch, tabular.rows(batch, tabular.mixed(behavior, 0.9)), Settings(), 0)
    answer = verdict(found, "outside")
    assert answer.status == "not identified"
    assert 0.2 < answer.value < 0.4  # it takes action 2 in 30% of its steps


def test_every_verdict_has_numbers_and_every_no_a_next_step():
    found = [evaluation(150), evaluation(target=tabular.softmax(-3 * WORLD.mean)), sequences(0.2)]
    verdicts = [v for e in found for v in judge(e, Gates())]
    assert all(v.value is not None and v.limit is not None and v.reason for v in verdicts)
    assert all(bool(v.next) == (v.status != "pass") for v in verdicts)


def test_gates_refuse_limits_that_are_none():
    for bad in (
        {"level": 0.4},
        {"margin": float("nan")},
        {"min_ess": -1.0},
        {"max_open_share": 1.5},
        {"tuned": 0.0},
        {"max_fall": {"clicks": -0.1}},
        {"max_rise": {"clicks": float("nan")}},
    ):
        with pytest.raises(DataError, match=next(iter(bad))):
            Gates(**bad)
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"margins": 0.1}, Gates)


def test_at_the_null_few_policies_are_promoted_at_a_planned_look():
    """Targets whose true lift is 0: at most 9% of 200 one-sided 5% bounds are above 0."""
    world = tabular.bandit(6, 4, chi2=1.0, noise=0.5, seed=1)
    flat = type(world)(world.starts, np.full_like(world.mean, 0.5), world.behavior, world.target, world.noise)
    passed = 0
    for seed in range(200):
        batch = flat.sample(400, seed)
        found = evaluate(batch, tabular.rows(batch, flat.target), Settings(estimators=("dr",)), seed)
        passed += verdict(found, "lower bound", Gates(bound="fixed")).status == "pass"
    assert passed / 200 <= 0.09


# the rule that people look at every day


LOOKS = range(500, 20_001, 500)


def lifted(lift: float) -> tabular.Bandit:
    """World A (10 actions, chi2 5.1) with rewards of 0 or 1, means uniform in [0, 1] but bent to give this lift."""
    world = tabular.world_a()
    better = (world.target > world.behavior).astype(np.float64)
    lifts = [
        float(world.starts @ ((world.target - world.behavior) * mean).sum(axis=1)) for mean in (better, 1 - better)
    ]
    uniform = np.random.default_rng(5).random(world.mean.shape)
    at = float(world.starts @ ((world.target - world.behavior) * uniform).sum(axis=1))
    goal, its = (better, lifts[0]) if lift > at else (1 - better, lifts[1])
    share = (lift - at) / (its - at)
    bent = replace(world, mean=(1 - share) * uniform + share * goal, noise=None)
    assert bent.value(bent.target) - bent.value(bent.behavior) == pytest.approx(lift)
    return bent


def promoted(world: tabular.Bandit, seed: int, rules: dict[str, Gates]) -> dict[str, int | None]:
    """The first of 40 looks at a growing log at which each rule promotes, in rows; None: never. DR, cross-fitted."""
    batch = world.sample(LOOKS[-1], seed)
    target = tabular.rows(batch, world.target)
    weight, state = weights(batch, target), np.argmax(batch.context, axis=1)
    stops: dict[str, int | None] = dict.fromkeys(rules)
    base = evaluation(300, estimators=("dr",))
    for n in LOOKS:
        rows, cells = slice(0, n), state[:n] * 10 + batch.action[:n]
        fold = np.arange(n) % 2
        q, v = np.empty(n), np.empty(n)
        for half in (0, 1):
            seen, judged = cells[fold != half], fold == half
            count = np.bincount(seen, minlength=200)
            total = np.bincount(seen, batch.reward[:n][fold != half], minlength=200)
            table = (total + 1) / (count + 2)
            q[judged] = table[cells[judged]]
            v[judged] = (world.target * table.reshape(20, 10)).sum(axis=1)[state[:n][judged]]
        one = np.arange(n)
        paths = Paths((one,), one, np.ones(n), one, n, np.full(n, -1))
        evidence = Evidence(paths, batch.reward[rows], weight[rows], q, v)
        lift = dr(evidence).minus_logged(logged(evidence))
        estimate = msgspec.structs.replace(base.lift, value=lift.value, low=-9.0, high=9.0, n=n, ess=1.0)
        found = msgspec.structs.replace(base, lift=estimate, lift_floor=Floor.of(lift.low))
        for rule, gates in rules.items():
            if stops[rule] is None and verdict(found, "lower bound", gates).status == "pass":
                stops[rule] = n
        if None not in stops.values():
            break
    return stops


@pytest.mark.slow
def test_looking_40_times_at_a_policy_that_is_no_better_promotes_it_in_at_most_5_percent():
    """400 logs whose true lift is 0. The bound for one planned look, asked as often, promotes 15 to 40% of them."""
    world, rules = lifted(0.0), {"anytime": Gates(), "fixed": Gates(bound="fixed")}
    stops = [promoted(world, seed, rules) for seed in range(400)]
    share = {rule: np.mean([stop[rule] is not None for stop in stops]) for rule in rules}
    assert share["anytime"] <= 0.05, share
    assert 0.15 <= share["fixed"] <= 0.4, share


@pytest.mark.slow
@pytest.mark.parametrize(("lift", "power", "rows"), [(0.0194, 0.5, 20_000), (0.062, 1.0, 3000)])
def test_a_better_policy_is_promoted_soon(lift, power, rows):
    """100 logs: how many are promoted by 20,000 rows, and the median of when."""
    world = lifted(lift)
    stops = [promoted(world, seed, {"anytime": Gates()})["anytime"] for seed in range(100)]
    assert np.mean([stop is not None for stop in stops]) >= power
    assert np.median([LOOKS[-1] if stop is None else stop for stop in stops]) <= rows
