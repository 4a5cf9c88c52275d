"""HTTP/1.1 over the plane: parse, route, answer in the order of the requests, drain."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import math
import os
import socket
import time
from collections import deque
from http import HTTPStatus
from typing import cast
from urllib.parse import unquote, urlsplit

import httptools
import msgspec
from msgspec import Struct

from steersman.core.errors import (
    ConfigError,
    Error,
    NotFoundError,
    OverloadedError,
    TooLargeError,
    did_you_mean,
)
from steersman.serve.plane import Plane, Reply, error_body

DECIDE = "/v1/decide/"
OUTCOME = "/v1/outcome"
PIPELINED = 64
LINGER_S = 2.0
LINGER_BYTES = 16 << 20
_PLAIN_GET = {"/v1/live", "/v1/ready", "/v1/status"}
_ROUTES = (f"{DECIDE}{{policy}}", OUTCOME, *sorted(_PLAIN_GET))
_to_json = msgspec.json.Encoder().encode


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where to listen, and what a client may ask for.

    Attributes:
        host, port: port 0 takes a free one.
        workers: processes that share the port; 1 serves in this process.
        max_body_bytes, max_head_bytes: of one request, the head with its request line.
        max_connections: open at once, in one worker.
        max_waiting: requests without an answer yet, in one worker; more are refused with 503.
        idle_s: a connection without a request is closed after this.
        request_s: a request must be complete, and an answer be read, within this.
        drain_s: after SIGTERM, until what is not answered is dropped.
        quiet_s: after SIGTERM, how long an idle connection stays open for a request that is on its way.
        poll_s: between two looks at which versions are wanted.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    max_body_bytes: int = 1 << 20
    max_head_bytes: int = 16 << 10
    max_connections: int = 4096
    max_waiting: int = 4096
    idle_s: float = 75.0
    request_s: float = 30.0
    drain_s: float = 20.0
    quiet_s: float = 0.2
    poll_s: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port is {self.port}, must be 0 to 65535", field="port")
        for name in self.__struct_fields__[2:]:
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"{name} is {value:g}, must be above 0", field=name)


class _HttpError(Error):
    """What only HTTP can get wrong; its status has no class in the tree."""

    def __init__(self, status: HTTPStatus, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.http_status = status


class _Slot:
    """The place of an answer among those of its connection; its `answer` is the plane's Reply."""

    __slots__ = ("_connection", "allow", "bare", "body", "close", "status", "version")

    def __init__(self, connection: _Connection, version: str, close: bool, bare: bool) -> None:
        self._connection = connection
        self.version = version
        self.close = close
        self.bare = bare
        self.allow = ""
        self.status = 0
        self.body = b""

    def answer(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body
        self._connection.answered()

    def refuse(self, error: Error) -> None:
        self.answer(error.http_status, error_body(error))


class _Connection(asyncio.Protocol):
    """One client: bytes in, slots in the order of its requests, bytes out."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._settings = server.settings
        self._parser = httptools.HttpRequestParser(self)
        self._slots: deque[_Slot] = deque()
        self._since = server.clock
        self._receiving = False  # a request has begun and is not complete
        self._in_body = False
        self._done = False  # no further request is read
        self._unread = False  # the last request is not read to its end
        self._lingering = False  # the last answer is out; what still comes in is dropped
        self._write_paused = False
        self._read_paused = False
        self._dropped_bytes = 0
        self._start_message()

    def _start_message(self) -> None:
        self._url = b""
        self._head_bytes = 0
        self._unparsed_head_bytes = 0
        self._body_bytes = 0
        self._parts: list[bytes] = []
        self._expects = b""
        self._owes_continue = False
        self._coding = b""

    # -- transport ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        connections = self._server.connections
        connections.add(self)
        if len(connections) > 2 * self._settings.max_connections:
            self._transport.abort()
        elif len(connections) > self._settings.max_connections:
            self._refuse(OverloadedError(f"{self._settings.max_connections} connections are open already"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._done = True
        self._server.lost(self)

    def pause_writing(self) -> None:
        self._write_paused = True
        self._since = self._server.clock
        self._regulate()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._since = self._server.clock
        self._regulate()

    def eof_received(self) -> bool:
        """The client sends no more; whatever it asked for is still answered."""
        if not self._slots or self._lingering:
            return False
        self._done = True
        self._unread = self._receiving = False
        self._slots[-1].close = True
        return True

    def data_received(self, data: bytes) -> None:
        if self._done:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > LINGER_BYTES:
                self._transport.abort()
            return
        limit = self._settings.max_head_bytes
        if len(data) <= limit:
            self._feed(data)
            return
        for start in range(0, len(data), limit):  # so that an endless header is seen before it is all in memory
            if not self._feed(data[start : start + limit]):
                return

    def _feed(self, data: bytes) -> bool:
        """Whether to go on."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserUpgrade:
            return False  # refused when its head was complete
        except httptools.HttpParserError as error:
            if not self._done:
                hint = "speak HTTP/1.1 as in RFC 9112"
                self._refuse(_HttpError(HTTPStatus.BAD_REQUEST, f"not HTTP: {error}", hint=hint))
            return False
        if self._receiving and not self._in_body and not self._done:
            # The bytes before the head may be another request's, hence twice the limit.
            self._unparsed_head_bytes += len(data)
            if self._unparsed_head_bytes > 2 * self._settings.max_head_bytes:
                self._refuse_head()
        return not self._done

    # -- parser ------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._done:
            return
        self._start_message()
        self._receiving = True
        self._in_body = False
        self._since = self._server.clock

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._head_bytes += len(url)
        if self._head_bytes > self._settings.max_head_bytes and not self._done:
            self._refuse_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._settings.max_head_bytes:
            if not self._done:
                self._refuse_head()
            return
        if self._in_body:
            return  # a trailer
        match name.lower():
            case b"content-length":
                # The parser let only digits pass, and refused a second one.
                self._body_bytes = int(value)
            case b"expect":
                self._expects = value.lower()
            case b"content-encoding":
                self._coding = value.lower()

    def on_headers_complete(self) -> None:
        if self._done:
            return
        self._in_body = True
        version = self._parser.get_http_version()
        declared, self._body_bytes = self._body_bytes, 0
        if version not in ("1.1", "1.0"):
            self._refuse(_HttpError(HTTPStatus.BAD_REQUEST, f"HTTP/{version} is not spoken here", hint="HTTP/1.1 is"))
        elif self._parser.should_upgrade():
            hint = "ask without Upgrade and CONNECT"
            self._refuse(_HttpError(HTTPStatus.BAD_REQUEST, "the protocol can not be changed", hint=hint))
        elif declared > self._settings.max_body_bytes:
            self._refuse_body(declared)
        elif self._coding not in (b"", b"identity"):
            coding = self._coding.decode("latin-1")[:64]
            error = _HttpError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content-encoding {coding!r}", hint="send plain JSON"
            )
            self._refuse(error)
        elif self._expects:
            self._on_expect(version)

    def _on_expect(self, version: str) -> None:
        if self._expects != b"100-continue":
            self._refuse(_HttpError(HTTPStatus.EXPECTATION_FAILED, "only 100-continue can be expected"))
        elif version == "1.1":
            self._owes_continue = True
            self._continue_if_due()

    def on_body(self, part: bytes) -> None:
        if self._done:
            return
        self._body_bytes += len(part)
        if self._body_bytes > self._settings.max_body_bytes:
            self._parts.clear()
            self._refuse_body(self._body_bytes)
        else:
            self._parts.append(part)

    def on_message_complete(self) -> None:
        if self._done:
            return
        self._receiving = self._in_body = self._owes_continue = False
        close = not self._parser.should_keep_alive()
        method = self._parser.get_method()
        slot = _Slot(self, self._parser.get_http_version(), close, method == b"HEAD")
        self._slots.append(slot)
        self._done = close
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        self._server.handle(method, self._url, body, slot)
        if len(self._slots) > PIPELINED:
            self._regulate()

    # -- answers -----------------------------------------------------------------------------------------------

    def answered(self) -> None:
        """A slot got its answer: write what is now due, and end the connection if that was the last of it."""
        self._server.settled()
        if not self._slots or not self._slots[0].status or self._transport.is_closing():
            return
        out = []
        close = False
        while self._slots and self._slots[0].status and not close:
            slot = self._slots.popleft()
            last = not self._slots and not self._receiving
            close = slot.close or (self._server.draining and last)
            out.append(self._server.response(slot, close))
        self._since = self._server.clock
        self._transport.write(b"".join(out) if len(out) > 1 else out[0])
        if close:
            self._end()
        else:
            self._continue_if_due()
            if self._read_paused:
                self._regulate()

    def _continue_if_due(self) -> None:
        if self._owes_continue and not self._slots:
            self._owes_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse_head(self) -> None:
        limit = self._settings.max_head_bytes
        error = _HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head is over {limit} bytes")
        self._refuse(error)

    def _refuse_body(self, size: int) -> None:
        limit = self._settings.max_body_bytes
        hint = "send fewer candidates, or outcomes in several bodies"
        self._refuse(TooLargeError(f"the body has {size} bytes or more, over {limit}", hint=hint))

    def _refuse(self, error: Error) -> None:
        """Answer a request that is not read to its end; the connection ends with it."""
        self._done = self._unread = True
        slot = _Slot(self, "1.1", close=True, bare=False)
        self._slots.append(slot)
        self._server.waiting += 1
        self._server.count(error)
        slot.refuse(error)

    def _end(self) -> None:
        self._done = True
        if self._unread and self._transport.can_write_eof():
            # To close on bytes that were not read would reset the connection, and the answer could be lost.
            self._lingering = True
            self._transport.write_eof()
        else:
            self._transport.close()

    def _regulate(self) -> None:
        pause = self._write_paused or len(self._slots) > PIPELINED
        if pause == self._read_paused or self._transport.is_closing():
            return
        self._read_paused = pause
        if pause:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Drop the connection, with whatever was not answered."""
        self._transport.abort()

    def quiet_from_now(self) -> None:
        """Count the quiet time of an idle connection from now on: the clock before was a coarse one."""
        if not self._receiving:
            self._since = self._server.clock

    def check(self, now: float, idle_s: float) -> None:
        """End the connection if it took too long."""
        age = now - self._since
        if (self._write_paused or self._transport.is_closing()) and age > self._settings.request_s:
            self._transport.abort()
        elif self._lingering:
            if age > LINGER_S:
                self._transport.abort()
        elif self._receiving and not self._done and not self._read_paused:
            if age > self._settings.request_s:
                limit = self._settings.request_s
                self._refuse(_HttpError(HTTPStatus.REQUEST_TIMEOUT, f"the request took over {limit:g} s"))
        elif not self._slots and age > idle_s:
            self._transport.close()


def _path(url: bytes) -> str:
    """The path of a request target, which may be a whole URL."""
    text = url.decode("latin-1")
    if not text.startswith("/"):
        with contextlib.suppress(ValueError):  # what is no URL is no path that we know
            text = urlsplit(text).path
    if "?" in text or "%" in text:
        text = unquote(text.partition("?")[0])
    return text


class Server:
    """The connections of one worker, and what they share.

    Args:
        loop: the running event loop; the plane is attached to it.
    """

    def __init__(self, plane: Plane, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.connections: set[_Connection] = set()
        self.waiting = 0
        self.draining = False
        self.clock = loop.time()
        self._plane = plane
        self._loop = loop
        self._heads: dict[tuple[int, str], bytes] = {}
        self._second = 0
        self._progress = asyncio.Event()
        self._tick_s = min(1.0, settings.idle_s / 4, settings.request_s / 4)
        plane.attach(loop.call_soon, loop.call_soon_threadsafe)

    async def listen(self, sock: socket.socket) -> None:
        """Accept connections on a bound socket."""
        self._listener = await self._loop.create_server(lambda: _Connection(self), sock=sock, backlog=1024)
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

    def lost(self, connection: _Connection) -> None:
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

    def handle(self, method: bytes, url: bytes, body: bytes, slot: _Slot) -> None:
        """Route one request; the slot gets its answer now or later."""
        self.waiting += 1
        path = _path(url)
        error: Error
        if path.startswith(DECIDE) or path == OUTCOME:
            if method == b"POST":
                self._post(path, body, slot)
                return
            slot.allow = "POST"
        elif path in _PLAIN_GET:
            if method == b"GET":
                self._get(path, slot.answer)
                return
            slot.allow = "GET"
        if slot.allow:
            message = f"{method.decode()} {path[:200]}"
            error = _HttpError(HTTPStatus.METHOD_NOT_ALLOWED, message, hint=f"use {slot.allow}")
        else:
            error = NotFoundError(f"no such path: {path[:200]}", hint=did_you_mean(path[:200], _ROUTES))
        self.count(error)
        slot.refuse(error)

    def _post(self, path: str, body: bytes, slot: _Slot) -> None:
        error: Error
        if self.waiting > self.settings.max_waiting:
            error = OverloadedError(f"{self.settings.max_waiting} requests wait already", hint="try again in a while")
            self.count(error)
            slot.refuse(error)
            return
        try:
            if path == OUTCOME:
                self._plane.outcome(body, slot.answer)
            else:
                self._plane.decide(path[len(DECIDE) :], body, slot.answer)
        except Exception as defect:  # of ours: the client must hear of it, and the other connections must not
            error = Error(f"{type(defect).__name__}: {defect}", hint="this is a defect of the server")
            self.count(error)
            slot.refuse(error)

    def _get(self, path: str, reply: Reply) -> None:
        if path == "/v1/live":
            reply(200, b'{"live":true}')
        elif path == "/v1/ready":
            ready = self._plane.ready and not self.draining
            reply(200 if ready else 503, b'{"ready":true}' if ready else b'{"ready":false}')
        else:
            own = {"pid": os.getpid(), "connections": len(self.connections), "waiting": self.waiting - 1}
            reply(200, _to_json({**self._plane.status(), "server": {**own, "draining": self.draining}}))

    def response(self, slot: _Slot, close: bool) -> bytes:
        """The bytes of an answer."""
        end = b"\r\nconnection: close\r\n\r\n" if close else b"\r\n\r\n"
        if slot.version == "1.0" and not close:
            end = b"\r\nconnection: keep-alive\r\n\r\n"
        head = self._heads.get((slot.status, slot.allow)) or self._head(slot.status, slot.allow)
        return b"%b%d%b%b" % (head, len(slot.body), end, b"" if slot.bare else slot.body)

    def _head(self, status: int, allow: str) -> bytes:
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            f"date: {email.utils.formatdate(self._second, usegmt=True)}",
            "content-type: application/json",
            *(["retry-after: 1"] if status == HTTPStatus.SERVICE_UNAVAILABLE else []),
            *([f"allow: {allow}"] if allow else []),
            "content-length: ",
        ]
        self._heads[status, allow] = head = "\r\n".join(lines).encode()
        return head

    def _tick(self) -> None:
        self.clock = self._loop.time()
        if int(time.time()) != self._second:
            self._second = int(time.time())
            self._heads.clear()
        idle_s = self.settings.quiet_s if self.draining else self.settings.idle_s
        for connection in list(self.connections):
            connection.check(self.clock, idle_s)
        self._timer = self._loop.call_later(self._tick_s, self._tick)
