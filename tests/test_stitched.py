"""Stitched episodes against closed forms, dynamic programming and played episodes."""

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from steersman.core.batch import Batch
from steersman.core.decision import Numbers
from steersman.core.errors import DataError, SupportError
from steersman.core.features import LIMIT, Category, Continuous, Encoder
from steersman.evaluate.stitched import HALVES, LEAST_UNITS, stitched
from steersman.evaluate.transitions import WIDE, Drift, Transitions
from steersman.worlds import tabular
from steersman.worlds.cartpole import STEPS
from stitched_logs import (
    KEEP,
    LEAN,
    PUSH,
    STEPS_OF_WALK,
    always,
    batch_of,
    cartpole_batch,
    cartpole_policies,
    mfmc,
    numbers,
    of_states,
    played,
    value_of_walk,
    walks,
)

# ---- true values


@pytest.mark.parametrize(("action", "push"), [(1, PUSH), (0, -PUSH)])
def test_the_value_of_a_number_that_remembers_is_its_closed_form(action, push):
    truth, covered = value_of_walk(push * (1 - LEAN)), 0
    for seed in range(5):
        found = mfmc(walks(300, seed), always(action, epsilon=LEAN), horizon=STEPS_OF_WALK, seed=2)
        assert abs(found.value - truth) < 0.1 * abs(truth - value_of_walk(0.0))
        covered += (found.low <= truth <= found.high) + (
            found.lift_low <= truth - value_of_walk(0.0) <= found.lift_high
        )
    assert covered >= 8  # of 10


def test_an_earlier_reward_counts_more_under_a_discount():
    batch = walks(300, seed=3, discount=0.7)
    found = mfmc(batch, always(1, epsilon=LEAN), horizon=STEPS_OF_WALK, seed=2)
    push = PUSH * (1 - LEAN)
    assert found.low <= value_of_walk(push, discount=0.7) <= found.high
    assert found.high < value_of_walk(push)


@pytest.mark.parametrize("ends", ["open", "terminated"])
def test_the_cut_at_the_horizon_is_no_termination_however_it_is_marked(ends):
    """Contexts of the last step also come earlier: rows that were cut there must not end particles."""
    found = mfmc(walks(300, seed=4, ends=ends), always(1, epsilon=1.0), horizon=STEPS_OF_WALK, seed=5)
    assert found.value == pytest.approx(value_of_walk(0.0), abs=4 * found.error)
    longer = mfmc(walks(300, seed=4, ends="terminated"), always(1, epsilon=1.0), horizon=STEPS_OF_WALK + 8, seed=5)
    assert longer.value < value_of_walk(0.0, STEPS_OF_WALK + 8)  # now the ends are before the horizon, so they count


def test_a_corridor_without_chance_has_its_exact_value():
    """Always right reaches the end after 4 steps, and is paid 1 for each of the 8 that are left."""
    world = tabular.chain(5, horizon=12)
    batch = world.sample(400, np.full((5, 2), 0.5), seed=0)
    found = mfmc(batch, always(1), horizon=12, seed=1)
    assert found.value == pytest.approx(8.0, abs=1e-9)
    assert found.outside == 0
    assert found.distance < 1e-3


@pytest.mark.parametrize("truncate", [False, True])
def test_the_value_of_a_table_of_states_is_that_of_dynamic_programming(truncate):
    world = tabular.garnet(8, 3, horizon=20, seed=3)
    target = tabular.softmax(3.0 * world.mean)
    uniform = np.full((8, 3), 1.0 / 3.0)
    batch = world.sample(600, uniform, seed=4, truncate=truncate)
    found = mfmc(batch, of_states(target), horizon=20, seed=5)
    assert found.low <= world.value(target) <= found.high
    assert found.lift_low <= world.value(target) - world.value(uniform) <= found.lift_high
    assert found.lift_above(0.95) > 0


