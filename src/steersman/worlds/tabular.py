"""Small worlds with exactly known values: a bandit and a random MDP over finite states. The ruler for estimators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from steersman.core.batch import Batch
from steersman.core.errors import DataError
from steersman.core.features import Category, Encoder

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Bandit:
    """A world of one decision an episode: S states, K actions, every mean known.

    Attributes:
        starts: [S] f64, how often a state comes; sums to 1.
        mean: [S, K] f64, mean reward of an action in a state.
        behavior: [S, K] f64, probabilities of the policy that logs; above 0.
        target: [S, K] f64, probabilities of a policy to judge.
        noise: standard deviation of a normal reward; None: the reward is 0 or 1 and `mean` its probability.
    """

    starts: Array
    mean: Array
    behavior: Array
    target: Array
    noise: float | None

    def __post_init__(self) -> None:
        check_policy(self.behavior, self.mean.shape)
        check_policy(self.target, self.mean.shape)
        if self.noise is None and not ((self.mean >= 0) & (self.mean <= 1)).all():
            raise DataError("a reward of 0 or 1 needs means in [0, 1]", field="mean")

    @property
    def encoder(self) -> Encoder:
        """The state as a category, the actions by name."""
        return encoder(*self.mean.shape)

    def value(self, policy: Array) -> float:
        """Exact mean reward of a policy.

        Args:
            policy: [S, K], rows sum to 1.
        """
        check_policy(policy, self.mean.shape)
        return float(self.starts @ (policy * self.mean).sum(axis=1))

    def chi2(self, target: Array) -> float:
        """Exact chi-square divergence of a target from the behavior: E[w^2] - 1, so ess is about n / (1 + chi2)."""
        return float(self.starts @ (target**2 / self.behavior).sum(axis=1)) - 1.0

    def sample(self, n: int, seed: int) -> Batch:
        """n decisions of the behavior policy, each the terminated episode of a unit of its own."""
        rng = np.random.default_rng(seed)
        state = pick(np.broadcast_to(self.starts, (n, len(self.starts))), rng)
        action = pick(self.behavior[state], rng)
        mean = self.mean[state, action]
        if self.noise is None:
            reward = (rng.random(n) < mean).astype(np.float64)
        else:
            reward = mean + self.noise * rng.standard_normal(n)
        return batch(
            self.behavior,
            state=state,
            action=action,
            reward=reward,
            discount=np.zeros(n),
            next=np.full(n, -1, dtype=np.int64),
            unit=np.arange(n, dtype=np.int64),
        )


@dataclass(frozen=True, eq=False)
class Mdp:
    """A world of episodes: S states, K actions, B successors of each pair; values by dynamic programming.

    After a step the world ends the episode with probability `stop`; at `horizon` steps it ends in any case.

    Attributes:
        starts: [S] f64, how often an episode starts in a state; sums to 1.
        successor: [S, K, B] i64, the states that may follow.
        chance: [S, K, B] f64, how likely each is; sums to 1 over B.
        mean: [S, K] f64, mean reward.
        noise: standard deviation of the normal reward.
        stop: probability that a step is the last, in [0, 1]; one for all states, or [S] by the state of the step.
        horizon: steps after which an episode is over; None: no limit, then `stop` is above 0.
        discount: of a reward one step later, in (0, 1].
    """

    starts: Array
    successor: Array
    chance: Array
    mean: Array
    noise: float
    stop: float | Array
    horizon: int | None
    discount: float = 1.0

    def __post_init__(self) -> None:
        if self.horizon is None and not np.min(self.stop) > 0:
            raise DataError("without a horizon stop must be above 0, or no episode would end", field="stop")

    @property
    def encoder(self) -> Encoder:
        """The state as a category, the actions by name."""
        return encoder(*self.mean.shape)

    def q(self, policy: Array) -> Array:
        """Exact value of taking an action with t steps done, then following the policy.

        Args:
            policy: [S, K], rows sum to 1.
        Returns:
            [H, S, K] f64 for a horizon of H; [1, S, K] without a horizon: then it does not depend on t.
        """
        check_policy(policy, self.mean.shape)
        if self.horizon is None:
            return self._q_of_endless(policy)[None]
        q = np.zeros((self.horizon, *self.mean.shape))
        q[-1] = self.mean
        for step in range(self.horizon - 2, -1, -1):
            q[step] = self.mean + self._carry(np.sum(policy * q[step + 1], axis=1))
        return q

    def value(self, policy: Array) -> float:
        """Exact mean return of an episode, discounted, of a policy [S, K]."""
        return float(self.starts @ np.sum(policy * self.q(policy)[0], axis=1))

    def length(self, policy: Array) -> float:
        """Exact mean number of steps of an episode."""
        return replace(self, mean=np.ones_like(self.mean), discount=1.0).value(policy)

    def sample(self, episodes: int, behavior: Array, seed: int, *, truncate: bool = False) -> Batch:
        """Whole episodes of the behavior policy, one after the other, each a unit of its own.

        Args:
            behavior: [S, K], rows sum to 1.
            truncate: mark episodes that reached the horizon as truncated, not as terminated: the last row keeps
                its discount, as when somebody stopped looking.
        """
        check_policy(behavior, self.mean.shape)
        rng = np.random.default_rng(seed)
        episode = np.arange(episodes)
        state = pick(np.broadcast_to(self.starts, (episodes, len(self.starts))), rng)
        steps: list[tuple[Array, Array, Array, Array]] = []  # episode, state, action, whether the world stopped it
        while len(episode):
            action = pick(behavior[state], rng)
            stopped = rng.random(len(episode)) < self._stops[state]
            steps.append((episode, state, action, stopped))
            if len(steps) == self.horizon:
                break
            branch = pick(self.chance[state, action], rng)
            state = self.successor[state, action, branch][~stopped]
            episode = episode[~stopped]
        return self._batch(steps, behavior, rng, truncate)

    def _batch(self, steps: Sequence[tuple[Array, ...]], behavior: Array, rng: np.random.Generator, cut: bool) -> Batch:
        episode, state, action, stopped = (np.concatenate(column) for column in zip(*steps, strict=True))
        order = np.argsort(episode, kind="stable")  # steps were appended in order, so stable keeps them so
        episode, state, action, stopped = episode[order], state[order], action[order], stopped[order]
        n = len(episode)
        last = np.append(episode[1:] != episode[:-1], True)
        over = last & stopped if cut else last
        return batch(
            behavior,
            state=state,
            action=action,
            reward=self.mean[state, action] + self.noise * rng.standard_normal(n),
            discount=np.where(over, 0.0, self.discount),
            next=np.where(last, -1, np.arange(1, n + 1)),
            unit=episode,
        )

    @property
    def _stops(self) -> Array:
        return np.broadcast_to(self.stop, self.starts.shape)

    def _carry(self, value: Array) -> Array:
        """[S] value of being in a state -> [S, K] what it is worth one step earlier."""
        goes_on = 1.0 - self._stops[:, None]
        return self.discount * goes_on * np.sum(self.chance * value[self.successor], axis=2)

    def _q_of_endless(self, policy: Array) -> Array:
        states = len(self.starts)
        moves = np.zeros((states, states))
        for branch in range(self.successor.shape[2]):
            for action in range(self.mean.shape[1]):
                chance = policy[:, action] * self.chance[:, action, branch]
                np.add.at(moves, (np.arange(states), self.successor[:, action, branch]), chance)
        keep = self.discount * (1.0 - self._stops[:, None])
        value = np.linalg.solve(np.eye(states) - keep * moves, np.sum(policy * self.mean, axis=1))
        return self.mean + self._carry(value)


def bandit(states: int, actions: int, *, chi2: float, noise: float | None, seed: int) -> Bandit:
    """A random bandit whose target is at exactly the given chi-square divergence from its behavior.

    Means are uniform in [0, 1] (in [0, 0.02] for a reward of 0 or 1: clicks are rare). The behavior is a softmax
    of noisy means; the target is a sharper softmax of the true means.

    Raises:
        DataError: no softmax of the means is that far from the behavior.
    """
    rng = np.random.default_rng(seed)
    mean = rng.random((states, actions))
    behavior = softmax(mean + rng.normal(0.0, 0.7, mean.shape))
    starts = rng.dirichlet(np.full(states, 5.0))
    world = Bandit(starts, mean if noise is not None else 0.02 * mean, behavior, behavior, noise)
    low, high = 0.0, 1000.0
    if not world.chi2(softmax(low * mean)) < chi2 < world.chi2(softmax(high * mean)):
        raise DataError(f"chi2 {chi2:g} is out of reach: from {world.chi2(softmax(low * mean)):g} "
                        f"to {world.chi2(softmax(high * mean)):g}", field="chi2")  # fmt: skip
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if world.chi2(softmax(middle * mean)) < chi2 else (low, middle)
    return replace(world, target=softmax(low * mean))


def world_a(seed: int = 0) -> Bandit:
    """World A of the coverage study: 10 actions, chi2 5.1, rewards around 0.5; meant for n = 2,000."""
    return bandit(20, 10, chi2=5.1, noise=0.5, seed=seed)


def world_b(seed: int = 0) -> Bandit:
    """World A with 5 added to every reward: it exposes intervals that hold a random denominator fixed."""
    world = world_a(seed)
    return replace(world, mean=world.mean + 5.0)


def world_c(seed: int = 0) -> Bandit:
    """World C: like clicks in a shop, 80 actions and a click rate of 0.8%; meant for n = 10,000."""
    world = bandit(20, 80, chi2=5.1, noise=None, seed=seed)
    return replace(world, mean=world.mean * (0.008 / world.value(world.behavior)))


def garnet(
    states: int = 20,
    actions: int = 4,
    *,
    branching: int = 3,
    stop: float = 0.1,
    horizon: int | None = 40,
    discount: float = 1.0,
    seed: int = 0,
) -> Mdp:
    """A random MDP (generalized average reward non-stationary environment test-bench, without the "non-stationary").

    Means are uniform in [0, 1] with noise 0.5; every pair has `branching` different successors with Dirichlet
    chances.

    Source: Archibald, McKinnon, Thomas 1995; Bhatnagar et al. 2009, section 6.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.tile(np.arange(states), (states * actions, 1)), axis=1)
    return Mdp(
        starts=rng.dirichlet(np.ones(states)),
        successor=shuffled[:, :branching].reshape(states, actions, branching),
        chance=rng.dirichlet(np.ones(branching), (states, actions)),
        mean=rng.random((states, actions)),
        noise=0.5,
        stop=stop,
        horizon=horizon,
        discount=discount,
    )


