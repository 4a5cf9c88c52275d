"""One client over HTTP/1.1: bytes in, requests out, answers in the order of the requests."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol, cast

import httptools
import msgspec

from steersman.core.errors import Error, OverloadedError, TooLargeError
from steersman.serve.coding import CODINGS, accepts_gzip, inflated
from steersman.serve.exchange import KEPT, Asked, HttpError, Slot
from steersman.serve.heads import END, HEAD_BYTES, Heads
from steersman.serve.metrics import Metrics
from steersman.serve.settings import Settings

PIPELINED = 64
"""Requests of a connection that are taken in a turn of the loop, and at least those that may wait for answers."""

HELD_BYTES, ALL_HELD_BYTES = 1 << 20, 32 << 20
"""That wait in a connection, or in all of them, for their turn; then the kernel is not asked for more."""

WHOLE_BYTES = 4096
"""Bytes behind a head that is not known are cut at its end, unless they are so few that they hardly are requests."""

LINGER_S = 2.0
LINGER_BYTES = 16 << 20


class Owner(Protocol):
    """What connections share: the server."""

    settings: Settings
    connections: set[Connection]
    waiting: int
    draining: bool
    clock: float
    metrics: Metrics
    heads: Heads
    held_bytes: int

    def handle(self, asked: Asked, slot: Slot) -> None:
        """Answer a request by the slot, now or later."""
        ...

    def response(self, slot: Slot, close: bool) -> bytes:
        """The bytes of an answer."""
        ...

    def settled(self) -> None:
        """A request has its answer."""
        ...

    def count(self, error: Error) -> None:
        """A request was refused."""
        ...

    def aside(self, work: Callable[[], None], done: Callable[[Exception | None], None]) -> None:
        """Do what may block on a thread; `done` is called on the loop's."""
        ...

    def lost(self, connection: Connection) -> None:
        """The connection is gone."""
        ...

    def now(self) -> float:
        """Seconds of the loop's clock, in this turn."""
        ...

    full: bool

    def took(self) -> None:
        """A request was taken in this turn of the loop; `full`: no more shall be."""
        ...

    def line_up(self, connection: Connection) -> None:
        """Let a connection go on in one of the next turns."""
        ...

    def shed(self, asked: Asked, slot: Slot) -> None:
        """Refuse a request that waited too long."""
        ...

    def refusals(self, count: int) -> bytes:
        """The same for many requests at once; gives their answers."""
        ...