@pytest.mark.parametrize("seed", range(3))
def test_the_policy_that_logged_has_the_logged_mean_return(seed):
    """Episodes of 1 to 40 steps; equal contexts are drawn from the empirical law, so only sampling errs."""
    world = tabular.garnet(10, 4, horizon=40, seed=seed)
    behavior = tabular.softmax(np.random.default_rng(seed).normal(size=(10, 4)))
    batch = world.sample(400, behavior, seed=seed)
    found = mfmc(batch, of_states(behavior), horizon=40, seed=seed)
    lengths = np.bincount(batch.unit)
    assert lengths.min() == 1
    assert lengths.max() == 40
    assert abs(found.value - found.logged) <= 3 * found.error
    assert found.logged == pytest.approx(np.bincount(batch.unit, batch.reward).mean())
    assert found.error < 0.15 * found.logged


@pytest.mark.slow
@pytest.mark.parametrize(("right", "episodes"), [(0.5, 200), (0.5, 1000), (0.8, 200), (1.0, 200)])
def test_intervals_cover_a_number_that_remembers(right, episodes):
    """500 logs of an even policy. Always right is the hardest: one episode in 4,096 was like it."""
    truth, chance = value_of_walk(PUSH * (2 * right - 1)), np.array([1 - right, right])
    check_coverage(
        (mfmc(walks(episodes, s), lambda x: np.broadcast_to(chance, (len(x), 2)), horizon=STEPS_OF_WALK, seed=s), truth)
        for s in range(500)
    )


@pytest.mark.slow
def test_intervals_cover_tables_of_states():
    def each(seed):
        world = tabular.garnet(8, 3, horizon=20, seed=seed)
        target = tabular.softmax(2.0 * world.mean)
        batch = world.sample(300, np.full((8, 3), 1.0 / 3.0), seed=seed + 1000)
        return mfmc(batch, of_states(target), horizon=20, seed=seed), world.value(target)

    check_coverage(map(each, range(500)))


def check_coverage(each):
    """At least 92% of all; and those that are no bounds, as nothing was left open, are not too wide either."""
    covered, closed = np.array([(f.low <= truth <= f.high, not f.printed.at_least) for f, truth in each]).T
    assert covered.mean() >= 0.92
    assert closed.sum() < 100 or covered[closed].mean() <= 0.985


@pytest.fixture(scope="module")
def cartpole_log():
    return cartpole_batch([played(cartpole_policies()["uniform"], seed=1, decisions=5000)])


@pytest.mark.parametrize("name", ["good", "bad", "uniform"])
def test_a_log_of_random_decisions_tells_good_policies_of_cartpole_from_bad_ones(cartpole_log, name):
    batch, asked = cartpole_log
    policy = cartpole_policies()[name]
    ends = played(policy, seed=2, episodes=60)[2]
    lengths = np.diff(np.flatnonzero(np.append("end", ends) != ""))
    truth, error = lengths.mean(), lengths.std() / math.sqrt(len(lengths))
    found = mfmc(batch, asked(policy), horizon=STEPS, seed=3)
    assert found.low - 3 * error <= truth <= found.high + 3 * error
    assert (found.lift_above(0.95) > 0) == (name == "good")
    assert found.lift_low <= found.lift_above(0.95)


# ---- which rows may speak


def test_an_open_row_is_not_a_termination():
    """Nothing ever terminates here: the window ends while episodes run. Stitched ones reach the horizon."""
    rng = np.random.default_rng(0)
    lengths = np.append(rng.integers(2, 10, 180), np.full(20, 10))
    ends = np.concatenate([[""] * (length - 1) + ["open"] for length in lengths])
    n = len(ends)
    batch = batch_of(numbers(rng.random(n)), rng.integers(0, 2, n), np.ones(n), ends)
    found = mfmc(batch, always(0), horizon=10, seed=1)
    assert found.value == 10.0
    assert found.logged == 10.0  # of the episodes whose return is known


def test_the_reward_of_a_terminal_row_counts():
    """One step of reward 0, then a last one of reward 1."""
    rng = np.random.default_rng(0)
    s = np.tile([0.0, 1.0], 100) + 0.01 * rng.random(200)
    batch = batch_of(numbers(s), rng.integers(0, 2, 200), np.tile([0.0, 1.0], 100), ["", "terminated"] * 100)
    assert mfmc(batch, always(1), horizon=50, seed=1).value == pytest.approx(1.0, abs=1e-4)


