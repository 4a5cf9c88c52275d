"""SlateQ: what the items of a list are worth in the long run to people who choose one of them at most, and which they
choose. The best list of both is found exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from steersman.core.batch import Batch
from steersman.core.errors import DataError, did_you_mean
from steersman.core.policy import EpsilonGreedy, Policy
from steersman.core.slots import Slots
from steersman.learn import HERE, Look, Progress, Run, nets
from steersman.learn.cloning import check_told_apart
from steersman.learn.nets import Array, ListRows, Net, Student, Tensor
from steersman.learn.settings import ValueSettings, returns_of, slots_of, unit_of, watch_of

Follow = Callable[[Student[nets.Worth], Tensor, ListRows, int], Tensor]
"""(what is worth what, appeal of the next row's candidates [B, K], rows, L) -> [B] what the next list is worth."""


class SlateQ(ValueSettings, frozen=True, forbid_unknown_fields=True):
    """Q learning over lists, item by item: a list is worth what its items are, each by its chance to be chosen.

    So a list of 3 of 100 items needs 100 values, not 970,200. It is right where people choose one item of a list or
    none, whatever its place, and what happens then depends on the choice and not on the rest of the list.

    Attributes:
        choice: name of a metric that is above 0 at the item that was chosen; empty: its reward is not 0.
        target: what the return goes on with at the next row: `double`: the list that the net thinks best; `max`: that
            its slow copy thinks best; `sarsa`: the one that was shown, so that the behavior policy is judged.
    Source: Ie et al. 2019, arXiv:1905.12767.
    """

    choice: str = ""
    target: Literal["double", "max", "sarsa"] = "double"


def fit(
    batch: Batch,
    config: SlateQ,
    seed: int,
    progress: Progress | None = None,
    look: Look | None = None,
    run: Run = HERE,
) -> Policy:
    """Learn. Same batch, config and seed: same policy, bit for bit, on the same kind of CPU.

    Returns:
        a policy that fills its slots with the best list: the score of a candidate is what it adds, in units of reward,
        to the best list that can be made of all, or would add. Whoever serves it gives it its explorer.
    Raises:
        DataError: the actions are no ranked lists, two items of a list were chosen, candidates have no columns or look
            like padding, or no row teaches anything.
        TrainingError: the training diverges.
    """
    slots = slots_of(batch, "slate-q")
    check_told_apart(batch, run)
    unit, returns = unit_of(batch, run), returns_of(batch, config, run)
    chosen = chosen_slots(batch, slots, config.choice, returns.row)
    size, source, device = batch.action.shape[1], nets.generator(seed), nets.device_of(run)
    shape = nets.slate_shape(nets.shape_for(batch.encoder, config.hidden), size)
    rate = nets.cosine(config.learning_rate, config.final_learning_rate, config.steps)
    net = nets.new_net(shape, source, device)
    assert isinstance(net, nets.Slate)
    worth, appeal = Student(net.worth, rate, config.polyak), Student(net.appeal, rate, 1.0)
    gather = nets.list_gatherer(batch, slots, returns, unit, chosen, device)

    def update(places: Array) -> tuple[Tensor, Tensor]:
        rows = gather(places)
        learn_choice(appeal, rows)
        return learn_worth(worth, appeal.net, rows, FOLLOW[config.target], size)

    def now() -> Policy:
        return Policy(batch.encoder, nets.TorchScorer.of(shape, net, unit), EpsilonGreedy(0.0))

    state = nets.State(source, worth=worth, appeal=appeal)
    draws = nets.Draws(batch.unit[returns.row], config.batch_size)
    watch = watch_of(unit, config.discount * float(run.of(batch.discount).max()))
    nets.train(update, state, draws, config.steps, watch, nets.looking(progress, look, now), run)
    return now()


def learn_choice(appeal: Student[Net], rows: ListRows) -> Tensor:
    """One step towards the most likely choices: a multinomial logit over the items of a list and nothing, which has 0.

    Source: Ie et al. 2019, arXiv:1905.12767, section 4.1; McFadden 1974.
    """
    logits = appeal.net(rows.context, rows.candidates)
    shown = nets.of_items(logits, rows.items).masked_fill(rows.items < 0, -np.inf)
    loss = nets.cross_entropy(nets.and_none(shown, shown.new_zeros(len(shown))), rows.chosen)
    appeal.step(loss)
    return loss.detach()


def learn_worth(
    worth: Student[nets.Worth], appeal: Net, rows: ListRows, follow: Follow, slots: int
) -> tuple[Tensor, Tensor]:
    """One step of what was chosen, an item or nothing, towards the return and what the next list is worth.

    Source: Ie et al. 2019, arXiv:1905.12767, eq. 8 and 11.
    """
    with nets.no_grad():
        then = follow(worth, appeal(rows.next_context, rows.next_candidates), rows, slots)
        target = rows.reward + rows.discount * then
    shown = nets.of_items(worth.net(rows.context, rows.candidates), rows.items)
    value = nets.and_none(shown, worth.net.of_none(rows.context)).gather(1, rows.chosen[:, None])[:, 0]
    loss = nets.squared(value, target)
    worth.step(loss)
    return loss, value


# what a return goes on with


def double(worth: Student[nets.Worth], appeal: Tensor, rows: ListRows, slots: int) -> Tensor:
    """The list that the net thinks best; its slow copy then says how good."""
    context, candidates = rows.next_context, rows.next_candidates
    own = nets.best_slate(
        worth.net(context, candidates), worth.net.of_none(context), appeal, rows.next_mask, slots
    ).scores
    return _value(worth.slow, appeal, rows, nets.slate_of(own, rows.next_mask, slots))


def largest(worth: Student[nets.Worth], appeal: Tensor, rows: ListRows, slots: int) -> Tensor:
    """The list that the slow copy thinks best."""
    slow, context = worth.slow, rows.next_context
    return nets.best_slate(
        slow(context, rows.next_candidates), slow.of_none(context), appeal, rows.next_mask, slots
    ).value


def as_shown(worth: Student[nets.Worth], appeal: Tensor, rows: ListRows, slots: int) -> Tensor:
    """The list that was shown."""
    return _value(worth.slow, appeal, rows, rows.next_items)


FOLLOW: dict[str, Follow] = {"double": double, "max": largest, "sarsa": as_shown}


def _value(net: nets.Worth, appeal: Tensor, rows: ListRows, items: Tensor) -> Tensor:
    """[B] what lists of the next row's candidates are worth."""
    context = rows.next_context
    return nets.slate_value(net(context, rows.next_candidates), net.of_none(context), appeal, rows.next_mask, items)


def chosen_slots(batch: Batch, slots: Slots, choice: str, rows: Array) -> Array:
    """[N] i64, the slot that was chosen in each row; L: none was. Rows not asked for have L.

    Args:
        choice: see `SlateQ`.
        rows: [R] i64, those asked for.
    Raises:
        DataError: there is no such metric, or more than one item of a list was chosen.
    """
    if not choice:
        picked = slots.reward[rows] != 0
    elif choice in batch.metric_names:
        picked = slots.metrics[rows, :, batch.metric_names.index(choice)] > 0  # NaN is not: nothing was heard
    else:
        raise DataError(f"there is no metric {choice!r}", hint=did_you_mean(choice, batch.metric_names), field="choice")
    several = picked.sum(axis=1) > 1
    if several.any():
        what = f"{choice} is above 0" if choice else "the reward is not 0"
        raise DataError(
            f"row {rows[several.argmax()]}: {what} at {picked.sum(axis=1)[several][0]} items of one list "
            f"({int(several.sum())} such rows of {len(rows)}); slate-q is for people who choose one item or none",
            hint="say by choice which metric tells the item that was chosen, or learn with plackett-luce",
            field="choice",
        )
    size = picked.shape[1]
    found = np.full(len(batch), size, dtype=np.int64)
    found[rows] = np.where(picked.any(axis=1), picked.argmax(axis=1), size)
    return found
