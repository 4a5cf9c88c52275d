"""Requests that were answered, kept to warm up the version that comes next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Mapping

import numpy as np

from steersman.core.errors import DataError
from steersman.core.signature import Signature

Array = np.ndarray
Recorded = deque[dict[str, Array]]

RECORDED = 32
RECORDED_BYTES = 1 << 16
EVERY = 16
"""Of every so many runs one request is kept: so many of the last, none larger."""


class Kept:
    """Of each model the requests that are kept."""

    def __init__(self) -> None:
        self._of: dict[str, Recorded] = {}

    def of(self, name: str) -> Recorded:
        """Those of one model, to add to."""
        return self._of.setdefault(name, deque(maxlen=RECORDED))

    def only(self, names: Container[str]) -> None:
        """Forget those of other models."""
        self._of = {name: recorded for name, recorded in self._of.items() if name in names}

    def all(self) -> dict[str, list[dict[str, Array]]]:
        """Those of every model that has some."""
        return {name: list(recorded) for name, recorded in self._of.items() if recorded}


def record(recorded: Recorded, feeds: Mapping[str, Array]) -> None:
    """Keep a request that was answered, unless it is large."""
    texts = sum(len(text) for array in feeds.values() if array.dtype.kind == "O" for text in array.ravel())
    if texts + sum(array.nbytes for array in feeds.values()) <= RECORDED_BYTES:
        recorded.append({name: array.copy() for name, array in feeds.items()})  # a view would keep a whole body


def try_on(
    signature: Signature, run: Callable[[Mapping[str, Array]], object], recorded: Recorded, first: bool = False
) -> None:
    """Run a model on what others answered.

    One odd request keeps no version back, nor do those of another signature.

    Args:
        first: no version serves yet, so these were recorded by a server before this one: whatever changed since then,
            they keep nothing back, and what is refused is kept no longer.
    Raises:
        DataError: it refuses all that fit its signature.
    """
    fits = tuple(feeds for feeds in recorded if _fits(signature, feeds))
    answered, refused = [], []
    for feeds in fits:
        try:
            run(feeds)
        except DataError as error:
            refused.append(error)
        else:
            answered.append(feeds)
    if first:
        recorded.clear()
        recorded.extend(answered)
    elif fits and not answered:
        raise DataError(
            f"it refuses all {len(fits)} requests that it was tried on: {refused[0].message}",
            hint="the version before answered them; a server that is started anew may not know them",
        )


def _fits(signature: Signature, feeds: Mapping[str, Array]) -> bool:
    try:
        signature.check(feeds)
    except DataError:
        return False
    return True