def test_a_step_that_only_comes_at_the_end_of_the_horizon_is_matched_there():
    """Products with a fixed number of steps: the last one's contexts are only known from cut rows."""
    rng = np.random.default_rng(0)
    stage = np.tile([-1.0, 0.0, 1.0], 100)
    batch = batch_of(numbers(stage), rng.integers(0, 2, 300), stage + 1, ["", "", "open"] * 100)
    found = mfmc(batch, always(1), horizon=3, seed=1)
    assert found.value == 3.0
    assert found.outside == 0


# ---- outside the support


def test_an_action_that_was_never_logged_leaves_the_support():
    batch = replace(walks(100, seed=1), action=np.zeros(100 * STEPS_OF_WALK, dtype=np.int64))
    never = mfmc(batch, always(1), horizon=STEPS_OF_WALK, seed=1)
    assert never.outside == never.left == 1.0
    assert never.ess == never.distance == 0.0
    worst, best = batch.reward.min() * STEPS_OF_WALK, batch.reward.max() * STEPS_OF_WALK
    assert (never.value, never.worst, never.low) == pytest.approx((worst, worst, worst))
    assert (never.best, never.high) == pytest.approx((best, best))
    assert never.lift_low < 0 < never.lift_high
    half = mfmc(batch, always(1, epsilon=1.0), horizon=STEPS_OF_WALK, seed=1)
    assert 0.4 < half.outside < 0.6
    assert half.left > 0.99
    assert never.low < half.low < half.high < never.high


def test_a_number_beyond_its_logged_range_counts_the_worst_and_the_best():
    """Logged: half a unit up or down, evenly. The target only goes up, and leaves the range in some known step."""
    step = np.random.default_rng(5).choice([-0.5, 0.5], (60, 12))
    s = np.concatenate([np.zeros((60, 1)), step.cumsum(axis=1)[:, :-1]], axis=1).ravel()
    reward = np.ones(s.size)
    reward[-1], reward[-13] = 0.0, 2.0  # at the horizon and downwards: the range of rewards, hardly ever matched
    batch = batch_of(numbers(s), (step > 0).ravel(), reward, ([""] * 11 + ["open"]) * 60)
    found = mfmc(batch, always(1), horizon=12, seed=1)
    leaves = math.ceil((s.max() + 0.1 * np.ptp(s)) / 0.5)  # or a step earlier, where no logged row is so far off
    assert leaves < 12
    assert found.left == 1.0
    assert found.value == pytest.approx(12.0, abs=0.1)
    assert leaves - 1.1 <= found.worst <= leaves + 0.1
    assert 12 - leaves - 0.1 <= (found.best - found.worst) / 2 <= 12 - leaves + 1.1


def test_negative_rewards_count_at_every_step_that_may_follow():
    batch = walks(200, seed=6, shift=-5.0)
    assert batch.reward.max() < 0
    found = mfmc(batch, always(1, epsilon=LEAN), horizon=STEPS_OF_WALK, seed=1)
    assert found.low <= value_of_walk(PUSH * (1 - LEAN), shift=-5.0) <= found.high
    absent = replace(batch, action=np.zeros(len(batch), dtype=np.int64))
    never = mfmc(absent, always(1), horizon=STEPS_OF_WALK, seed=1)
    assert never.worst == pytest.approx(batch.reward.min() * STEPS_OF_WALK)
    assert never.best == pytest.approx(batch.reward.max())  # at least one more reward, and none is above 0


def test_what_may_follow_is_discounted():
    batch = replace(walks(100, seed=1, discount=0.5), action=np.zeros(100 * STEPS_OF_WALK, dtype=np.int64))
    never = mfmc(batch, always(1), horizon=STEPS_OF_WALK, seed=1)
    assert never.best == pytest.approx(batch.reward.max() * (2 - 0.5 ** (STEPS_OF_WALK - 1)))


