"""What the plane is handed and what it counts: a version ready to decide, limits, counts."""

from __future__ import annotations

from dataclasses import dataclass

from steersman.core.decision import Problem
from steersman.core.errors import Error
from steersman.core.version import Version
from steersman.serve.asking import MAX_CANDIDATES, MAX_OUTCOMES
from steersman.serve.decide import Score
from steersman.serve.perturbed import Perturbing

MAX_TEXT = 500


@dataclass(frozen=True, eq=False)
class Live:
    """A version, ready to decide: what `load` returns.

    Attributes:
        run: the graph, from raw rows to scores.
        rowwise: the graph is made of matrix products and exact operations (add, multiply, maximum, ...), so that a
            row's bits can hardly depend on the rows beside it. Then a micro-batch is one run of the graph, if
            `same_alone` agrees; else each row is run alone, because a replay must give the same bits.
        perturbing: perturbed copies that decide for some units; None: the version decides for all.
        warm_up: bodies of decide requests that it must answer before it decides.
    """

    version: Version
    problem: Problem
    run: Score
    rowwise: bool = False
    perturbing: Perturbing | None = None
    warm_up: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What one request, and one run of the graph, may hold.

    Attributes:
        candidates: of one decide request.
        outcomes: in one body.
        rows, cells: of one run of the graph; cells are rows times the largest number of candidates.
        remembered: ids chosen by clients whose answers are kept for retries.
    """

    candidates: int = MAX_CANDIDATES
    outcomes: int = MAX_OUTCOMES
    rows: int = 256
    cells: int = 4096
    remembered: int = 10000


@dataclass
class Counts:
    """Since the plane began.

    Attributes:
        decisions, outcomes: written down and acknowledged.
        refused: requests that the client got wrong (4xx).
        failed: requests that we got wrong (5xx).
        batches: decisions / batches is the mean size of a micro-batch.
        swaps: versions that went live.
        apprentice: decisions in which the product's own action was taken, the first candidate.
        agreement: sum of the probabilities with which the policy would have taken it too.
    """

    decisions: int = 0
    outcomes: int = 0
    refused: int = 0
    failed: int = 0
    batches: int = 0
    swaps: int = 0
    apprentice: int = 0
    agreement: float = 0.0


def error_parts(error: Error) -> dict[str, str]:
    """Message, hint and field, none of them longer than a screen: they may quote the request."""
    return {"error": error.message[:MAX_TEXT], "hint": error.hint[:MAX_TEXT], "field": error.field[:MAX_TEXT]}
