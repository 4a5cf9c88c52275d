"""Sequences over few distinct contexts: tables of action values and of visits, exact and cross-fitted.

With n the visits of (cell, action) per episode, r their reward, D the discounted moves from (cell, action) to the next
cell, all of the training folds:

    values      Q_h = (r + D V_{h-1}) / n,  V_h = sum_a target(a) Q_h(., a),  V_0 = 0;  h: steps that remain
    visits      u_t = target * b_t / n,     b_0 = starts,  b_{t+1} = u_t D;             t: steps done, h = H - t

b_t is the target's discounted presence in each cell at step t, u_t its ratio to the log's visits at all steps. The same
by cell alone, with each row counted as often as the target takes what it took, w = target / propensity:

    visits      u_t = b_t / n,              n: sum of w;  D: moves, weighted by w

So weights are over their own sum in each cell: without that the presence would drift off by their chance, step after
step. By (cell, action) it is trusted that behavior is the same all over a cell. By cell the propensities are trusted,
and what comes out stays nearly right where a cell is several states that the log does not tell apart.

    correction  of a row = sum_t u_t w (reward + discount * V_{h-1}(next) - Q_h),  u by cell

It has mean 0 at the true Q whatever u is, and repairs any Q where u is right: doubly robust. Pooling steps assumes that
what follows depends on (context, action) alone.
Sources: Xie, Ma and Wang 2019, arXiv:1906.03393; Yin and Wang 2020, arXiv:2001.10742; Kallus and Uehara 2020,
arXiv:1908.08526, eq. 7; tables are the linear sieve of Shi, Zhang, Lu and Song 2022, arXiv:2001.04515, with one column
a (cell, action).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.batch import Batch
from steersman.evaluate.cells import Cells
from steersman.evaluate.evidence import Marginal, Model, Paths, Visits

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class _Log:
    """The rows of a log on a table: by (cell, action), or by cell with one action that stands for all.

    Attributes:
        cell, action, weight, known: [N]; how often a row is counted; whether the log tells what follows it.
        policy: [S, B]; ones [S, 1] by cell.
    """

    batch: Batch
    paths: Paths
    cell: Array
    action: Array
    weight: Array
    known: Array
    policy: Array

    def by_cell(self, weight: Array) -> _Log:
        """The same by cell alone."""
        one = np.ones((len(self.policy), 1))
        return _Log(self.batch, self.paths, self.cell, np.zeros_like(self.action), weight, self.known, one)


@dataclass(frozen=True, eq=False)
class _Tables:
    """Sums over episodes of the rows of some folds, each counted with its weight, over the number of episodes.

    Attributes:
        visits: [S, B]; reward: [M, S, B]; moves: [S, B, S], discounted; starts: [S].
        known: [S, B], visits of rows whose next step is known.
        known_reward: [M, S, B], of those.
    """

    visits: Array
    reward: Array
    known: Array
    known_reward: Array
    moves: Array
    starts: Array

    @classmethod
    def of(cls, log: _Log, outcomes: Array, taught: Array) -> _Tables:
        """Of the episodes where `taught` [E] is True."""
        batch, paths = log.batch, log.paths
        states, actions = log.policy.shape
        rows = np.flatnonzero(taught[paths.episode])
        episodes = int(taught.sum())
        pair = log.cell * actions + log.action  # [N]

        def count(chosen: Array, values: Array) -> Array:
            total = np.bincount(pair[chosen], values[chosen], minlength=states * actions)
            return total.reshape(states, actions) / episodes

        sure = rows[log.known[rows]]
        moving = sure[batch.next[sure] >= 0]
        move = pair[moving] * states + log.cell[batch.next[moving]]
        moves = np.bincount(move, (log.weight * batch.discount)[moving], minlength=states * actions * states)
        weighted = outcomes * log.weight[:, None]
        return cls(
            visits=count(rows, log.weight),
            reward=np.stack([count(rows, column) for column in weighted.T]),
            known=count(sure, log.weight),
            known_reward=np.stack([count(sure, column) for column in weighted.T]),
            moves=moves.reshape(states, actions, states) / episodes,
            starts=np.bincount(log.cell[paths.steps[0][taught]], minlength=states) / episodes,
        )


def tables_model(
    table: Cells, batch: Batch, paths: Paths, outcomes: Array, known: Array, horizon: int, fold: Array
) -> list[Model]:
    """Action values and marginal weights of every row by tables that never saw its unit; one Model an outcome.

    Args:
        paths: of whole episodes only.
        outcomes: [N, M] f64.
        known: [N] bool, see `known_rows`.
        horizon: H, at least the longest episode.
        fold: [E] i64.
    """
    n, m = outcomes.shape
    pairs = _Log(batch, paths, table.cell, table.action, np.ones(n), known, table.policy)
    cells = pairs.by_cell(table.weight)
    q, v, correction = np.zeros((n, m)), np.zeros((n, m)), np.zeros((n, m))
    by_pair, by_cell = _Found.empty(n, m), _Found.empty(n, m)
    for g in range(int(fold.max()) + 1):
        taught, rows = fold != g, np.flatnonzero(fold[paths.episode] == g)
        values = by_pair.fill(pairs, outcomes, taught, rows, horizon)
        by_cell.fill(cells, outcomes, taught, rows, horizon)
        step = horizon - paths.step()[rows]
        for j, (q_h, v_h) in enumerate(values):
            q[rows, j] = q_h[step, table.cell[rows], table.action[rows]]
            v[rows, j] = v_h[step, table.cell[rows]]
            surprise = _surprise(pairs, rows, outcomes[:, j], by_cell.ratios, (q_h, v_h))
            correction[rows, j] = table.weight[rows] * surprise
    outside = by_pair.lost / by_pair.steps if by_pair.steps > 0 else 1.0
    return [
        Model(
            q[:, j],
            v[:, j],
            Marginal(by_cell.weight, correction[:, j], outside, by_cell.visits(j), by_pair.visits(j)),
        )
        for j in range(m)
    ]


@dataclass(eq=False)
class _Found:
    """What marginal weights say of every row, filled fold by fold.

    Attributes:
        weight: [N]; worth: [N, M]: see `Visits`.
        steps, lost: presence of the target in all folds, and what of it goes where the log never was.
        ratios: [H, S, B], of the last fold.
    """

    weight: Array
    worth: Array
    steps: float
    lost: float
    ratios: Array
    folds: int

    @classmethod
    def empty(cls, rows: int, outcomes: int) -> _Found:
        return cls(np.zeros(rows), np.zeros((rows, outcomes)), 0.0, 0.0, np.zeros((0, 0, 0)), 0)

    def fill(self, log: _Log, outcomes: Array, taught: Array, rows: Array, horizon: int) -> list[tuple[Array, Array]]:
        """The rows of a fold by the tables of the others. Gives their values."""
        learned = _Tables.of(log, outcomes, taught)
        values = _values(learned, log.policy, horizon)
        self.ratios, seen, lost = _visits(learned, log.policy, horizon)
        self.steps, self.lost, self.folds = self.steps + seen, self.lost + lost, self.folds + 1
        place = (log.cell[rows], log.action[rows])
        weight = np.where(log.known[rows], self.ratios[:-1].sum(axis=0)[place], 0.0) + self.ratios[-1][place]
        self.weight[rows] = log.weight[rows] * weight
        start = log.paths.previous[rows] < 0
        for j, (q_h, v_h) in enumerate(values):
            surprise = _surprise(log, rows, outcomes[:, j], self.ratios, (q_h, v_h))
            self.worth[rows, j] = log.weight[rows] * surprise + start * v_h[horizon, place[0]]
        return values

    def visits(self, outcome: int) -> Visits:
        return Visits(self.weight, self.worth[:, outcome], self.steps / self.folds)


def _values(learned: _Tables, policy: Array, horizon: int) -> list[tuple[Array, Array]]:
    """One (Q [H + 1, S, B], V [H + 1, S]) an outcome, by steps that remain.

    A pair that was never seen gets the mean over what the target does in its cell elsewhere; a cell that was never
    seen, or where the target does nothing else, the mean of all.
    """
    found = []
    for reward, known_reward in zip(learned.reward, learned.known_reward, strict=True):
        q, v = np.zeros((horizon + 1, *policy.shape)), np.zeros((horizon + 1, len(policy)))
        for h in range(1, horizon + 1):
            if h == 1:
                total, visits = reward, learned.visits
            else:
                total, visits = known_reward + learned.moves @ v[h - 1], learned.known
            seen = visits > 0
            mean = np.full(len(policy), total.sum() / max(visits.sum(), 1e-300))
            q[h] = np.divide(total, visits, out=q[h], where=seen)
            done = np.sum(policy * seen, axis=1)
            mean = np.divide(np.sum(policy * q[h], axis=1), done, out=mean, where=done > 0)
            q[h] = np.where(seen, q[h], mean[:, None])
            v[h] = np.sum(policy * q[h], axis=1)
        found.append((q, v))
    return found


def _visits(learned: _Tables, policy: Array, horizon: int) -> tuple[Array, float, float]:
    """u [H, S, B] by steps done; the target's visits in all, and those of them to pairs that were never logged."""
    ratios = np.zeros((horizon, *policy.shape))
    present, seen, lost = learned.starts, 0.0, 0.0
    for t in range(horizon):
        logged = learned.known if t < horizon - 1 else learned.visits
        doing = present[:, None] * policy
        ratios[t] = np.divide(doing, logged, out=np.zeros(policy.shape), where=logged > 0)
        seen += float(doing.sum())
        lost += float(doing[logged == 0].sum())
        present = np.einsum("sa,sax->x", ratios[t], learned.moves)
    return ratios, seen, lost


