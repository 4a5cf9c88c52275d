"""HTTP/1.1 over plane and models: connections, answers in the order of the requests, drain."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import socket
import ssl
import sys
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus

from steersman.core.errors import ConfigError, Error, NotFoundError, OverloadedError
from steersman.serve.board import Seat
from steersman.serve.connection import Connection
from steersman.serve.exchange import JSON, KEPT, Asked, Slot
from steersman.serve.heads import Heads
from steersman.serve.metrics import Metrics
from steersman.serve.plane import Plane, error_body
from steersman.serve.predicting import Model, Models
from steersman.serve.routes import Routes
from steersman.serve.settings import Settings

TURN = 512
"""Requests that are taken in a turn of the loop, of all connections."""


def _no_model(name: str, number: int) -> Model:
    raise NotFoundError(f"no model {name}/{number}")


class Server:
    """The connections of one worker, and what they share.

    Args:
        loop: the running event loop; plane and models are attached to it.
        models: what predicts; None: nothing does.
        seat: where this worker leaves its counts; None: it is the only one.
    """

    def __init__(
        self,
        plane: Plane,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        models: Models | None = None,
        seat: Seat | None = None,
    ) -> None:
        self.settings = settings
        self.connections: set[Connection] = set()
        self.waiting = 0
        self.draining = False
        self.clock = loop.time()
        self._plane = plane
        self._loop = loop
        self.heads = Heads(KEPT, settings.max_head_bytes, settings.max_body_bytes)
        self.held_bytes = 0
        self.now = loop.time
        self.full = self._turning = False
        self._taken = 0
        self._line: deque[Connection] = deque()
        self._heads: dict[tuple[int, str, bytes], bytes] = {}
        self._second = 0
        self._progress = asyncio.Event()
        self._tick_s = min(1.0, settings.idle_s / 4, settings.request_s / 4)
        models = models or Models(_no_model, dict)
        plane.attach(loop.call_soon, loop.call_soon_threadsafe)
        models.attach(loop.call_soon, loop.call_soon_threadsafe)
        self.metrics = Metrics()
        self._overloaded = OverloadedError(f"{settings.max_waiting} requests wait already", hint="try again in a while")
        self._overloaded_body = error_body(self._overloaded)
        behind = f"the request waited over {settings.stale_s:g} s for those before it on its connection"
        self._behind = OverloadedError(behind, hint="send fewer at once, or on more connections")
        self._behind_body = error_body(self._behind)
        self._routes = Routes(plane, models, settings, self, seat)
        self.fronts = self._routes.fronts

    async def listen(self, sock: socket.socket) -> None:
        """Accept connections on a bound socket."""
        secure = None
        if self.settings.tls_certificate:
            secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            try:
                secure.load_cert_chain(self.settings.tls_certificate, self.settings.tls_key)
            except OSError as error:
                message = f"{self.settings.tls_certificate}, {self.settings.tls_key}: {error}"
                raise ConfigError(message, hint="PEM files of a certificate and its key", field="tls_key") from None
        make = lambda: Connection(self)  # noqa: E731
        self._listener = await self._loop.create_server(make, sock=sock, backlog=1024, ssl=secure)
        self._tick()

    async def drain(self) -> bool:
        """Stop accepting and answer whatever was asked; whether all of it was within `drain_s`."""
        for _ in range(2):  # turns in which connections that wait in the kernel are accepted
            await asyncio.sleep(0)
        self._listener.close()
        self.draining = True
        self._timer.cancel()
        self._tick_s = self.settings.quiet_s / 4
        self._tick()
        for connection in self.connections:
            connection.quiet_from_now()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_s):
                while self.connections or self.waiting:
                    self._progress.clear()
                    await self._progress.wait()
        answered = self.waiting == 0
        self._timer.cancel()
        for connection in list(self.connections):
            connection.abort()
        return answered

    def lost(self, connection: Connection) -> None:
        """The connection is gone."""
        self.connections.discard(connection)
        self._progress.set()

    def settled(self) -> None:
        """A request has its answer, whether or not somebody is left to read it."""
        self.waiting -= 1
        if self.draining:
            self._progress.set()

    def count(self, error: Error) -> None:
        """Count a request that never reached the plane."""
        if error.http_status < 500:
            self._plane.counts.refused += 1
        else:
            self._plane.counts.failed += 1

    def handle(self, asked: Asked, slot: Slot) -> None:
        """Answer a request by its slot, now or later."""
        self.waiting += 1
        if self.settings.access_log:
            slot.asked, slot.began = asked, time.perf_counter()
        if self.waiting > self.settings.max_waiting and asked.method != b"GET":
            # Before anything is read, by an answer that lies ready: to refuse must cost less than to serve.
            self.count(self._overloaded)
            slot.answer(503, self._overloaded_body)
            return
        try:
            self._routes.handle(asked, slot)
        except Exception as error:  # a defect of ours: the client must hear of it, and the others must not
            if not isinstance(error, Error):
                error = Error(f"{type(error).__name__}: {error}", hint="this is a defect of the server")
            self.count(error)
            slot.refuse(error)

    def took(self) -> None:
        """A request was taken in this turn of the loop; `full`: no more shall be."""
        self._taken += 1
        self.full = self._taken >= TURN
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def line_up(self, connection: Connection) -> None:
        """Let a connection go on in one of the next turns."""
        self._line.append(connection)
        if not self._turning:
            self._turning = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._taken, self.full, self._turning = 0, False, False
        while self._line and not self.full:
            self._line.popleft().go_on()

    def shed(self, asked: Asked, slot: Slot) -> None:
        """Refuse a request that waited too long."""
        self.waiting += 1
        if self.settings.access_log:
            slot.asked, slot.began = asked, time.perf_counter()
        self.count(self._behind)
        slot.answer(503, self._behind_body)

    def refusals(self, count: int) -> bytes:
        """The same for many requests at once; gives their answers."""
        self._plane.counts.failed += count
        head = self._heads.get((503, "", JSON)) or self._head(503, "", JSON)
        return (b"%b%d\r\n\r\n%b" % (head, len(self._behind_body), self._behind_body)) * count

    def aside(self, work: Callable[[], None], done: Callable[[Exception | None], None]) -> None:
        """Do what may block on a thread; `done` is called on the loop's, with what was raised."""

        def told(future: asyncio.Future[None]) -> None:
            error = future.exception()
            done(error if error is None or isinstance(error, Exception) else Error(f"{error}"))

        self._loop.run_in_executor(None, work).add_done_callback(told)

    def response(self, slot: Slot, close: bool) -> bytes:
        """The bytes of an answer."""
        if slot.asked is not None:
            self._log(slot, slot.asked)
        end = b"\r\nconnection: close\r\n\r\n" if close else b"\r\n\r\n"
        if slot.version == "1.0" and not close:
            end = b"\r\nconnection: keep-alive\r\n\r\n"
        if slot.status == HTTPStatus.NO_CONTENT:  # it has no length
            return b"HTTP/1.1 204 No Content" + end
        key = slot.status, slot.allow, slot.kind
        head = self._heads.get(key) or self._head(*key)
        return b"%b%d%b%b%b" % (head, len(slot.body), slot.more, end, b"" if slot.bare else slot.body)

    def _log(self, slot: Slot, asked: Asked) -> None:
        line = {
            "at": time.time_ns() // 1000,
            "method": asked.method.decode(),
            "target": asked.target[:500].decode("latin-1"),
            "status": slot.status,
            "bytes": len(slot.body),
            "us": round((time.perf_counter() - slot.began) * 1e6),
        }
        with contextlib.suppress(OSError):  # nobody reads the log any more: no client may lose its answer for that
            sys.stderr.write(json.dumps(line) + "\n")

    def _head(self, status: int, allow: str, kind: bytes) -> bytes:
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            f"date: {email.utils.formatdate(self._second, usegmt=True)}",
            f"content-type: {kind.decode('latin-1')}",
            *(["retry-after: 1"] if status == HTTPStatus.SERVICE_UNAVAILABLE else []),
            *([f"allow: {allow}"] if allow else []),
            "content-length: ",
        ]
        self._heads[status, allow, kind] = head = "\r\n".join(lines).encode()
        return head

    def _tick(self) -> None:
        self.clock = self._loop.time()
        if int(time.time()) != self._second:
            self._second = int(time.time())
            self._heads.clear()
            self._routes.tally.leave()
        idle_s = self.settings.quiet_s if self.draining else self.settings.idle_s
        for connection in list(self.connections):
            connection.check(self.clock, idle_s)
        self._timer = self._loop.call_later(self._tick_s, self._tick)