def contest(horizon: int, *, uniform: float, seed: int = 0) -> tuple[Mdp, Array, Array]:
    """A garnet whose episodes all last to the horizon, with the policies that long logs are judged by.

    The target takes the action with the best value under uniform decisions, but for a fifth of its decisions, which
    are uniform; the behavior is the target with a share of uniform decisions more.

    Args:
        uniform: that share: 0.5 is close to the target, 0.85 far.
    Returns:
        the world, behavior [S, K], target [S, K].
    """
    world = garnet(stop=0.0, horizon=horizon, seed=seed)
    shape = world.mean.shape
    best = np.eye(shape[1])[world.q(np.full(shape, 1.0 / shape[1]))[0].argmax(axis=1)]
    target = mixed(best, 0.2)
    return world, mixed(target, uniform), target


def halved(batch: Batch, actions: int) -> Batch:
    """The log of somebody who cannot tell the states 2 i and 2 i + 1 apart. Propensities stay what they were."""
    half = (batch.context.shape[1] - 2) // 2
    context = np.zeros((len(batch), half + 2), dtype=np.float32)
    context[np.arange(len(batch)), states(batch) // 2] = 1.0
    return replace(batch, encoder=encoder(half, actions), context=context)


def gridworld(*, horizon: int = 40, discount: float = 0.9) -> Mdp:
    """A grid of 5 x 5 cells with four walls: moves that slip sideways one time in ten, against a wall one stays.

    Episodes start in a corner; the step that is made in the opposite one pays 1 and ends the episode.
    """
    walls = {(1, 1), (1, 3), (3, 1), (3, 3)}
    cells = [(r, c) for r in range(5) for c in range(5) if (r, c) not in walls]
    place = {cell: i for i, cell in enumerate(cells)}
    moves = ((-1, 0), (0, 1), (1, 0), (0, -1))

    def after(cell: tuple[int, int], move: int) -> int:
        down, right = moves[move % 4]
        return place.get((cell[0] + down, cell[1] + right), place[cell])

    goal = np.arange(len(cells)) == len(cells) - 1
    return Mdp(
        starts=np.eye(len(cells))[0],
        successor=np.array([[[after(c, k), after(c, k + 1), after(c, k - 1)] for k in range(4)] for c in cells]),
        chance=np.broadcast_to([0.9, 0.05, 0.05], (len(cells), 4, 3)).copy(),
        mean=np.repeat(goal[:, None], 4, axis=1).astype(np.float64),
        noise=0.0,
        stop=goal.astype(np.float64),
        horizon=horizon,
        discount=discount,
    )


def chain(states: int, *, horizon: int, discount: float = 1.0) -> Mdp:
    """A corridor with no chance in it: action 1 goes right, action 0 back to the start; being at the end pays 1.

    Going right always, from state 0, gives 0 for states - 1 steps and then 1 for every step up to the horizon.
    """
    here = np.arange(states)
    mean = np.zeros((states, 2))
    mean[-1, 1] = 1.0
    return Mdp(
        starts=np.eye(states)[0],
        successor=np.stack([np.zeros(states, dtype=np.int64), np.minimum(here + 1, states - 1)], axis=1)[..., None],
        chance=np.ones((states, 2, 1)),
        mean=mean,
        noise=0.0,
        stop=0.0,
        horizon=horizon,
        discount=discount,
    )


def encoder(states: int, actions: int) -> Encoder:
    """The encoder of every world here: a category `state` and named actions, numbered so that names sort as numbers."""
    return Encoder(context=(Category("state", names("s", states)),), actions=names("a", actions))


def names(prefix: str, count: int) -> tuple[str, ...]:
    """`count` names whose order as texts is their order as numbers.

    >>> names("a", 11)[9:]
    ('a09', 'a10')
    """
    width = len(str(count - 1))
    return tuple(f"{prefix}{i:0{width}d}" for i in range(count))


def batch(
    behavior: Array,
    *,
    state: Array,
    action: Array,
    reward: Array,
    discount: Array,
    next: Array,
    unit: Array,
) -> Batch:
    """A Batch logged by the behavior [S, K]; the candidates are one view of the K actions, shared by all rows."""
    states, actions = behavior.shape
    n = len(state)
    context = np.zeros((n, states + 2), dtype=np.float32)  # + unseen, missing
    context[np.arange(n), state] = 1.0
    return Batch(
        encoder=encoder(states, actions),
        context=context,
        candidates=np.broadcast_to(np.eye(actions, dtype=np.float32), (n, actions, actions)),
        mask=np.ones((n, actions), dtype=bool),
        action=action.astype(np.int64),
        propensity=behavior[state, action],
        reward=reward,
        metrics=reward[:, None].copy(),
        discount=discount,
        next=next.astype(np.int64),
        unit=unit.astype(np.int64),
        metric_names=("reward",),
    )


def states(batch: Batch) -> Array:
    """[N] i64, the state of every row of a batch of a world."""
    return batch.context.argmax(axis=1)


def rows(batch: Batch, table: Array) -> Array:
    """[N, K] f64: a table of the world, for every row of a batch.

    Args:
        table: [S, K], e.g. a policy; or [H, S, K], e.g. `Mdp.q`, read at the row's step.
    """
    if table.ndim == 2:
        return table[states(batch)]
    return table[np.minimum(batch.step, len(table) - 1), states(batch)]


def softmax(scores: Array) -> Array:
    """[S, K] probabilities proportional to exp(score) in every row."""
    power = np.exp(scores - scores.max(axis=1, keepdims=True))
    return power / power.sum(axis=1, keepdims=True)


def mixed(policy: Array, share: float) -> Array:
    """[S, K]: the policy, with a share of its decisions spread evenly."""
    return (1.0 - share) * policy + share / policy.shape[1]


def pick(probabilities: Array, rng: np.random.Generator) -> Array:
    """[N] i64: one place a row, with the row's probabilities [N, K]."""
    total = np.cumsum(probabilities, axis=1)
    return (rng.random((len(total), 1)) * total[:, -1:] >= total).sum(axis=1)


def check_policy(policy: Array, shape: tuple[int, ...]) -> None:
    """Raise DataError unless the table is [S, K], not negative, with rows that sum to 1."""
    if policy.shape != shape:
        raise DataError(f"the policy is {list(policy.shape)}, the world is {list(shape)}", field="policy")
    bad = np.flatnonzero((policy < 0).any(axis=1) | (np.abs(policy.sum(axis=1) - 1.0) > 1e-9))
    if bad.size:
        raise DataError(f"state {bad[0]}: probabilities {policy[bad[0]]} do not sum to 1", field="policy")