def test_fresh_numbers_do_not_drift_out_of_their_range():
    """A column that is drawn anew at every step has no persistence, and matters to nobody."""
    batch = walks(400, seed=7, columns=3)
    found = mfmc(batch, always(1, epsilon=LEAN), horizon=STEPS_OF_WALK, seed=1)
    bare = mfmc(walks(400, seed=7), always(1, epsilon=LEAN), horizon=STEPS_OF_WALK, seed=1)
    assert found.outside <= bare.outside + 0.01
    assert found.low <= value_of_walk(PUSH * (1 - LEAN)) <= found.high
    drift = Drift(Transitions.of(batch, batch.reward[:, None], STEPS_OF_WALK), np.random.default_rng(0))
    assert drift.persistence[0] == pytest.approx(KEEP, abs=0.03)
    assert drift.persistence[1:].max() < 0.1


# ---- columns that are not numbers


def mixed_log(episodes, seed):
    """A number that may go missing, a text that steers it, and a text that says nothing."""
    rng = np.random.default_rng(seed)
    encoder = Encoder(
        context=(Category("kind", ("down", "up")), Category("noise", ("x", "y", "z")), Continuous("s", 0, 1))
    )
    rows, steps = [], 8
    kind, s = rng.integers(0, 2, episodes), rng.standard_normal(episodes)
    for _ in range(steps):
        action = rng.integers(0, 2, episodes)
        missing = rng.random(episodes) < 0.2
        context = np.zeros((episodes, encoder.context_width), dtype=np.float32)
        context[np.arange(episodes), kind] = 1.0
        context[np.arange(episodes), 4 + rng.integers(0, 3, episodes)] = 1.0
        context[:, 9] = np.where(missing, 0.0, s)
        context[:, 10] = missing
        rows.append((context, action, (action == kind).astype(float)))
        s = 0.9 * s + 0.1 * kind
        kind = np.where(rng.random(episodes) < 0.3, 1 - kind, kind)
    context, action, reward = (np.stack(column, axis=1) for column in zip(*rows, strict=True))
    ends = ([""] * (steps - 1) + ["terminated"]) * episodes
    return batch_of(context.reshape(-1, encoder.context_width), action.ravel(), reward.ravel(), ends, encoder=encoder)


def test_every_stitched_context_is_one_that_the_encoder_could_have_made():
    batch, asked = mixed_log(150, seed=1), []

    def behave(context):
        asked.append(context)
        return np.full((len(context), 2), 0.5)

    mfmc(batch, behave, horizon=8, seed=1)
    context = np.concatenate(asked)
    assert context.dtype == np.float32
    for group in (slice(0, 4), slice(4, 9)):
        assert set(np.unique(context[:, group])) <= {0.0, 1.0}
        np.testing.assert_array_equal(context[:, group].sum(axis=1), 1.0)
    assert set(np.unique(context[:, 10])) == {0.0, 1.0}
    assert (context[context[:, 10] == 1, 9] == 0).all()
    assert np.abs(context[:, 9]).max() <= LIMIT


def test_numbers_are_cut_where_the_encoder_cuts_them():
    rng = np.random.default_rng(0)
    s = np.tile([8.0, 9.9, 8.0], 60)
    batch = batch_of(
        numbers(s + 0.01 * rng.random(180)), rng.integers(0, 2, 180), np.ones(180), ["", "", "terminated"] * 60
    )
    seen = []
    mfmc(batch, lambda c: (seen.append(c), np.full((len(c), 2), 0.5))[1], horizon=9, seed=0)
    assert np.concatenate(seen)[:, 0].max() <= LIMIT


def test_a_text_that_matters_is_matched():
    """The best action is that of the kind, which is kept in 7 of 10 steps: 1 a step; any other policy gets less."""
    batch = mixed_log(300, seed=2)
    wise = mfmc(batch, lambda c: np.column_stack([c[:, 0], c[:, 1]]).astype(float), horizon=8, seed=1)
    assert wise.value == pytest.approx(8.0, abs=0.1)
    assert wise.lift_above(0.95) > 3
    fool = mfmc(batch, lambda c: np.column_stack([c[:, 1], c[:, 0]]).astype(float), horizon=8, seed=1)
    assert fool.value == pytest.approx(0.0, abs=0.1)


