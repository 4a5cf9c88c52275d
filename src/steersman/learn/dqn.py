"""The Q family: learn what each candidate is worth in the long run, take the best. One trainer, losses as values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from steersman.core.batch import Batch
from steersman.core.features import Encoder
from steersman.core.policy import EpsilonGreedy, Policy
from steersman.learn import HERE, Look, Progress, Run, nets
from steersman.learn.cloning import Filter, Filtering, as_it_is, check_told_apart
from steersman.learn.nets import Minibatch, Net, Student, Tensor
from steersman.learn.settings import ValueSettings, lessons_of, require, require_candidates, unit_of

Loss = Callable[[nets.Returns, Net, Minibatch], tuple[Tensor, Tensor]]
"""(the net, its slow copy, rows) -> loss, and the values [B] of the candidates taken. It gives the net its gradient,
written out: autograd is off meanwhile."""

Next = Callable[[Net, Net, Minibatch], Tensor]
"""(the net, its slow copy, rows) -> [B, Z], what the slow copy makes of the candidate of the next row that the return
goes on with: see `Net.atoms`."""


Variation = tuple[Loss, Mapping[str, Any]]
"""A loss, and what the net of it has beside its layers: see `nets.shape_for`."""


class DQN(ValueSettings, frozen=True, forbid_unknown_fields=True):
    """Q learning with returns of n steps; see `ValueSettings` for the settings that are not here.

    Attributes:
        target: what the return goes on with at the next row: `double`: the candidate that the net thinks best; `max`:
            that its slow copy thinks best; `sarsa`: the one that was taken, so that the behavior policy is judged and
            one step better than it is learned.
        dueling: the net has outputs of their own for the value of the context and the advantages of candidates.
        behavior_threshold: a candidate that the behavior policy took less than this share as often as its favourite is
            never taken, nor hoped for, in [0, 1]; 0: whatever is logged or not may be taken. With it a clone of the
            behavior policy is learned too and becomes part of the graph.
    Raises:
        DataError: a number is out of range.
    """

    target: Literal["double", "max", "sarsa"] = "double"
    dueling: bool = False
    n_step: int = 5
    behavior_threshold: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("behavior_threshold", self.behavior_threshold, 0 <= self.behavior_threshold <= 1, "in [0, 1]")


class CQL(DQN, frozen=True, forbid_unknown_fields=True):
    """Conservative Q learning: what was not logged is thought worse than it may be, so that it is not taken blindly.

    Attributes:
        penalty: of the soft maximum over candidates above the one taken, in units of squared largest |reward|, at
            least 0.
    """

    penalty: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require("penalty", self.penalty, 0 <= self.penalty < math.inf, "at least 0")


class C51(DQN, frozen=True, forbid_unknown_fields=True):
    """The distribution of returns, as probabilities of evenly spaced ones.

    Attributes:
        atoms: how many, at least 2.
        lowest, highest: return, in units of reward; None: what the logged rewards allow over an endless episode. The
            closer to what returns really are, the finer.
    """

    atoms: int = 51
    lowest: float | None = None
    highest: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require("atoms", self.atoms, 2 <= self.atoms <= nets.WIDEST, f"in [2, {nets.WIDEST}]")
        if self.lowest is not None and self.highest is not None:
            require("lowest", self.lowest, self.lowest < self.highest, f"below highest, {self.highest:g}")


class QRDQN(DQN, frozen=True, forbid_unknown_fields=True):
    """The distribution of returns, as quantiles.

    Attributes:
        atoms: how many, at least 2.
    """

    atoms: int = 51

    def __post_init__(self) -> None:
        super().__post_init__()
        require("atoms", self.atoms, 2 <= self.atoms <= nets.WIDEST, f"in [2, {nets.WIDEST}]")


def fit(
    batch: Batch,
    config: DQN,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """Learn with the loss that belongs to the config.

    Source: Mnih et al. 2015; van Hasselt, Guez and Silver 2016, arXiv:1509.06461; Wang et al. 2016, arXiv:1511.06581,
    eq. 9, for the dueling net.
    """
    return learn_q(batch, config, variation_of(batch, config, run), seed, progress, look, run)


def variation_of(batch: Batch, config: DQN, run: Run = HERE) -> Variation:
    """The loss of a config, and what else its net has."""
    follow = FOLLOW[config.target]
    match config:
        case CQL():
            return conservative(follow, config.penalty), {}
        case C51():
            support = _support(batch, config, run)
            return categorical(follow, support, config.atoms), {"atoms": config.atoms, "support": support}
        case QRDQN():
            return quantiles(follow, config.atoms), {"atoms": config.atoms}
    return one_value(follow), {}


def learn_q(
    batch: Batch,
    config: DQN,
    variation: Variation,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """The trainer of the family.

    Rewards are divided by the largest |reward|, so that no setting depends on their unit; scores are given back
    in units of reward. Same batch, config and seed: same policy, bit for bit, on the same kind of CPU.

    Args:
        variation: the loss, and what else its net has, see `nets.shape_for`.
    Returns:
        a policy that takes the best candidate; whoever serves it gives it its explorer.
    Raises:
        DataError: actions are numbers, candidates have no columns, or no row teaches anything.
        TrainingError: the training diverges.
    """
    require_candidates(batch, type(config).__name__)
    returns, unit, watch = lessons_of(batch, config, run)
    trainer = Trainer(batch.encoder, config, variation, unit, seed, run)
    if config.behavior_threshold:
        check_told_apart(batch, run)
    gather = nets.gatherer(batch, returns, unit, nets.device_of(run))
    nets.train(
        lambda places: trainer.update(gather(places)),
        trainer.state,
        nets.Draws(batch.unit[returns.row], config.batch_size),
        config.steps,
        watch,
        nets.looking(progress, look, trainer.policy),
        run,
    )
    return trainer.policy()


class Trainer:
    """The nets of a training, and the policy that they are.

    Attributes:
        state: all that steps change.
    """

    def __init__(
        self, encoder: Encoder, config: DQN, variation: Variation, unit: float, seed: int, run: Run = HERE
    ) -> None:
        """Draw all weights.

        Args:
            unit: of reward, that scores are given back in; rows come divided by it.
        """
        self._loss, head = variation
        threshold = config.behavior_threshold
        self._encoder, self._unit = encoder, unit
        self._shape = nets.shape_for(encoder, config.hidden, dueling=config.dueling, threshold=threshold, **head)
        source = nets.generator(seed)
        rate = nets.cosine(config.learning_rate, config.final_learning_rate, config.steps)
        self._net = values = nets.new_net(self._shape, source, nets.device_of(run))
        students: dict[str, Student] = {}
        self._allowed: Filtering = as_it_is
        if isinstance(self._net, nets.Filtered):
            students["clone"] = Student(self._net.behavior, rate, 1.0)
            values, self._allowed = self._net.value, Filter(students["clone"], threshold)
        assert isinstance(values, nets.Returns)
        students["q"] = self._q = Student(values, rate, config.polyak)
        self.state = nets.State(source, **students)

    def update(self, rows: Minibatch) -> tuple[Tensor, Tensor]:
        """One training step: its loss, and the values [B] of the candidates taken."""
        rows = self._allowed(rows)
        with nets.no_grad():
            loss, value = self._loss(self._q.net, self._q.slow, rows)
        self._q.descend()
        return loss, value

    def policy(self) -> Policy:
        """As it is now: the best candidate."""
        return Policy(self._encoder, nets.TorchScorer.of(self._shape, self._net, self._unit), EpsilonGreedy(0.0))


# what a return goes on with


def double(net: Net, slow: Net, rows: Minibatch) -> Tensor:
    """The candidate that the net thinks best; its slow copy then says how good. Padding is never picked.

    One net for both would pick the candidate that it overrates most.
    Source: van Hasselt, Guez and Silver 2016, arXiv:1509.06461, eq. 4.
    """
    best = _best(net(rows.next_context, rows.next_candidates), rows)
    return slow.atoms(rows.next_context, nets.pick(rows.next_candidates, best))[:, 0]


def largest(net: Net, slow: Net, rows: Minibatch) -> Tensor:
    """The candidate that the slow copy thinks best. Source: Mnih et al. 2015, algorithm 1."""
    atoms = slow.atoms(rows.next_context, rows.next_candidates)  # [B, K, Z]
    return nets.pick(atoms, _best(slow.mean_of(atoms), rows))[:, 0]


def as_taken(net: Net, slow: Net, rows: Minibatch) -> Tensor:
    """The candidate that was taken. Source: Sutton and Barto 2018, eq. 6.7."""
    return slow.atoms(rows.next_context, nets.pick(rows.next_candidates, rows.next_taken))[:, 0]


FOLLOW: dict[str, Next] = {"double": double, "max": largest, "sarsa": as_taken}


def _best(scores: Tensor, rows: Minibatch) -> Tensor:
    """[B] i64, place of the candidate of the next row with the largest score [B, K]."""
    return nets.kept(scores, rows.next_mask).argmax(dim=1)


# losses


def one_value(follow: Next) -> Loss:
    """The loss of a net that gives one value a candidate: the squared difference from return + discount * next.

    `nets.squared` says why it is the square.
    """

    def loss(net: nets.Returns, slow: Net, rows: Minibatch) -> tuple[Tensor, Tensor]:
        target = target_of(net, slow, rows, follow)
        seen = net.passed(rows.context, rows.taken)
        value = seen.atoms[:, 0, 0]
        away = value - target
        seen.teach((away * (2.0 / len(away)))[:, None, None])
        return away.square().mean(), value

    return loss


def target_of(net: Net, slow: Net, rows: Minibatch, follow: Next) -> Tensor:
    """[B] the return, then what the slow copy thinks of the next row's candidate."""
    return rows.reward + rows.discount * follow(net, slow, rows)[:, 0]


