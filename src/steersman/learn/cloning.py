"""A policy as a net of logarithms of probabilities, and a clone of the behavior policy that learns beside a learner."""

from __future__ import annotations

from collections.abc import Callable

from steersman.core.batch import Batch
from steersman.core.errors import DataError
from steersman.core.shared import is_shared
from steersman.learn import HERE, Run
from steersman.learn.nets import Minibatch, Net, Student, Tensor, kept, likely, no_grad

CHUNK = 65_536
"""Rows whose candidates are looked at together."""


def log_chances(net: Net, context: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
    """[B, K], logarithms of the probabilities of a policy whose logits a net gives; padding has -inf.

    Served by a softmax of temperature 1 the same net gives the same probabilities.

    Args:
        context: [B, F].
        candidates: [B, K, A], or [1, K, A] that all rows share.
        mask: [B, K] bool.
    """
    return kept(net(context, candidates), mask).log_softmax(dim=1)


def surprise(net: Net, rows: Minibatch) -> Tensor:
    """[B], minus the logarithm of the probability of the candidate that was taken: cloning makes its mean small.

    Its smallest mean is reached by the frequencies of the log itself.
    """
    log = log_chances(net, rows.context, rows.candidates, rows.mask)
    return -log.gather(1, rows.action[:, None])[:, 0]


class Filter:
    """Clones the behavior policy meanwhile, and takes what it finds unlikely out of the targets.

    Source: Fujimoto, Conti, Ghavamzadeh and Pineau 2019, arXiv:1910.01708, algorithm 1; the clone has a net of its
    own here.
    """

    def __init__(self, clone: Student, threshold: float) -> None:
        """`threshold` in (0, 1]: see `nets.likely`."""
        self.clone = clone
        self.threshold = threshold

    def __call__(self, rows: Minibatch) -> Minibatch:
        """One training step of the clone; the rows with what may be taken next."""
        self.clone.step(surprise(self.clone.net, rows).mean())
        with no_grad():
            logits = self.clone.net(rows.next_context, rows.next_candidates)
        return rows._replace(next_mask=likely(logits, rows.next_mask, self.threshold))


def as_it_is(rows: Minibatch) -> Minibatch:
    """The filter that lets everything through."""
    return rows


Filtering = Callable[[Minibatch], Minibatch]


def check_told_apart(batch: Batch, run: Run = HERE) -> None:
    """Raise DataError if a candidate can not be told from padding: a filter inside a net needs that.

    Args:
        run: which rows are looked at.
    """
    looked_at = run.within(batch)
    for start in range(0, len(looked_at), CHUNK):
        some = looked_at[start : start + CHUNK]
        told = batch.candidates[:1].any(axis=2) if is_shared(batch.candidates) else batch.candidates[some].any(axis=2)
        alike = (batch.mask[some] & ~told).any(axis=1)
        if alike.any():
            raise DataError(
                f"row {some[alike.argmax()]}: all columns of a candidate are 0, and so are those of padding: a filter "
                f"can not tell them apart",
                hint="give candidates a feature that is never 0, a text for example, or set behavior_threshold = 0",
                field="behavior_threshold",
            )
