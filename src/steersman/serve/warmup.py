"""Requests that were answered, kept to warm up the version that comes next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from steersman.core.errors import DataError
from steersman.core.signature import Signature

Array = np.ndarray
Recorded = deque[dict[str, Array]]

RECORDED = 32
RECORDED_BYTES = 1 << 16
EVERY = 16
"""Of every so many runs one request is kept: so many of the last, none larger."""


def record(recorded: Recorded, feeds: Mapping[str, Array]) -> None:
    """Keep a request that was answered, unless it is large."""
    texts = sum(len(text) for array in feeds.values() if array.dtype.kind == "O" for text in array.ravel())
    if texts + sum(array.nbytes for array in feeds.values()) <= RECORDED_BYTES:
        recorded.append({name: array.copy() for name, array in feeds.items()})  # a view would keep a whole body


def try_on(
    signature: Signature, run: Callable[[Mapping[str, Array]], object], recorded: Iterable[dict[str, Array]]
) -> None:
    """Run a model on what others answered.

    One odd request keeps no version back, nor do those of another signature.

    Raises:
        DataError: it refuses all that fit its signature.
    """
    fits = 0
    refused = []
    for feeds in recorded:
        try:
            signature.check(feeds)
        except DataError:
            continue
        fits += 1
        try:
            run(feeds)
        except DataError as error:
            refused.append(error)
    if fits and len(refused) == fits:
        raise DataError(
            f"it refuses all {fits} requests that it was tried on: {refused[0].message}",
            hint="the version before answered them; a server that is started anew does not know them",
        )
