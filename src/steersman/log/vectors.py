"""Actions that are numbers, in the rows of foreign logs: read, held to their bounds, and asked whether they were even.

A declared uniform policy has the density 1 / volume of the bounds. It is put to the test as one over candidates is:
each number of an action is a choice among PARTS even parts of its bounds, and a model of these must not predict better
than chance, neither by how often each part was taken nor by the context.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np

from steersman.core.decision import Numbers, Problem
from steersman.core.density import shares, within
from steersman.core.errors import DataError
from steersman.log.foreign import Propensities

PARTS = 10
"""Of the bounds of each number: what differs within a part is not seen."""

NO_ESTIMATE = "import the density that was logged; of a policy that was even over the bounds: --propensity uniform"

_decode = msgspec.json.Decoder(float | list[float]).decode


def box_of(problem: Problem, propensities: Propensities) -> Numbers | None:
    """The bounds of the problem's actions; None: they are no numbers.

    Raises:
        DataError: the densities of numbers are to be estimated.
    """
    if not isinstance(problem.actions, Numbers):
        return None
    if propensities == "estimate":
        raise DataError(
            f"the actions of {problem.name} are numbers: their density is not estimated from a log",
            hint=NO_ESTIMATE,
            field="propensity",
        )
    return problem.actions


def read(value: Any) -> tuple[float, ...]:
    """The numbers of an action from a list, a number, or a text that is one of these as JSON.

    Raises:
        DataError: it is none of them.
    """
    if isinstance(value, str):
        try:
            value = _decode(value)
        except msgspec.DecodeError:
            raise DataError(f"action is {value!r}, must be a number or a list of numbers", field="action") from None
    return tuple(float(number) for number in (value if isinstance(value, Iterable) else (value,)))


def check(action: str | tuple[Any, ...], box: Numbers) -> None:
    """Raise DataError unless the action is one number a bound, and within them as they are in 32 bits."""
    if isinstance(action, str) or not all(isinstance(number, float) for number in action):
        raise DataError(f"action is {action!r}, must be a list of numbers", field="action")
    if len(action) != len(box.low):
        raise DataError(f"action has {len(action)} numbers, must have {len(box.low)}", field="action")
    if not within(np.array([action]), box)[0]:
        raise DataError(
            f"action is {list(action)}, must be within {list(box.low)} and {list(box.high)}",
            hint="declare the bounds that the product really has",
            field="action",
        )


def parts(action: tuple[float, ...], box: Numbers) -> list[int]:
    """[D] in which of the PARTS even parts of its bounds each number lies, from 0."""
    return [min(int(share * PARTS), PARTS - 1) for share in shares(np.array([action]), box)[0].tolist()]
