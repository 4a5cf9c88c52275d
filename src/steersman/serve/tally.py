"""The counts of a server: those of the worker that is asked as they are, those of the others as they left them."""

from __future__ import annotations

import msgspec

from steersman.serve.board import Seat
from steersman.serve.connection import Owner
from steersman.serve.metrics import State, summed, text
from steersman.serve.plane import Plane
from steersman.serve.predicting import Models

_to_json = msgspec.json.Encoder().encode
_read = msgspec.json.Decoder(State).decode


class Tally:
    """What the workers of a server counted together.

    A worker leaves its counts every second, and before it tells anybody of them: so whoever is asked next knows them
    too, and no count ever goes down. Of one that is killed the last second is lost, and of a version that goes its rows
    and runs in that.

    Args:
        seat: where this worker leaves its counts; None: it is the only one.
    """

    def __init__(self, plane: Plane, models: Models, server: Owner, seat: Seat | None) -> None:
        self._plane = plane
        self._models = models
        self._server = server
        self._seat = seat
        self._before = State()
        if seat and seat.before:
            self._before = msgspec.structs.replace(_read(seat.before), gauges={})

    def leave(self) -> None:
        """Leave the counts of this worker for the others; and take those of each version, before it goes."""
        own = self._own(0)
        if self._seat:
            self._seat.leave(_to_json(own))

    def text(self) -> bytes:
        """The counts of all workers, for a request that is being answered."""
        own = self._own(1)
        if self._seat is None:
            return text(own)
        self._seat.leave(_to_json(own))
        return text(summed([own, *map(_read, self._seat.others())]))

    def _own(self, asking: int) -> State:
        """Of this worker and those in its place before it; asking: requests that wait and shall not count."""
        server = self._server
        gauges = {"connections": len(server.connections), "waiting": server.waiting - asking, "workers": 1}
        totals = vars(self._plane.counts)
        return summed([self._before, server.metrics.state(totals, gauges, self._models.served())])
