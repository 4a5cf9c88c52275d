"""A simulated product: CartPole-v1 cut at 200 steps, asking a running server for every decision over HTTP."""

from __future__ import annotations

import itertools
import math
import socket
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httptools
import msgspec
import numpy as np
from msgspec import Struct

from steersman.core.decision import decoder
from steersman.core.errors import ConfigError, Error
from steersman.worlds.registered import library

FIELDS = ("cart_position", "cart_velocity", "pole_angle", "pole_velocity")
ACTIONS = ("left", "right")
CANDIDATES = tuple({"id": action} for action in ACTIONS)
METRIC = "upright"
"""1 for every step that began upright, the last one too."""

STEPS = 200
"""Whoever is still upright is told that the game is over."""

OUTCOMES_A_REQUEST = 16
"""Outcomes travel in bundles, or half of all requests would be outcomes. Each says when it happened."""

ANSWER_TIMEOUT_S = 60.0

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Played:
    """What the clients saw. One entry an episode, in the order in which the episodes began.

    Attributes:
        returns: [E] sum of the rewards of an episode, undiscounted, in [1, 200].
        steps: [E] decisions of an episode.
        versions: [E] the versions that decided in an episode, in the order of their first decision.
        failures: episodes given up because a request failed; they are in none of the above.
        seconds: wall time.
    """

    returns: tuple[float, ...]
    steps: tuple[int, ...]
    versions: tuple[tuple[int, ...], ...]
    failures: int
    seconds: float


def play(  # noqa: PLR0913  (all but two by keyword)
    url: str,
    policy: str,
    *,
    episodes: int | None = None,
    decisions: int | None = None,
    clients: int = 64,
    seed: int = 0,
    prefix: str = "e",
    progress: Progress | None = None,
    max_failures: int = 0,
) -> Played:
    """Play whole episodes against a server, many at a time, and send it the outcome of every step.

    One thread moves the carts of one half of the clients while the requests of the other half lie at the server,
    which can put them into one batch and one fsync.

    Args:
        url: of the server, e.g. `http://127.0.0.1:8080`.
        policy: name of the policy to ask.
        episodes: how many to play.
        decisions: begin no new episode once this many decisions were made; those that run end as they end.
            Give one of the two, or both: then whichever is reached first counts.
        clients: environments at a time, each with a connection of its own.
        seed: of the starts; episode i starts the same whatever the policy does.
        prefix: of the units. Episode i is the unit `<prefix>-<i>`, so within one log every call needs its own.
        progress: called with (done, total, {"return": mean of the last 100 episodes}).
        max_failures: episodes that may be given up because a request failed.
    Raises:
        Error: one failure too many, with the server's own words.
        ConfigError: neither episodes nor decisions is given, or the URL is none.
        MissingExtra: gymnasium is not installed.
    """
    if episodes is None and decisions is None:
        raise ConfigError("nothing says when to stop", hint="give episodes or decisions")
    begun = time.perf_counter()
    tally = _Tally(episodes, decisions, max_failures, progress)
    with ExitStack() as stack:
        active: list[tuple[_Connection, _Client]] = []
        for _ in range(clients):
            client = _client(policy, tally, seed, prefix)
            request = next(client, None)
            if request is None:  # there are more clients than episodes
                break
            active.append((stack.enter_context(_Connection(url)), client))
            active[-1][0].send(*request)
        groups = [active[0::2], active[1::2]]
        while any(groups):
            groups = [_turn(group) for group in groups]
    done = [tally.done[number] for number in sorted(tally.done)]
    return Played(
        returns=tuple(episode.reward for episode in done),
        steps=tuple(episode.steps for episode in done),
        versions=tuple(episode.versions for episode in done),
        failures=tally.failures,
        seconds=time.perf_counter() - begun,
    )


class _Answer(Struct):
    id: str
    action: str
    version: int


class _Refusal(Struct):
    error: str
    hint: str = ""
    field: str = ""


@dataclass(frozen=True)
class _Episode:
    reward: float
    steps: int
    versions: tuple[int, ...]


_Request = tuple[str, Any]  # path, body
_Client = Generator[_Request, bytes, None]  # gives requests, is sent the bodies of their answers
_encode = msgspec.json.Encoder().encode
_decode_answer = decoder(_Answer)
_decode_refusal = msgspec.json.Decoder(_Refusal).decode


class _Tally:
    """What all clients did together, and whether another episode should begin."""

    def __init__(
        self, episodes: int | None, decisions: int | None, max_failures: int, progress: Progress | None
    ) -> None:
        self.episodes = math.inf if episodes is None else episodes
        self.limit = math.inf if decisions is None else decisions
        self.max_failures = max_failures
        self.progress = progress
        self.begun = 0
        self.decisions = 0
        self.failures = 0
        self.done: dict[int, _Episode] = {}

    def numbers(self) -> Iterator[int]:
        """Numbers of the episodes to play, each given once, as long as more are wanted."""
        while self.begun < self.episodes and self.decisions < self.limit:
            self.begun += 1
            yield self.begun - 1

    def finish(self, number: int, episode: _Episode) -> None:
        self.done[number] = episode
        if self.progress is None:
            return
        last = [episode.reward for episode in itertools.islice(reversed(self.done.values()), 100)]
        done, total = (len(self.done), self.episodes) if self.episodes < math.inf else (self.decisions, self.limit)
        self.progress(int(min(done, total)), int(total), {"return": float(np.mean(last))})

    def fail(self, error: Error) -> None:
        self.failures += 1
        if self.failures > self.max_failures:
            raise error