def _surprise(log: _Log, rows: Array, outcome: Array, ratios: Array, values: tuple[Array, Array]) -> Array:
    """[R] sum_t u_t (outcome + discount V_{h-1}(next) - Q_h) of the rows of a fold; u [H, S, B], or by cell [H, S, 1].

    The sum over steps is done in tables, before any row is looked at.
    """
    q, v = values
    batch, cell = log.batch, log.cell
    early = ratios[:-1]
    states, kinds = early.shape[1:]
    weight = early.sum(axis=0)
    worth = np.sum(early * q[:1:-1], axis=0)  # u_t Q_{H-t}, t = 0 ... H - 2
    ahead = (early.reshape(len(early), -1).T @ v[-2:0:-1]).reshape(states, kinds, states)  # u_t V_{H-t-1}
    kind = log.action[rows] if kinds > 1 else np.zeros(len(rows), dtype=np.int64)
    place = (cell[rows], log.action[rows])
    following = batch.next[rows]
    future = np.zeros(len(rows))
    moving = following >= 0
    future[moving] = (batch.discount[rows] * ahead[cell[rows], kind, cell[following]])[moving]
    here = np.where(log.known[rows], weight[cell[rows], kind] * outcome[rows] - worth[place] + future, 0.0)
    return here + ratios[-1][cell[rows], kind] * (outcome[rows] - q[1][place])
