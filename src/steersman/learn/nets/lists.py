"""Ranked lists inside a training: rows as tensors, and how likely a net's lists are."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from steersman.core.batch import Batch
from steersman.core.shared import is_shared
from steersman.core.slots import Slots
from steersman.learn.nets.modules import Tensor, kept
from steersman.learn.nets.training import CPU, rows_of, tensors
from steersman.learn.returns import Returns

Array = np.ndarray


class ListRows(NamedTuple):
    """B ranked lists as tensors; `next` is the row at which the return stops.

    Attributes:
        context: [B, F] f32.
        candidates: [B, K, A] f32, or [1, K, A] if all rows share them.
        mask: [B, K] bool.
        items: [B, L] i64, places of the items, -1 behind the last.
        propensity: [B, L] f32, of each item given those above it.
        slot_reward: [B, L] f32, of each item, in the units of the training.
        chosen: [B] i64, the slot that was chosen; L: none was, or nobody asked.
        reward: [B] f32, the return of the whole list, in the units of the training.
        discount: [B] f32, of the value at the next row; 0: the episode is over before it.
        next_context, next_candidates, next_mask, next_items: as above, of the next row.
    """

    context: Tensor
    candidates: Tensor
    mask: Tensor
    items: Tensor
    propensity: Tensor
    slot_reward: Tensor
    chosen: Tensor
    reward: Tensor
    discount: Tensor
    next_context: Tensor
    next_candidates: Tensor
    next_mask: Tensor
    next_items: Tensor


def list_gatherer(
    batch: Batch,
    slots: Slots,
    returns: Returns,
    unit: float,
    chosen: Array | None = None,
    device: torch.device = CPU,
) -> Callable[[Array], ListRows]:
    """A function from places in `returns` [B] to their ListRows. It copies those rows and no others.

    Args:
        slots: of the batch.
        unit: rewards are divided by it.
        chosen: [N] i64, the slot that was chosen in each row; None: nobody asks.
        device: where the tensors go.
    """
    reward = (returns.reward / unit).astype(np.float32)
    discount = returns.discount.astype(np.float32)
    shared = batch.candidates[:1].copy() if is_shared(batch.candidates) else None
    if chosen is None:
        chosen = np.broadcast_to(np.int64(batch.action.shape[1]), len(batch))

    def gather(places: Array) -> ListRows:
        row, until = returns.row.take(places), returns.until.take(places)
        arrays = (
            rows_of(batch.context, row),
            rows_of(batch.candidates, row) if shared is None else shared,
            rows_of(batch.mask, row),
            rows_of(batch.action, row),
            rows_of(slots.propensity, row).astype(np.float32),
            (rows_of(slots.reward, row) / unit).astype(np.float32),
            rows_of(chosen, row),
            reward.take(places),
            discount.take(places),
            rows_of(batch.context, until),
            rows_of(batch.candidates, until) if shared is None else shared,
            rows_of(batch.mask, until),
            rows_of(batch.action, until),
        )
        return ListRows(*tensors(arrays, device))

    return gather


def list_log_chances(scores: Tensor, mask: Tensor, items: Tensor) -> Tensor:
    """[B, L], logarithms of the probabilities of the items of lists, each given those above it; 0 behind the last.

    They are what `core.ranking.Lists` of `Softmax(1.0)` has: what remains keeps its proportions.

    Args:
        scores: [B, K].
        mask: [B, K] bool.
        items: [B, L] i64, -1 behind the last.
    Source: Plackett 1975; Luce 1959.
    """
    left, found = mask, []
    for item in items.unbind(dim=1):
        there, place = item >= 0, item.clamp(min=0)[:, None]
        offered = torch.where(there[:, None], left, mask)  # an empty one has no gradient
        log = scores.gather(1, place)[:, 0] - kept(scores, offered).logsumexp(dim=1)
        found.append(torch.where(there, log, torch.zeros_like(log)))
        left = left & ~(there[:, None] & torch.zeros_like(left).scatter(1, place, True))
    return torch.stack(found, dim=1)