def _turn(group: list[tuple[_Connection, _Client]]) -> list[tuple[_Connection, _Client]]:
    """Read all answers of a group, then send all its next requests; returns those that still play.

    A burst of requests costs half of the same requests one by one: the server wakes once for all of them.
    """
    requests: list[tuple[_Connection, _Client, _Request]] = []
    for connection, client in group:
        try:
            requests.append((connection, client, _next_request(connection, client)))
        except StopIteration:
            continue
    for connection, _, request in requests:
        connection.send(*request)
    return [(connection, client) for connection, client, _ in requests]


def _next_request(connection: _Connection, client: _Client) -> _Request:
    try:
        answer = connection.receive()
    except Error as error:
        return client.throw(error)
    return client.send(answer)


def _client(policy: str, tally: _Tally, seed: int, prefix: str) -> _Client:
    """One environment that plays episodes as long as the tally wants more."""
    world = library().make("CartPole-v1", max_episode_steps=STEPS, disable_env_checker=True)
    path = f"/v1/decide/{quote(policy, safe='')}"
    for number in tally.numbers():
        start, _ = world.reset(seed=int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
        try:
            episode = yield from _episode(world, start, path, f"{prefix}-{number}", tally)
        except Error as error:
            tally.fail(error)
        else:
            tally.finish(number, episode)


def _episode(
    world: Any, observation: np.ndarray, path: str, unit: str, tally: _Tally
) -> Generator[_Request, bytes, _Episode]:
    """Play one episode from its first observation to its end."""
    reward = 0.0
    versions: dict[int, None] = {}
    outcomes: list[dict[str, Any]] = []
    for step in itertools.count():
        context = dict(zip(FIELDS, observation.tolist(), strict=True))
        answer = _decode_answer(
            (yield path, {"unit": unit, "step": step, "context": context, "candidates": CANDIDATES})
        )
        tally.decisions += 1
        versions[answer.version] = None
        if answer.action not in ACTIONS:
            raise Error(f"the policy answered {answer.action!r}", hint=f"its actions must be {' and '.join(ACTIONS)}")
        observation, upright, terminated, truncated, _ = world.step(ACTIONS.index(answer.action))
        reward += upright
        outcome = {"decision": answer.id, "at": time.time_ns() // 1000, "metrics": {METRIC: upright}}
        if terminated or truncated:
            outcome["ends"] = "terminated" if terminated else "truncated"
        outcomes.append(outcome)
        if terminated or truncated or len(outcomes) == OUTCOMES_A_REQUEST:
            yield "/v1/outcome", outcomes
            outcomes = []
        if terminated or truncated:
            break
    return _Episode(reward, step + 1, tuple(versions))


class _Connection:
    """One keep-alive HTTP/1.1 connection; a request is sent now and its answer is read later."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ConfigError(f"{url!r} is not the URL of a server", hint="for example http://127.0.0.1:8080")
        self._address = (parts.hostname, parts.port or 80)
        self._head = f" HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\nContent-Length: "
        self._base = parts.path.rstrip("/")
        self._socket: socket.socket | None = None
        self._path = ""
        self._broken: OSError | None = None

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def send(self, path: str, body: Any) -> None:
        """Send a POST; if that fails, `receive` says so."""
        text = _encode(body)
        self._path = path
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, ANSWER_TIMEOUT_S)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(f"POST {self._base}{path}{self._head}{len(text)}\r\n\r\n".encode() + text)
            self._broken = None
        except OSError as error:
            self._broken = error

    def receive(self) -> bytes:
        """The body of the answer.

        Raises:
            Error: the server refused, or there is no whole answer.
        """
        answer = _Answered()
        try:
            if self._broken is not None or self._socket is None:
                raise self._broken or ConnectionError("no connection")
            while not answer.complete:
                received = self._socket.recv(65536)
                if not received:
                    raise ConnectionError("the server closed the connection before it answered")
                answer.parser.feed_data(received)
        except (OSError, httptools.HttpParserError) as error:
            self._close()
            raise Error(f"POST {self._path}: {error}", hint="is the server running, and is this its URL?") from error
        if not answer.keep_alive:
            self._close()
        body = b"".join(answer.parts)
        status = answer.parser.get_status_code()
        if status >= 400:
            raise _refusal(self._path, status, body)
        return body

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Answered:
    """What httptools tells of one answer."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.parts: list[bytes] = []
        self.complete = False
        self.keep_alive = False

    def on_body(self, part: bytes) -> None:
        self.parts.append(part)

    def on_message_complete(self) -> None:
        self.complete = True
        self.keep_alive = self.parser.should_keep_alive()  # known only now: the parser forgets it at once


def _refusal(path: str, status: int, body: bytes) -> Error:
    try:
        refusal = _decode_refusal(body)
    except msgspec.DecodeError:
        refusal = _Refusal(body[:200].decode(errors="replace"))
    return Error(f"POST {path}: {status}: {refusal.error}", hint=refusal.hint, field=refusal.field)
