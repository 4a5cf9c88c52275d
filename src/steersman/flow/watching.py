"""What is looked at while a policy is trained: figures of the learner, and estimates on the validation units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from msgspec.structs import replace

from steersman import evaluate
from steersman.config import PolicyConfig
from steersman.core.batch import Batch
from steersman.core.density import Aims
from steersman.core.errors import Error, MissingExtra
from steersman.core.policy import Policy
from steersman.core.ranking import Lists
from steersman.core.report import Estimate, Learned
from steersman.flow import places

LEARNING = "learning.json"
"""File of a candidate with what was seen while it was trained: a list of Learned."""

LOOKS = 10
"""Estimates of one training, at even steps: the last one at its end.

Where episodes are stitched each takes some 3 s of CPU: CartPole of 500 steps, 8,000 validation rows.
"""

MOST_ROWS = 20_000
"""Validation rows that an estimate while training rests on: whole units, as they come."""

AFFORDABLE = {True: ("ips", "snips", "dr"), False: ("pdis",)}
"""Estimators that are asked while training, of single decisions and of sequences; the headline's always is."""

WITHOUT_CHANCE = ("kernel-snips", "kernel-dr")
"""The same of single decisions, where actions are numbers and the policy has no density."""


class Scalars(Protocol):
    """What writes scalars somewhere."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Write one number."""
        ...


@dataclass
class Watching:
    """Looks at a training: see `steersman.learn.Look`.

    Attributes:
        batch: of the validation units; None: there are none, and so no estimates.
        policy: settings of the problem.
        seed: of the estimates.
        scalars: where numbers are written as they come; None: nowhere.
        keep: takes the policy that is the best so far by `Learned.score`; of equal ones the earlier stays, for it did
            as well with less training. None: nothing is picked.
        learned: what was seen, in order.
    """

    batch: Batch | None
    policy: PolicyConfig
    seed: int
    scalars: Scalars | None = None
    keep: Callable[[Policy], None] | None = None
    learned: list[Learned] = field(default_factory=list)

    def __call__(self, step: int, steps: int, figures: dict[str, float], now: Callable[[], Policy]) -> None:
        """Note the figures; estimate the policy if it is time: see LOOKS."""
        seen = Learned(step=step, figures=dict(figures))
        if self.batch is not None:
            looked = sum(bool(one.values or one.refused) for one in self.learned)
            if step >= steps * min(looked + 1, LOOKS) / LOOKS:
                seen = self._estimated(seen, now())
        self.learned.append(seen)
        if self.scalars is not None:
            for tag, number in scalars_of(seen).items():
                self.scalars.add_scalar(tag, number, step)

    def _estimated(self, seen: Learned, policy: Policy) -> Learned:
        """With estimates of the policy as it would be served, or why there are none; the best so far is kept."""
        assert self.batch is not None
        values, score, refused = _estimates(self.batch, policy, self.policy, self.seed)
        seen = replace(seen, values=values, refused=refused, score=score)
        if self.keep is None or score is None:
            return seen
        best = picked(self.learned)
        if best is not None and best.score is not None and best.score >= score:
            return seen
        self.keep(policy)
        self.learned[:] = [replace(one, picked=False) for one in self.learned]
        return replace(seen, picked=True)


def picked(learned: Sequence[Learned]) -> Learned | None:
    """Where the training stood when the policy that was kept was as it is; None: nothing was picked."""
    return next((one for one in learned if one.picked), None)


def scalars_of(learned: Learned) -> dict[str, float]:
    """Tag -> number: `train/loss`, ...; `CPE/reward/dr`, and its interval, `CPE/reward/dr/low` and `/high`."""
    found = {f"train/{name.replace('/', '_per_')}": number for name, number in learned.figures.items()}
    for one in learned.values:
        tag = f"CPE/{one.metric}/{one.estimator}"
        found |= {tag: one.value, f"{tag}/low": one.low, f"{tag}/high": one.high}
    return found


def validation(batch: Batch, rows: np.ndarray) -> Batch | None:
    """The validation units that estimates while training rest on; None: there are none."""
    if not rows.size:
        return None
    rank = np.unique(batch.unit[rows], return_inverse=True)[1]
    last = int(np.searchsorted(np.cumsum(np.bincount(rank)), MOST_ROWS, side="right"))  # units are in no order of time
    return batch.take(rows[rank < max(last, 1)]) if len(rows) > MOST_ROWS else batch.take(rows)


def _estimates(
    batch: Batch, policy: Policy, config: PolicyConfig, seed: int
) -> tuple[tuple[Estimate, ...], float | None, str]:
    """Of the policy as it would be served, the headline's first, and its score; or why there is none."""
    served = Policy(policy.encoder, policy.scorer, config.learn.serves)
    given = config.evaluate
    try:
        target = served.target(batch)
        asked = evaluate.Settings(estimators=_affordable(batch, target), headline=given.headline, level=given.level)
        found, terms = evaluate.evaluated(batch, target, asked, seed, config.problem.horizon, served)
    except Error as error:  # a net that has hardly learned may do what the log never did; training goes on
        return (), None, error.message
    rest = tuple(one for one in found.estimates if one != found.headline)
    return (found.headline, *rest), terms.low.center, ""


def _affordable(batch: Batch, target: np.ndarray | Aims | Lists) -> tuple[str, ...]:
    return WITHOUT_CHANCE if isinstance(target, Aims) and not target.dense else AFFORDABLE[_alone(batch)]


def _alone(batch: Batch) -> bool:
    """Whether every decision is an episode."""
    return bool((batch.next < 0).all())


def read(place: Path) -> tuple[Learned, ...]:
    """What was seen of the candidate in a directory; nothing if nobody looked."""
    return places.read(place / LEARNING, tuple[Learned, ...]) or ()


@contextmanager
def tensorboard(directory: Path | None, run: str) -> Iterator[Scalars | None]:
    """A writer of TensorBoard's event files in a folder of this run; None without a directory.

    Raises:
        MissingExtra: the `tensorboard` extra is not installed.
    """
    if directory is None:
        yield None
        return
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise MissingExtra("tensorboardX", "tensorboard") from None
    with SummaryWriter(str(directory / run)) as writer:
        yield writer