# ---- the number and its interval


def test_the_same_seed_gives_the_same_numbers_and_another_others():
    batch = walks(60, seed=1)
    first, second, other = (mfmc(batch, always(1, epsilon=0.2), horizon=STEPS_OF_WALK, seed=s) for s in (1, 1, 2))
    assert first.value == second.value
    np.testing.assert_array_equal(first.worst_moved, second.worst_moved)
    assert (first.low, first.high, first.ess) == (second.low, second.high, second.ess)
    assert first.value != other.value


def test_intervals_hold_the_value_and_grow_with_the_level():
    batch, widths = walks(100, seed=1), []
    for level in (0.5, 0.9, 0.99):
        found = mfmc(batch, always(1, epsilon=0.2), horizon=STEPS_OF_WALK, seed=1, level=level)
        assert found.low < found.worst <= found.value <= found.best < found.high
        worst, best = found.worst + found.worst_moved, found.best + found.best_moved
        assert worst.shape == (HALVES, 2)
        assert (worst <= best).all()
        assert found.lift_low < found.value - found.logged < found.lift_high
        assert found.lift_above(0.5 + level / 2) == pytest.approx(found.lift_low)
        assert 0 < found.ess <= 100
        widths.append(found.high - found.low)
    assert widths == sorted(widths)


def test_evenly_spread_particles_err_less_than_as_many_on_their_own():
    """Of one log, by 12 seeds; there are 800 particles on all units, and the target is the policy that logged."""
    batch = walks(1000, seed=1)
    values = [mfmc(batch, always(1, epsilon=1.0), horizon=STEPS_OF_WALK, seed=s).value for s in range(12)]
    alone = np.bincount(batch.unit, batch.reward).std() / math.sqrt(800)
    assert np.std(values, ddof=1) < 0.5 * alone


