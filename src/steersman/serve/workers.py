"""Processes that serve: one in place, or several that share a port under a supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from steersman.core.errors import ConfigError, ConflictError, MissingExtra
from steersman.serve.background import give_way
from steersman.serve.board import Board, Seat
from steersman.serve.http import Server
from steersman.serve.plane import Plane
from steersman.serve.predicting import Models
from steersman.serve.settings import Settings
from steersman.serve.versions import Wanted

if TYPE_CHECKING:
    from steersman.serve.grpc import GrpcServer

Ask = Callable[[], Wanted]
Ready = Callable[[int], None]
Work = Callable[[Seat, socket.socket, Ready], int]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
SWITCH_S = 0.0005
"""How long the loop may keep the interpreter while the log's thread waits for it to say that records are durable."""

RESTARTS = 5
WINDOW_S = 60.0
GRACE_S = 5.0
LOADING_S = 3.0
"""How long a load that goes on is waited for when the server ends: a thread that returns from a graph library into an
interpreter that is no more ends the process by SIGABRT."""


def bind(settings: Settings, reuse_port: bool = False) -> socket.socket:
    """A socket on the host and port of the settings, not listening yet.

    Raises:
        ConflictError: the port is taken.
        ConfigError: there is no such host here.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = found[0]
    except OSError as error:
        raise ConfigError(f"host {settings.host!r}: {error}", field="host") from None
    sock = socket.socket(family, kind, proto)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        message = f"{settings.host} port {settings.port}: {error}"
        raise ConflictError(message, hint="stop what listens there, or take another port", field="port") from None
    return sock


@contextmanager
def holding_grpc(settings: Settings) -> Iterator[Settings]:
    """The settings with a real port for gRPC, which workers may share while it is held.

    Raises:
        ConflictError: the port is taken.
    """
    if settings.grpc_port is None:
        yield settings
        return
    # Bound and never listening: others can not take it, and 0 becomes the same number for every worker.
    with bind(msgspec.structs.replace(settings, port=settings.grpc_port), reuse_port=True) as holder:
        yield msgspec.structs.replace(settings, grpc_port=holder.getsockname()[1])


def run(  # noqa: PLR0913 - what a worker is made of
    plane: Plane,
    settings: Settings,
    *,
    wanted: Ask | None = None,
    models: Models | None = None,
    on_ready: Ready | None = None,
    on_drained: Callable[[], None] | None = None,
    sock: socket.socket | None = None,
    seat: Seat | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, drain, and return the exit code; for the main thread of a process.

    Args:
        wanted: policy -> version number or rollout; asked every `poll_s` and on SIGHUP, on a thread of its own.
        models: what predicts beside the plane; they follow at the same times.
        on_ready: takes the port, when the first loads are over and connections are accepted.
        on_drained: called when all is answered that will be: flushes the log.
        sock: a bound socket to listen on, instead of one of the settings' host and port.
        seat: where this worker leaves its counts, if it is one of several.
    Returns:
        0: every accepted request was answered; 1: some were not within `drain_s`.
    Raises:
        ConflictError: the port is taken.
    """
    sys.setswitchinterval(SWITCH_S)
    _allow_connections(settings.max_connections)
    sock = sock or bind(settings)
    loop = new_loop()
    server = Server(plane, settings, loop, models, seat)
    try:
        answered = loop.run_until_complete(_serve(plane, server, sock, wanted, models, on_ready))
        if on_drained:
            on_drained()
    finally:
        loop.close()
        sock.close()
    return 0 if answered else 1


