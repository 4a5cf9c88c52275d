"""Predict calls that come a few turns of the event loop apart, put together: for grpcio, which brings one in a turn."""

from __future__ import annotations

import asyncio

import numpy as np

from steersman.core.errors import Error
from steersman.serve.predicting import Models, Serving

Array = np.ndarray
TURNS = 16
"""For which calls are gathered. Under load each of them brings something of some call, so that to wait costs nothing;
to a client that is alone 16 turns of a quiet loop were 20 us of latency and 50 of processor time."""

MOST = 64
"""Calls that are not made to wait for more."""

HOPE, ALONE = 4, 16
"""Times that a call waits in vain before others are spared that, and of how many calls one tries all the same."""


class Gathering:
    """Waits for company where there was some of late; for use on the event loop.

    To run a net of 0.1 ms for every call costs up to a third of what grpcio takes for the call, for by the time of
    the next one the processor's caches hold neither its weights nor its code.
    """

    def __init__(self, models: Models) -> None:
        self._models = models
        self._asked: list[tuple[Serving, dict[str, Array], asyncio.Future[list[Array]]]] = []
        self._hope = self._alone = 0

    def worth(self) -> bool:
        """Whether a call should wait for others; if not, run it at once."""
        self._alone += 1
        return bool(self._asked) or self._hope > 0 or self._alone % ALONE == 0

    def outputs(self, serving: Serving, feeds: dict[str, Array]) -> asyncio.Future[list[Array]]:
        """The outputs, or why there are none, in some turns."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[list[Array]] = loop.create_future()
        self._asked.append((serving, feeds, done))
        if len(self._asked) == 1:
            loop.call_soon(self._turn, loop, TURNS)
        return done

    def _turn(self, loop: asyncio.AbstractEventLoop, left: int) -> None:
        if left and len(self._asked) < MOST:
            loop.call_soon(self._turn, loop, left - 1)
            return
        asked, self._asked = self._asked, []
        self._hope = HOPE if len(asked) > 1 else max(0, self._hope - 1)
        for serving, feeds, done in asked:
            ask(self._models, serving, feeds, done)


def ask(models: Models, serving: Serving, feeds: dict[str, Array], done: asyncio.Future[list[Array]]) -> None:
    """Ask a model, with what else this turn brings."""

    def answer(outputs: list[Array] | Error) -> None:
        if done.done():  # the client is gone
            return
        if isinstance(outputs, Error):
            done.set_exception(outputs)
        else:
            done.set_result(outputs)

    try:
        models.predict(serving, feeds, answer)
    except Error as error:
        answer(error)
