"""Logs with numbers whose true values are known, and stitched episodes of them with the intervals of reports."""

import numpy as np

from steersman.core.batch import Batch
from steersman.core.features import Continuous, Encoder
from steersman.evaluate import estimators
from steersman.evaluate.evidence import Evidence, Paths
from steersman.evaluate.intervals import Influence, bound, delta, estimate
from steersman.evaluate.stitched import stitched
from steersman.worlds.cartpole import STEPS


def batch_of(context, action, reward, ends, *, encoder=None, actions=2, units=None, discount=1.0):
    """A batch of whole episodes, one after the other.

    Args:
        context: [N, F] f32, encoded; by default two columns (value, missing) a number.
        ends: [N], "" inside an episode, else "terminated" or "open".
        units: [N]; None: each episode is its own.
    """
    n = len(action)
    ends = np.asarray(ends)
    last = ends != ""
    episode = np.concatenate([[0], np.cumsum(last)[:-1]])
    names = tuple(f"a{i}" for i in range(actions))
    if encoder is None:
        numbers = tuple(Continuous(f"x{i:03d}", 0.0, 1.0) for i in range(context.shape[1] // 2))
        encoder = Encoder(context=numbers)
    return Batch(
        encoder=Encoder(context=encoder.context, actions=names),
        context=np.asarray(context, dtype=np.float32),
        candidates=np.broadcast_to(np.eye(actions, dtype=np.float32), (n, actions, actions)),
        mask=np.ones((n, actions), dtype=bool),
        action=np.asarray(action, dtype=np.int64),
        propensity=np.full(n, 1.0 / actions),
        reward=np.asarray(reward, dtype=np.float64),
        metrics=np.zeros((n, 0)),
        discount=np.where(ends == "terminated", 0.0, discount),
        next=np.where(last, -1, np.arange(1, n + 1)),
        unit=episode if units is None else np.asarray(units, dtype=np.int64),
    )


def numbers(*columns):
    """[N, 2 * C] f32, encoded numbers; NaN is missing."""
    out = np.zeros((len(columns[0]), 2 * len(columns)), dtype=np.float32)
    for i, column in enumerate(columns):
        column = np.asarray(column, dtype=np.float64)
        out[:, 2 * i] = np.nan_to_num(column)
        out[:, 2 * i + 1] = np.isnan(column)
    return out


def always(action, actions=2, epsilon=0.0):
    chance = np.full(actions, epsilon / actions)
    chance[action] += 1.0 - epsilon
    return lambda context: np.broadcast_to(chance, (len(context), actions))


def of_states(policy):
    """A policy [S, K] of a tabular world, asked by encoded contexts."""
    return lambda context: policy[context.argmax(axis=1)]


class Told:
    """A Stitch, with the intervals of its value and of its lift that reports print."""

    def __init__(self, batch, found, level):
        none = np.zeros(len(batch))
        terms = estimators.stitched(Evidence(Paths.of(batch), none, none, none, none, stitch=found))
        lift = terms.minus_logged(Influence(found.logged, none))
        self.stitch, self._low = found, lift.low
        self.error, self.df = terms.low.error, terms.low.df
        self.printed = estimate(terms, estimator="stitched", metric="reward", level=level)
        self.low, self.high = delta(terms, level)
        self.lift_low, self.lift_high = delta(lift, level)

    def __getattr__(self, name):
        return getattr(self.stitch, name)

    def lift_above(self, level):
        return bound(self._low, 1 - level)


def mfmc(batch, behave, *, outcomes=None, level=0.95, **asked):
    column = batch.reward if outcomes is None else outcomes
    (found,) = stitched(batch, behave, column[:, None], **asked)
    return Told(batch, found, level)


# A number that remembers: s' = 0.8 s + 0.5 (action 1) or - 0.5 (action 0) + noise, s_0 = 1 + noise, reward s.
KEEP, PUSH, STEPS_OF_WALK = 0.8, 0.5, 12


def walks(episodes, seed, ends="open", columns=0, discount=1.0, shift=0.0):
    """Episodes of STEPS_OF_WALK steps of a uniform policy; `columns` more numbers are fresh noise at every step."""
    rng = np.random.default_rng(seed)
    s, rows = 1.0 + 0.2 * rng.standard_normal(episodes), []
    for _ in range(STEPS_OF_WALK):
        action = rng.integers(0, 2, episodes)
        rows.append((s, action))
        s = KEEP * s + PUSH * (2 * action - 1) + 0.1 * rng.standard_normal(episodes)
    context, action = (np.stack(column, axis=1).ravel() for column in zip(*rows, strict=True))
    noise = rng.standard_normal((columns, len(context)))
    end = np.tile([""] * (STEPS_OF_WALK - 1) + [ends], episodes)
    return batch_of(numbers(context, *noise), action, context + shift, end, discount=discount)


LEAN = 0.4
"""Share of the leaning targets' decisions that are even: they push with 0.5 * (1 - 0.4) on average."""


def value_of_walk(push, steps=STEPS_OF_WALK, discount=1.0, shift=0.0):
    """Exact: the mean number is m_0 = 1, m_{t+1} = 0.8 m_t + push."""
    mean, total = 1.0, 0.0
    for t in range(steps):
        total += discount**t * (mean + shift)
        mean = KEEP * mean + push
    return total


def cartpole_policies():
    """Good: push to where the pole falls. Bad: push left always. Uniform. [..., 4] observations -> chance of right."""
    return {
        "good": lambda seen: np.where(seen[..., 2] + 0.5 * seen[..., 3] > 0, 0.95, 0.05),
        "bad": lambda seen: np.full(seen.shape[:-1], 0.05),
        "uniform": lambda seen: np.full(seen.shape[:-1], 0.5),
    }


def played(policy, seed, *, episodes=None, decisions=None):
    """Observations, actions and ends of whole CartPole episodes; until either number is reached."""
    import gymnasium

    world = gymnasium.make("CartPole-v1", max_episode_steps=STEPS, disable_env_checker=True)
    rng = np.random.default_rng(seed)
    rows, count = [], 0
    while (episodes is None or count < episodes) and (decisions is None or len(rows) < decisions):
        seen, _ = world.reset(seed=int(rng.integers(2**31)))
        end, count = "", count + 1
        while end == "":
            action = int(rng.random() < policy(seen))
            following, _, terminated, truncated, _ = world.step(action)
            end = "terminated" if terminated else "open" if truncated else ""
            rows.append((seen, action, end))
            seen = following
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def cartpole_batch(parts):
    seen, action, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
    mean, std = seen.mean(axis=0), seen.std(axis=0)
    encoder = Encoder(
        context=tuple(Continuous(f"x{i}", float(mean[i]), float(std[i])) for i in range(4)),
    )
    context = numbers(*((seen - mean) / std).T)
    batch = batch_of(context, action, np.ones(len(action)), ends, encoder=encoder)

    def asked(policy):
        def behave(context):
            right = policy(context[:, ::2] * std + mean)
            return np.column_stack([1.0 - right, right])

        return behave

    return batch, asked