class Connection(asyncio.Protocol):
    """One client: bytes in, slots in the order of its requests, bytes out."""

    def __init__(self, server: Owner) -> None:
        self._server = server
        self._settings = server.settings
        self._parser = httptools.HttpRequestParser(self)
        self._slots: deque[Slot] = deque()
        self._since = server.clock
        self._receiving = False  # a request has begun and is not complete
        self._in_body = False
        self._done = False  # no further request is read
        self._unread = False  # the last request is not read to its end
        self._lingering = False  # the last answer is out; what still comes in is dropped
        self._write_paused = False
        self._read_paused = False
        self._dropped_bytes = 0
        self._held: deque[tuple[float, bytes]] = deque()  # bytes that wait for their turn, and since when
        self._held_bytes = 0
        self._in_line = False  # for a turn in which to take what is held
        self._ended = False  # no more comes behind what is held
        self._taken = 0  # requests in this turn
        self._stale = False  # what is taken waited too long
        self._start_message()

    def _start_message(self) -> None:
        self._version = ""
        self._url = b""
        self._head_bytes = 0
        self._unparsed_bytes = 0
        self._body_bytes = self._declared_bytes = 0
        self._parts: list[bytes] = []
        self._expects = b""
        self._owes_continue = False
        self._coding = b""
        self._headers: dict[bytes, bytes] = {}

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
        self._server.held_bytes -= self._held_bytes
        self._held.clear()
        self._held_bytes = 0
        self._server.lost(self)

    def pause_writing(self) -> None:
        self._write_paused = True
        self._since = self._server.clock
        self._regulate()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._since = self._server.clock
        self._go_on_soon()
        self._regulate()

    def eof_received(self) -> bool:
        """The client sends no more; whatever it asked for is still answered."""
        if self._held and not self._done:
            self._ended = True
            return True
        return self._end_of_input()

    def _end_of_input(self) -> bool:
        """Whether answers are still to come."""
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
        if self._held:
            self._hold(data, self._server.now())
        else:
            self._taken = 0
            self._take(data)
        if self._held:
            self._go_on_soon()
            self._regulate()

    def _hold(self, data: bytes, since: float, first: bool = False) -> None:
        """Keep bytes for a later turn."""
        (self._held.appendleft if first else self._held.append)((since, data))
        self._held_bytes += len(data)
        self._server.held_bytes += len(data)

    def _go_on_soon(self) -> None:
        if self._held and not self._in_line and not self._write_paused and len(self._slots) <= PIPELINED // 2:
            self._in_line = True
            self._server.line_up(self)

    def go_on(self) -> None:
        """Take what was held, as far as its turn allows."""
        self._in_line = False
        self._taken = 0
        while self._held and self._may_take():
            since, data = self._held.popleft()
            self._held_bytes -= len(data)
            self._server.held_bytes -= len(data)
            if not self._done:
                self._take(data, since)
        if self._ended and not self._held and not self._end_of_input():
            self._transport.close()
        self._go_on_soon()
        self._regulate()

    def _may_take(self) -> bool:
        return self._taken < PIPELINED and len(self._slots) < PIPELINED and not self._server.full

    def _take(self, data: bytes, since: float | None = None) -> None:
        """Read bytes that came at a time, now unless said; what is behind PIPELINED requests is held for later turns.

        A head whose bytes were read before is not parsed again; everything else is, by llhttp.
        """
        heads, size, at = self._server.heads, len(data), 0
        late = since is not None and self._server.now() - since > self._settings.stale_s
        while at < size and not self._done:
            if self._receiving:
                stop, text = self._stop_in(data, at), b""
            elif late and not self._slots and (stop := self._refuse_known(data, at)) > at:
                at = stop
                continue
            elif not self._may_take():
                self._hold(data[at:], self._server.now() if since is None else since, first=True)
                return
            else:
                end = data.find(END, at, at + HEAD_BYTES) + 4
                text = data[at:end] if end > 3 else b""
                head = heads.get(text)
                if head is not None and (stop := end + head.body_bytes) <= size:
                    at = stop
                    self._stale = late and self._more(data, at)
                    self._since = self._server.clock
                    self._ask(Asked(head.method, head.target, head.headers, data[end:stop]), "1.1", close=False)
                    continue
                stop = end if text and size - at > WHOLE_BYTES else size
            stop = min(stop, at + self._settings.max_head_bytes)  # an endless head is seen before it is all in memory
            self._stale = late and self._more(data, stop)
            if not self._feed(data[at:stop]):
                return
            if text:
                heads.learn(text)
            at = stop

    def _more(self, data: bytes, at: int) -> bool:
        """Whether anything came behind; of what waited too long the last request is served, for nobody is behind it."""
        return at < len(data) or len(self._held) > 0

    def _refuse_known(self, data: bytes, at: int) -> int:
        """Refuse requests that waited too long, as long as their heads were read before; gives where they end."""
        if self._settings.access_log or self._transport.is_closing():
            return at
        known, size, count = self._server.heads.get, len(data), 0
        while (end := data.find(END, at, at + HEAD_BYTES) + 4) > 3 and (head := known(data[at:end])) is not None:
            stop = end + head.body_bytes
            if stop > size or not self._more(data, stop):
                break
            count, at = count + 1, stop
        if count:
            self._since = self._server.clock
            self._transport.write(self._server.refusals(count))
        return at

    def _stop_in(self, data: bytes, at: int) -> int:
        """Where in the bytes the head ends that is read, or else its message, if one can know."""
        if not self._in_body:
            end = data.find(END, at)
            return len(data) if end < 0 else end + len(END)
        return min(len(data), at + self._declared_bytes - self._body_bytes) if self._declared_bytes else len(data)

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
                self._refuse(HttpError(HTTPStatus.BAD_REQUEST, f"not HTTP: {error}", hint=hint))
            return False
        if self._receiving and not self._done:
            # The bytes before the head may be another request's, hence twice the limit. What brings nothing of the
            # body, as an endless trailer, is head.
            self._unparsed_bytes += len(data)
            if self._unparsed_bytes > 2 * self._settings.max_head_bytes:
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
        name = name.lower()
        if name in KEPT:
            self._headers[name] = value
            return
        match name:
            case b"content-length":
                # The parser let only digits pass, and refused a second one and all over 64 bits, but for zeros before.
                self._body_bytes = int(value.strip().lstrip(b"0") or b"0")
            case b"expect":
                self._expects = value.lower()
            case b"content-encoding":
                coding = value.strip().lower()
                self._coding = b"" if coding == b"identity" else coding

    def on_headers_complete(self) -> None:
        if self._done:
            return
        self._in_body = True
        self._version = version = self._parser.get_http_version()
        self._declared_bytes, self._body_bytes = self._body_bytes, 0
        if version not in ("1.1", "1.0"):
            self._refuse(HttpError(HTTPStatus.BAD_REQUEST, f"HTTP/{version} is not spoken here", hint="HTTP/1.1 is"))
        elif self._parser.should_upgrade():
            hint = "ask without Upgrade and CONNECT"
            self._refuse(HttpError(HTTPStatus.BAD_REQUEST, "the protocol can not be changed", hint=hint))
        elif self._declared_bytes > self._settings.max_body_bytes:
            self._refuse_body(self._declared_bytes)
        elif self._coding and self._coding not in CODINGS:
            coding = self._coding.decode("latin-1")[:64]
            hint = "send it as it is, or gzip"
            self._refuse(HttpError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content-encoding {coding!r}", hint=hint))
        elif self._expects:
            self._on_expect(version)

    def _on_expect(self, version: str) -> None:
        if self._expects != b"100-continue":
            self._refuse(HttpError(HTTPStatus.EXPECTATION_FAILED, "only 100-continue can be expected"))
        elif version == "1.1":
            self._owes_continue = True
            self._continue_if_due()

    def on_body(self, part: bytes) -> None:
        if self._done:
            return
        self._unparsed_bytes = 0
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
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts = []
        asked = Asked(self._parser.get_method(), self._url, self._headers, body)
        self._ask(asked, self._version, close=not self._parser.should_keep_alive(), coded=bool(self._coding and body))

    def _ask(self, asked: Asked, version: str, close: bool, coded: bool = False) -> None:
        slot = Slot(self.answered, version, close, asked.method == b"HEAD")
        self._slots.append(slot)
        self._done = close
        self._taken += 1
        self._server.took()
        if self._stale:
            self._server.shed(asked, slot)
            return
        if coded:
            try:
                asked = msgspec.structs.replace(asked, body=inflated(asked.body, self._settings.max_body_bytes))
            except Error as error:
                self._server.waiting += 1
                self._server.count(error)
                slot.refuse(error)
                return
        if accepted := asked.headers.get(b"accept-encoding"):
            slot.gzip_from = self._settings.gzip_bytes if accepts_gzip(accepted) else 0
        self._server.handle(asked, slot)

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
            if self._held:
                self._go_on_soon()
            if self._read_paused:
                self._regulate()

    def _continue_if_due(self) -> None:
        if self._owes_continue and not self._slots:
            self._owes_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse_head(self) -> None:
        limit = self._settings.max_head_bytes
        error = HttpError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head is over {limit} bytes")
        self._refuse(error)

    def _refuse_body(self, size: int) -> None:
        limit = self._settings.max_body_bytes
        hint = "send fewer candidates, or outcomes in several bodies"
        self._refuse(TooLargeError(f"the body has {size} bytes or more, over {limit}", hint=hint))

    def _refuse(self, error: Error) -> None:
        """Answer a request that is not read to its end; the connection ends with it."""
        self._done = self._unread = True
        slot = Slot(self.answered, "1.1", close=True, bare=False)
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
        much = self._held_bytes > HELD_BYTES or (self._held and self._server.held_bytes > ALL_HELD_BYTES)
        pause = self._write_paused or bool(much)
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
                self._refuse(HttpError(HTTPStatus.REQUEST_TIMEOUT, f"the request took over {limit:g} s"))
        elif not self._slots and age > idle_s:
            self._transport.close()
