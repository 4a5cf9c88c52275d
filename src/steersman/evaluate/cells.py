"""Sequences over few distinct contexts: tables of action values and of visits, exact and cross-fitted, for `drl`.

A cell is a distinct context (with the target's probabilities there). With n the visits of (cell, action) per episode,
r their reward, D the discounted moves from (cell, action) to the next cell, all of the training folds:

    values      Q_h = (r + D V_{h-1}) / n,  V_h = sum_a target(a) Q_h(., a),  V_0 = 0;  h: steps that remain
    visits      w_t = target * b_t / n,     b_0 = starts,  b_{t+1} = w_t D;             t: steps done, h = H - t
    correction  of a row = sum_t w_t (reward + discount * V_{h-1}(next) - Q_h)

b_t is the target's discounted presence in each cell at step t, w_t its ratio to the log's visits at all steps. The
correction has mean 0 at the true Q whatever w is, and repairs any Q where w is right: doubly robust. Pooling steps
assumes that what follows depends on (context, action) alone.
Sources: Kallus and Uehara 2020, arXiv:1908.08526, eq. 7; tables are the linear sieve of Shi, Zhang, Lu and Song 2022,
arXiv:2001.04515, with one column a (cell, action).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steersman.core.batch import Batch
from steersman.evaluate.evidence import Marginal, Model, Paths

Array = np.ndarray

MAX_CELLS = 256
"""More distinct contexts than this are not a table."""

ROWS_PER_CELL = 10
"""Nor are contexts that come less often than this on average: few rows of a continuous context are all distinct."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The rows of a log on S cells and B named actions.

    Attributes:
        cell, action: [N] i64; the action by its name, wherever it stands among the candidates.
        policy: [S, B] f64, the target's probabilities in a cell.
    """

    cell: Array
    action: Array
    policy: Array


@dataclass(frozen=True, eq=False)
class _Tables:
    """Sums over episodes of the rows of some folds, over their number.

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