def conservative(follow: Next, penalty: float) -> Loss:
    """`one_value`, plus how far the soft maximum over all candidates is above the one that was taken.

    Source: Kumar, Zhou, Tucker and Levine 2020, arXiv:2006.04779, eq. 4, CQL(H).
    """

    def loss(net: nets.Returns, slow: Net, rows: Minibatch) -> tuple[Tensor, Tensor]:
        target, taken = target_of(net, slow, rows, follow), rows.action[:, None]
        seen = net.passed(rows.context, rows.candidates)
        scores = seen.atoms[:, :, 0]  # [B, K]
        value, log = scores.gather(1, taken)[:, 0], nets.kept(scores, rows.mask).log_softmax(dim=1)
        away = value - target
        gradient = (log.exp() * penalty).scatter_add_(1, taken, (2.0 * away - penalty)[:, None])
        seen.teach((gradient / len(away))[:, :, None])
        return away.square().mean() - penalty * log.gather(1, taken).mean(), value

    return loss


def categorical(follow: Next, support: tuple[float, float], atoms: int) -> Loss:
    """Cross entropy between the distribution of returns and that of the next row's, shifted, shrunk and projected.

    Each shifted return hands its probability to its two neighbours among the atoms, by nearness; beyond the support it
    goes to the end. A terminated row has its reward for sure.
    Source: Bellemare, Dabney and Munos 2017, arXiv:1707.06887, eq. 7 and algorithm 1.
    """
    evenly = nets.linspace(*support, atoms)
    step = (support[1] - support[0]) / (atoms - 1)

    def loss(net: nets.Returns, slow: Net, rows: Minibatch) -> tuple[Tensor, Tensor]:
        returns = evenly.to(rows.reward.device)
        chance = follow(net, slow, rows).softmax(dim=1)
        moved = (rows.reward[:, None] + rows.discount[:, None] * returns).clamp(*support)
        near = (1.0 - (moved[:, None, :] - returns[:, None]).abs() / step).clamp(min=0.0)  # [B, to, from]
        target = (near * chance[:, None, :]).sum(dim=2)
        seen = net.passed(rows.context, rows.taken)
        log = seen.atoms[:, 0].log_softmax(dim=1)  # [B, Z]
        own = log.exp()
        seen.teach((own - target)[:, None] / len(own))
        return -(target * log).sum(dim=1).mean(), (own * returns).sum(dim=1)

    return loss