async def _serve(
    plane: Plane,
    server: Server,
    sock: socket.socket,
    wanted: Ask | None,
    models: Models | None,
    on_ready: Ready | None,
) -> bool:
    loop = asyncio.get_running_loop()
    stop, loaded = asyncio.Event(), asyncio.Event()

    def end() -> None:
        stop.set()
        loaded.set()  # who loads for the first time, perhaps for ever, is not waited for

    def begin() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it was told to end meanwhile
            loop.call_soon_threadsafe(loaded.set)

    settings = server.settings
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, end)
    if wanted or models:
        follower = _Follower(_follow(plane, wanted, models), settings.poll_s)
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, follower.look)
        follower.start(begin)
        await loaded.wait()
        if stop.is_set():
            return True
    gc.collect()
    gc.freeze()  # what is loaded stays: the collector need not walk it again and again
    await server.listen(sock)
    spoken = await listen_grpc(server) if settings.grpc_port is not None else None
    if on_ready:
        on_ready(sock.getsockname()[1])
    await stop.wait()
    answered = all(await asyncio.gather(server.drain(), *([spoken.drain()] if spoken else [])))
    if wanted or models:
        follower.end()
    return answered


async def listen_grpc(server: Server) -> GrpcServer:
    """Speak gRPC, too, over the models of a server, on the running loop.

    Raises:
        MissingExtra: grpcio is not installed.
        ConflictError: the port is taken.
    """
    try:
        from steersman.serve.grpc import GrpcServer
    except ImportError as error:
        raise MissingExtra(error.name or "grpcio", "grpc") from None
    made = GrpcServer(server.fronts, server.settings, server.count, server.metrics)
    await made.listen()
    return made


def _allow_connections(count: int) -> None:
    """Raise the limit of open files, as far as the system lets us, so that `max_connections` is the one that counts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * count + 256  # connections that are told that there are too many are open, too
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _follow(plane: Plane, wanted: Ask | None, models: Models | None) -> Callable[[bool], None]:
    def follow(at_once: bool) -> None:
        if wanted:
            plane.follow(wanted, at_once)
        if models:
            models.follow(at_once)

    return follow


class _Follower:
    """A thread of low priority that loads what is wanted, so that a load costs the requests next to nothing."""

    def __init__(self, follow: Callable[[bool], None], poll_s: float) -> None:
        self._to_follow = follow
        self._poll_s = poll_s
        self._look = threading.Event()
        self._ended = False

    def start(self, first: Callable[[], object]) -> None:
        """Begin; `first` is called after the first look."""
        # A daemon: a load that hangs must not keep the process from its exit.
        self._thread = threading.Thread(target=self._follow, args=(first,), name="steersman-load", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Look now, also at what failed before."""
        self._look.set()

    def end(self) -> None:
        """Look no more, and wait for a load that goes on, but not for ever."""
        self._ended = True
        self._look.set()
        self._thread.join(LOADING_S)

    def _follow(self, first: Callable[[], object]) -> None:
        give_way()
        self._to_follow(False)
        first()
        while not self._ended:
            asked = self._look.wait(self._poll_s)
            self._look.clear()
            if not self._ended:
                self._to_follow(asked)


def new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not made for this platform
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def supervise(settings: Settings, work: Work, on_ready: Ready | None = None) -> int:
    """Keep `settings.workers` processes at work on one port until SIGTERM or SIGINT; for a process without threads.

    A worker that dies is started again, five times in a minute at most. SIGHUP goes to every worker. Workers
    drain when the supervisor dies.

    Args:
        work: (seat, socket, ready) -> exit code, in the new process: makes what it needs (the log, graphs, threads:
            nothing of that survives a fork) and calls `run` with that seat and socket and with `ready` as `on_ready`.
        on_ready: takes the port, when every worker is ready.
    Returns:
        0: every worker drained; 1: one did not, or they died too often.
    Raises:
        ConflictError: the port is taken.
    """
    return _Supervisor(settings, work, on_ready).run()


@dataclass
class _Worker:
    """A process of ours; `pipe` brings a byte when it serves, and is -1 after that."""

    index: int
    pipe: int
    ready: bool = False


