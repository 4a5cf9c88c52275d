"""Shape: what a net looks like, as data: enough to build it again, and safe to read from a file."""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

from steersman.core.errors import DataError
from steersman.core.features import Encoder

WIDEST = 2**16
"""Width of the widest layer: a damaged file must not ask for more memory than there is."""


ActorKind = Literal["point", "squashed"]
Kind = ActorKind | Literal[
    "actions", "features", "bilinear", "optimist", "own-optimist", "filtered-actions", "filtered-features",
    "arms", "arm-draws", "draws", "action-draws", "feature-draws", "slate-actions", "slate-features",
]  # fmt: skip


class Shape(Struct, frozen=True, forbid_unknown_fields=True):
    """What a net looks like, as data: enough to build it again.

    Attributes:
        kind: `actions`: one output a named action; `features`: context and candidate go in together; linear are
            `bilinear`, and with a bonus `optimist`, or `own-optimist` for named actions; `arms`: a number for each
            named action. Filtered nets hold back what was hardly logged, see `filtered.py`. Draws of scores give
            `arm-draws`, `draws` of a linear model, and `action-draws` and `feature-draws` on top of the last hidden
            layer of `actions` and `features`. For numbers see `actors.py`: `point`: where the action shall be;
            `squashed`: a density of `Squashed`. Slates have a choice model of both, and what choices are worth.
        context: F, number of context columns.
        candidate: A, number of candidate columns, at least 1; 0 for numbers.
        hidden: width of each hidden layer, in [1, WIDEST]; empty: a linear net.
        dueling: the value of the context and the advantages of the candidates have outputs of their own, added up.
        atoms: numbers that a candidate's distribution of returns is made of, in [1, WIDEST]; 1: its mean alone.
        support: lowest and highest return: atoms are then logits of returns evenly spaced between them. None: atoms
            are quantiles.
        threshold: of a filtered net, in (0, 1]; of others 0.
        draws: M, draws of every score that a net of draws gives, in [1, WIDEST]; 0: it gives the scores.
        bounds: of numbers, low and high of each.
        slots: L, of the slates that a net of slates is for, in [1, WIDEST]; of others 0.
    """

    kind: Kind
    context: int
    candidate: int
    hidden: tuple[int, ...]
    dueling: bool = False
    atoms: int = 1
    support: tuple[float, float] | None = None
    threshold: float = 0.0
    draws: int = 0
    bounds: tuple[tuple[float, float], ...] = ()
    slots: int = 0

    @property
    def scores(self) -> int:
        """S, that a row has of an explorer of numbers; 0: one a candidate."""
        return len(self.bounds) * (2 if self.kind == "squashed" else 1)

    def __post_init__(self) -> None:
        numbers = self.kind in ("point", "squashed")
        if numbers != bool(self.bounds) or (numbers and (self.candidate != 0 or self.context < 0)):
            raise DataError(
                f"a net of kind {self.kind} with {self.candidate} candidate columns and bounds {self.bounds}: a net of "
                "numbers has bounds and no candidates, any other candidates and no bounds"
            )
        if not all(-math.inf < low < high < math.inf for low, high in self.bounds):
            raise DataError(f"the bounds are {self.bounds}, must be low < high", field="bounds")
        if not numbers and (self.context < 0 or self.candidate < 1):
            raise DataError(
                f"the net has {self.context} context and {self.candidate} candidate columns; without a candidate's "
                f"column it can not tell one candidate from another",
                hint="name the actions of the problem, or give the candidates features",
            )
        for width in self.hidden:
            if not 1 <= width <= WIDEST:
                raise DataError(f"a hidden layer has the width {width}, must be in [1, {WIDEST}]", field="hidden")
        if not 1 <= self.atoms <= WIDEST:
            raise DataError(f"atoms is {self.atoms}, must be in [1, {WIDEST}]", field="atoms")
        least, most = (1, WIDEST) if self.kind.endswith("draws") else (0, 0)
        if not least <= self.draws <= most:
            law = f"in [{least}, {most}]"
            raise DataError(f"draws of a net of kind {self.kind} is {self.draws}, must be {law}", field="draws")
        if self.kind in ("action-draws", "feature-draws") and not self.hidden:
            raise DataError(f"a net of kind {self.kind} needs a hidden layer to stand on", field="hidden")
        least, most = (1, WIDEST) if self.kind.startswith("slate-") else (0, 0)
        if not least <= self.slots <= most:
            law = f"in [{least}, {most}]"
            raise DataError(f"slots of a net of kind {self.kind} is {self.slots}, must be {law}", field="slots")
        if self.support is not None and not (-math.inf < self.support[0] < self.support[1] < math.inf):
            raise DataError(f"the support is {self.support}, must be [lowest, highest]", field="support")
        if self.filtered != (0 < self.threshold <= 1):
            law = "in (0, 1]" if self.filtered else "0"
            raise DataError(f"the threshold of a net of kind {self.kind} is {self.threshold:g}, must be {law}")

    @property
    def filtered(self) -> bool:
        """Whether the net holds back what was hardly logged."""
        return self.kind.startswith("filtered-")


def shape_for(
    encoder: Encoder,
    hidden: tuple[int, ...],
    *,
    dueling: bool = False,
    atoms: int = 1,
    support: tuple[float, float] | None = None,
    threshold: float = 0.0,
) -> Shape:
    """The net for candidates that are named actions and nothing else, or that have features; see Shape.

    Args:
        threshold: above 0: of a net that holds back what was hardly logged.
    Raises:
        DataError: the candidates have no columns, or a width is out of range.
    """
    kind: Kind = "features" if encoder.candidate else "actions"
    if threshold:
        kind = "filtered-features" if encoder.candidate else "filtered-actions"
    columns = encoder.context_width, encoder.candidate_width
    return Shape(kind, *columns, hidden, dueling, atoms, support, threshold)


def actor_shape(encoder: Encoder, kind: ActorKind, hidden: tuple[int, ...]) -> Shape:
    """The actor for the numbers of an encoder.

    Raises:
        DataError: the encoder has none, or a width is out of range.
    """
    if encoder.numbers is None:
        raise DataError("the actions are no numbers: there is nothing that an actor could set", field="learner")
    bounds = tuple(zip(encoder.numbers.low, encoder.numbers.high, strict=True))
    return Shape(kind, encoder.context_width, 0, hidden, bounds=bounds)