def quantiles(follow: Next, atoms: int) -> Loss:
    """Each atom is drawn to a quantile of the next row's atoms, shifted and shrunk: quantile regression.

    Source: Dabney, Rowland, Bellemare and Munos 2018, arXiv:1710.10044, eq. 8 and algorithm 1, without Huber's curve
    around 0: with it atoms are no quantiles where returns differ by less than the largest reward.
    """
    share = (nets.linspace(0.0, 1.0, atoms + 1)[1:] - 0.5 / atoms)[:, None]  # [Z, 1]

    def loss(net: nets.Returns, slow: Net, rows: Minibatch) -> tuple[Tensor, Tensor]:
        theirs = rows.reward[:, None] + rows.discount[:, None] * follow(net, slow, rows)
        seen = net.passed(rows.context, rows.taken)
        own = seen.atoms[:, 0]  # [B, Z]
        away = theirs[:, None, :] - own[:, :, None]  # [B, own, theirs]
        lean = share.to(away.device) - (away < 0).to(away.dtype)
        seen.teach(lean.sum(dim=2)[:, None] / -theirs.numel())
        return (away * lean).sum(dim=1).mean(), own.mean(dim=1)

    return loss


def _support(batch: Batch, config: C51, run: Run) -> tuple[float, float]:
    """Lowest and highest return, in units of the training."""
    unit, reward = unit_of(batch, run), run.of(batch.reward)
    ahead = 1.0 - config.discount * float(run.of(batch.discount).max())
    lowest = min(float(reward.min()) / ahead, 0.0) if config.lowest is None else config.lowest
    highest = max(float(reward.max()) / ahead, 0.0) if config.highest is None else config.highest
    require("lowest", lowest, lowest < highest, f"below highest, {highest:g}")
    return lowest / unit, highest / unit