class _Supervisor:
    def __init__(self, settings: Settings, work: Work, on_ready: Ready | None) -> None:
        self._settings = settings
        self._work = work
        self._on_ready = on_ready
        self._workers: dict[int, _Worker] = {}
        self._board = Board(settings.workers)
        self._deaths: deque[float] = deque(maxlen=RESTARTS + 1)
        self._told = False
        self._failed = False
        self._kill_at: float | None = None

    def run(self) -> int:
        self._woken, waker = socket.socketpair()
        self._life, self._life_end = os.pipe()  # its end tells the workers that we are gone
        # The holder is bound but never listens: the port stays ours while workers come and go.
        with bind(self._settings, reuse_port=True) as holder, self._woken, waker:
            self._settings = msgspec.structs.replace(self._settings, port=holder.getsockname()[1])
            self._woken.setblocking(False)
            waker.setblocking(False)
            signal.set_wakeup_fd(waker.fileno())
            for number in SIGNALS:
                signal.signal(number, lambda *_: None)  # read from the wakeup socket instead
            for index in range(self._settings.workers):
                self._start(index)
            while self._workers:
                self._wait()
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
        os.close(self._life)
        os.close(self._life_end)
        return int(self._failed)

    def _start(self, index: int) -> None:
        pipe, pipe_end = os.pipe()
        # A signal between fork and the worker's own handlers would land in ours, and be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        pid = os.fork()
        if pid == 0:
            os._exit(self._become_worker(index, pipe_end))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.close(pipe_end)
        self._workers[pid] = _Worker(index, pipe)

    def _become_worker(self, index: int, pipe_end: int) -> int:
        try:
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            os.close(self._life_end)
            threading.Thread(target=self._follow_supervisor, name="steersman-life", daemon=True).start()
            sock = bind(self._settings, reuse_port=True)
            return self._work(self._board.seat(index), sock, lambda port: _tell(pipe_end))
        except BaseException:  # a worker must never run on into its supervisor's code
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    def _follow_supervisor(self) -> None:
        os.read(self._life, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    def _wait(self) -> None:
        pipes = {worker.pipe: worker for worker in self._workers.values() if worker.pipe >= 0}
        timeout_s = None if self._kill_at is None else max(0.0, self._kill_at - time.monotonic())
        readable, _, _ = select.select([self._woken.fileno(), *pipes], [], [], timeout_s)
        if not readable:
            self._failed = True
            self._signal_workers(signal.SIGKILL)
            self._kill_at = time.monotonic() + GRACE_S
        for worker in [pipes[one] for one in readable if one in pipes]:
            worker.ready = bool(os.read(worker.pipe, 1))
            os.close(worker.pipe)
            worker.pipe = -1
        if self._woken.fileno() in readable:
            for number in self._woken.recv(4096):
                self._on_signal(number)
        if not self._told and all(worker.ready for worker in self._workers.values()):
            self._told = True
            if self._on_ready:
                self._on_ready(self._settings.port)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGHUP:
            self._signal_workers(signal.SIGHUP)
        else:
            self._stop()

    def _stop(self) -> None:
        if self._kill_at is None:
            self._told = True
            self._kill_at = time.monotonic() + self._settings.drain_s + GRACE_S
        self._signal_workers(signal.SIGTERM)

    def _signal_workers(self, number: signal.Signals) -> None:
        for pid in self._workers:
            os.kill(pid, number)

    def _reap(self) -> None:
        for pid in list(self._workers):
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found:
                continue
            worker = self._workers.pop(pid)
            if worker.pipe >= 0:
                os.close(worker.pipe)
            if self._kill_at is not None:
                code = os.waitstatus_to_exitcode(status)
                self._failed |= code not in (0, -signal.SIGTERM)  # -SIGTERM: told to end before it had begun
                continue
            now = time.monotonic()
            self._deaths.append(now)
            if len(self._deaths) > RESTARTS and now - self._deaths[0] < WINDOW_S:
                self._failed = True
                self._stop()
            else:
                self._start(worker.index)


def _tell(pipe_end: int) -> None:
    os.write(pipe_end, b"+")
    os.close(pipe_end)