def test_halves_are_of_whole_units_and_shared_with_the_baseline():
    """All of a unit's episodes return the same here: each half's baseline is a mean over half of the units."""
    units, step = np.repeat(np.arange(12), 20 * 2), np.tile([0.0, 1.0], 240)
    reward = units.astype(float)
    batch = batch_of(numbers(units / 10, step), np.arange(480) // 2 % 2, reward, ["", "terminated"] * 240, units=units)
    found = mfmc(batch, always(1, epsilon=1.0), horizon=5, seed=1, particles=240)
    assert found.logged == pytest.approx(11.0)
    sums = (found.logged + found.logged_moved) * 6 / 2
    np.testing.assert_allclose(sums, np.round(sums), atol=1e-9)
    np.testing.assert_allclose(found.worst_moved[:, 0], found.logged_moved, atol=1e-9)  # it is the policy that logged
    np.testing.assert_allclose(found.worst_moved[:, 1], found.logged_moved, atol=1e-9)


def test_a_metric_is_summed_as_the_reward_is_and_by_the_same_particles():
    batch = walks(60, seed=1)
    metric = (batch.context[:, 0] > 1).astype(np.float64)
    asked = {"horizon": STEPS_OF_WALK, "seed": 1}
    reward, first = stitched(batch, always(1), np.column_stack([batch.reward, metric]), **asked)
    alone = mfmc(batch, always(1), outcomes=metric, **asked)
    assert first.value == pytest.approx(alone.value, abs=2 * alone.error)
    assert 0 <= first.value <= STEPS_OF_WALK
    assert reward.ess == first.ess
    one, two = stitched(batch, always(1), np.column_stack([metric, 2 * metric]), **asked)
    assert two.value == pytest.approx(2 * one.value)
    np.testing.assert_allclose(two.worst_moved, 2 * one.worst_moved, atol=1e-12)


# ---- what can not be answered


def test_candidates_that_differ_are_refused():
    batch = walks(20, seed=1)
    candidates = batch.candidates.copy()
    assert mfmc(replace(batch, candidates=candidates), always(1), horizon=12, seed=1).ess > 1
    candidates[3, 0] = 0.5
    with pytest.raises(SupportError, match="differ from row to row"):
        mfmc(replace(batch, candidates=candidates), always(1), horizon=12, seed=1)
    mask = batch.mask.copy()
    mask[batch.action == 0, 1] = False
    with pytest.raises(SupportError, match="differ from row to row"):
        mfmc(replace(batch, mask=mask), always(1), horizon=12, seed=1)
    with pytest.raises(SupportError, match="numbers"):
        mfmc(with_numbers(batch), always(1), horizon=12, seed=1)


def with_numbers(batch: Batch) -> Batch:
    """The same contexts and rewards; the action is a number."""
    n = len(batch)
    return replace(
        batch,
        encoder=structs.replace(batch.encoder, actions=(), candidate=(), numbers=Numbers(low=(-1.0,), high=(1.0,))),
        candidates=np.empty((n, 0, 0), dtype=np.float32),
        mask=np.empty((n, 0), dtype=bool),
        action=np.zeros((n, 1), dtype=np.float32),
    )


def test_what_can_not_be_stitched_says_why():
    batch = walks(20, seed=1)
    for error, match, changed, arguments in (
        (DataError, "units", walks(LEAST_UNITS - 1, seed=1), {}),
        (DataError, "horizon is 1", batch, {"horizon": 1}),
        (DataError, "horizon", batch, {"horizon": 5}),
        (DataError, "particles is 1", batch, {"particles": 1}),
        (DataError, "from its start to its end", batch, {"horizon": 13}),
        (DataError, "not finite", batch, {"outcomes": np.full(len(batch), np.nan)}),
        (DataError, "outcomes are", batch, {"outcomes": np.zeros(3)}),
        (SupportError, "nothing to stitch", replace(batch, next=np.full(len(batch), -1), discount=np.zeros(len(batch)),
                                                    unit=np.arange(len(batch))), {}),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            mfmc(changed, always(1), **{"horizon": 12, "seed": 1, **arguments})


@pytest.mark.parametrize(
    "chance", [np.full((1, 2), 0.7), np.array([[1.5, -0.5]]), np.full((1, 3), 1 / 3), [[np.nan, 1]]]
)
def test_a_target_must_give_probabilities(chance):
    with pytest.raises(DataError, match="the target gives"):
        mfmc(walks(20, seed=1), lambda c: np.repeat(chance, len(c), axis=0), horizon=12, seed=1)


def test_a_context_that_never_changes_can_be_stitched():
    """No column varies: every row of the action is as near. Stops half of the time: 2 steps on average."""
    rng = np.random.default_rng(0)
    ends = np.where(rng.random(1000) < 0.5, "terminated", "")
    ends[-1] = "terminated"
    batch = batch_of(numbers(np.full(1000, 0.5)), rng.integers(0, 2, 1000), np.ones(1000), ends)
    found = mfmc(batch, always(1), horizon=60, seed=1)
    assert found.low <= 2.0 <= found.high


# ---- time and memory


def test_a_reward_that_grows_beside_the_match_is_not_pulled_to_the_middle():
    """The reward is the number itself, and 149 columns of noise make every match a far one."""
    batch = walks(200, seed=2, columns=149)
    found = mfmc(batch, always(1, epsilon=LEAN), horizon=STEPS_OF_WALK, seed=1)
    truth = value_of_walk(PUSH * (1 - LEAN))
    assert found.low <= truth <= found.high
    assert abs(found.value - truth) < 0.1 * abs(truth - value_of_walk(0.0))  # by matches alone 0.12


def test_hundreds_of_columns_are_compared_in_a_few_directions():
    batch = walks(200, seed=1, columns=149)
    drift = Drift(Transitions.of(batch, batch.reward[:, None], STEPS_OF_WALK), np.random.default_rng(0))
    assert drift.points.shape == (len(batch), WIDE)
    begun = time.process_time()
    found = mfmc(batch, always(1, epsilon=LEAN), horizon=STEPS_OF_WALK, seed=1)
    assert time.process_time() - begun < 10
    assert found.low <= value_of_walk(PUSH * (1 - LEAN)) <= found.high