def cells(batch: Batch, target: Array) -> Cells | None:
    """The log on a table; None: its actions have no names, or its contexts hardly ever come again."""
    named = by_name(batch, target)
    if named is None:
        return None
    action, policy = named
    key = np.concatenate([batch.context, np.round(policy, 6).astype(np.float32)], axis=1)
    if len(_distinct(key[:: max(1, len(key) // 5000)])[0]) > MAX_CELLS:
        return None
    first, cell = _distinct(key)
    few = len(first) <= min(MAX_CELLS, len(key) / ROWS_PER_CELL)
    return Cells(cell, action, policy[first]) if few else None


def by_name(batch: Batch, target: Array) -> tuple[Array, Array] | None:
    """Place of the action taken among the named actions [N], and the target's probability of each name [N, B].

    None if candidates have features beside their name, or names that the encoder does not know.
    """
    names = len(batch.encoder.actions)
    if names == 0 or batch.encoder.candidate_width != names:
        return None
    if batch.candidates.strides[0] == 0 and np.array_equal(batch.candidates[0], np.eye(names)):
        return batch.action, target
    if not (batch.candidates.sum(axis=2) == batch.mask).all():
        return None
    policy = np.einsum("nk,nka->na", target, batch.candidates)
    return batch.candidates[np.arange(len(batch)), batch.action].argmax(axis=1), policy


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
    q, v, correction = np.zeros((n, m)), np.zeros((n, m)), np.zeros((n, m))
    weight = np.zeros(n)
    step = paths.step()
    folds = int(fold.max()) + 1
    visited, missed = 0.0, 0.0
    for g in range(folds):
        learned = _tables(table, batch, paths, outcomes, known, fold != g)
        rows = np.flatnonzero(fold[paths.episode] == g)
        values = _values(learned, table.policy, horizon)
        ratios, seen, lost = _visits(learned, table.policy, horizon)
        visited, missed = visited + seen, missed + lost
        place = (table.cell[rows], table.action[rows])
        for j, (q_h, v_h) in enumerate(values):
            q[rows, j] = q_h[horizon - step[rows], *place]
            v[rows, j] = v_h[horizon - step[rows], place[0]]
            correction[rows, j] = _correction(table, batch, rows, outcomes[:, j], known, ratios, (q_h, v_h))
        weight[rows] = np.where(known[rows], ratios[:-1].sum(axis=0)[place], 0.0) + ratios[-1][place]
    outside = missed / visited if visited > 0 else 1.0
    return [Model(q[:, j], v[:, j], Marginal(weight, correction[:, j], outside)) for j in range(m)]


def known_rows(paths: Paths, cut: int | None) -> Array:
    """[N] bool: the log tells what follows the row, and tells it whatever followed.

    At the last step before a declared horizon every episode is over, terminated or not, so a row there does not tell
    whether it would have gone on. To take only those that say they terminated would be to choose rows by outcome. So
    the whole step is left out; its rewards are not.

    Args:
        cut: the declared horizon in steps; None: no rule ends the episodes.
    """
    known = np.ones(len(paths.episode), dtype=bool)
    if len(paths.steps) == cut:
        known[paths.steps[-1]] = False
    return known


def _tables(table: Cells, batch: Batch, paths: Paths, outcomes: Array, known: Array, taught: Array) -> _Tables:
    """Of the episodes where `taught` [E] is True."""
    states, actions = table.policy.shape
    rows = np.flatnonzero(taught[paths.episode])
    episodes = int(taught.sum())
    pair = table.cell * actions + table.action  # [N]

    def count(chosen: Array, values: Array | None = None) -> Array:
        return np.bincount(pair[chosen], values, minlength=states * actions).reshape(states, actions) / episodes

    sure = rows[known[rows]]
    moving = sure[batch.next[sure] >= 0]
    move = pair[moving] * states + table.cell[batch.next[moving]]
    moves = np.bincount(move, batch.discount[moving], minlength=states * actions * states)
    first = paths.steps[0][taught]
    return _Tables(
        visits=count(rows),
        reward=np.stack([count(rows, column[rows]) for column in outcomes.T]),
        known=count(sure),
        known_reward=np.stack([count(sure, column[sure]) for column in outcomes.T]),
        moves=moves.reshape(states, actions, states) / episodes,
        starts=np.bincount(table.cell[first], minlength=states) / episodes,
    )


def _values(learned: _Tables, policy: Array, horizon: int) -> list[tuple[Array, Array]]:
    """One (Q [H + 1, S, B], V [H + 1, S]) an outcome, by steps that remain; an unseen pair gets the mean of all."""
    found = []
    for reward, known_reward in zip(learned.reward, learned.known_reward, strict=True):
        q, v = np.zeros((horizon + 1, *policy.shape)), np.zeros((horizon + 1, len(policy)))
        for h in range(1, horizon + 1):
            if h == 1:
                total, visits = reward, learned.visits
            else:
                total, visits = known_reward + learned.moves @ v[h - 1], learned.known
            mean = total.sum() / max(visits.sum(), 1e-300)
            q[h] = np.divide(total, visits, out=np.full(policy.shape, mean), where=visits > 0)
            v[h] = np.sum(policy * q[h], axis=1)
        found.append((q, v))
    return found


def _visits(learned: _Tables, policy: Array, horizon: int) -> tuple[Array, float, float]:
    """w [H, S, B] by steps done; the target's visits in all, and those of them to pairs that were never logged."""
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


def _correction(
    table: Cells, batch: Batch, rows: Array, outcome: Array, known: Array, ratios: Array, values: tuple[Array, Array]
) -> Array:
    """[R] of the rows of a fold. The sum over steps is done in tables, before any row is looked at."""
    q, v = values
    states, actions = table.policy.shape
    early, flat = ratios[:-1], ratios[:-1].reshape(len(ratios) - 1, -1)
    weight = early.sum(axis=0)
    worth = np.sum(early * q[:1:-1], axis=0)  # w_t Q_{H-t}, t = 0 ... H - 2
    ahead = (flat.T @ v[-2:0:-1]).reshape(states, actions, states)  # w_t V_{H-t-1}
    place = (table.cell[rows], table.action[rows])
    following = batch.next[rows]
    future = np.zeros(len(rows))
    moving = following >= 0
    to = table.cell[following[moving]]
    future[moving] = batch.discount[rows][moving] * ahead[place[0][moving], place[1][moving], to]
    here = np.where(known[rows], weight[place] * outcome[rows] - worth[place] + future, 0.0)
    return here + ratios[-1][place] * (outcome[rows] - q[1][place])


def _distinct(key: Array) -> tuple[Array, Array]:
    """First row of each distinct row, and the number of its distinct row for every row."""
    solid = np.ascontiguousarray(key + 0.0)  # -0.0 and 0.0 are one number
    packed = solid.view(np.dtype((np.void, solid.dtype.itemsize * solid.shape[1])))[:, 0]
    _, first, number = np.unique(packed, return_index=True, return_inverse=True)
    return first, number
