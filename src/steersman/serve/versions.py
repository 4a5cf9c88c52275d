"""The versions of policies that decide: loaded and warmed up aside, then swapped in by one reference."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from steersman.core.decision import Decision
from steersman.core.errors import ConfigError, DataError, Error
from steersman.core.version import Rollout
from steersman.serve.asking import Request, reader
from steersman.serve.background import give_back
from steersman.serve.decide import Array, same_alone
from steersman.serve.live import Counts, Live, error_parts
from steersman.serve.perturbed import Perturbing, checked, decide_by_copies

Wanted = Mapping[str, int | Rollout]
"""Policy -> the version that decides, or the rollout that says which one does."""

RECORDED = 64
RECORDED_BYTES = 1 << 14
"""Of the requests that a policy answered so many of the last are kept to warm up the next version, none longer."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A Live, and what was found out when it was loaded; `together`: a micro-batch is one run of its graph."""

    live: Live
    read: Callable[[bytes, Callable[[], str]], Request]
    together: bool
    since: int

    @property
    def number(self) -> int:
        """Of the version."""
        return self.live.version.number


@dataclass(frozen=True, eq=False)
class Route:
    """Who decides the requests of a policy; a challenger is never there without its rollout."""

    champion: Loaded
    rollout: Rollout | None = None
    challenger: Loaded | None = None

    def of(self, unit: str) -> Loaded:
        """The version that answers a unit."""
        if self.challenger and self.rollout and self.rollout.takes(unit):
            return self.challenger
        return self.champion

    @property
    def shadow(self) -> Loaded | None:
        """The version that scores what another one answers."""
        return self.challenger if self.rollout and self.rollout.state == "shadow" else None

    def parts(self) -> Iterator[Loaded]:
        """The versions that are loaded."""
        yield self.champion
        if self.challenger:
            yield self.challenger


@dataclass
class _Failure:
    """A load that failed, and how many polls to wait before it is tried again."""

    error: Error
    tries: int = 1
    wait: int = 1


class Versions:
    """Routes of every policy. Only `swap` and `follow` load; any one thread may call them.

    Args:
        load: (name, number) -> Live; may block; whatever it raises leaves the old versions deciding.
        now: microseconds UTC.
        counts: whose `swaps` are counted.
        candidates: that one request may have.
    """

    def __init__(
        self, load: Callable[[str, int], Live], *, now: Callable[[], int], counts: Counts, candidates: int
    ) -> None:
        self.routes: Mapping[str, Route] = {}
        self.lost: Error | None = None
        self._load = load
        self._now = now
        self._counts = counts
        self._candidates = candidates
        self._wanted: Wanted = {}
        self._failures: dict[tuple[str, int], _Failure] = {}
        self._recorded: dict[str, deque[bytes]] = {}
        self._swapping = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the policies that were ever wanted or served, sorted."""
        return tuple(sorted({*self.routes, *self._wanted}))

    @property
    def ready(self) -> bool:
        """Whether every wanted policy has a version that decides."""
        return bool(self.routes) and self._wanted.keys() <= self.routes.keys()

    def remember(self, loaded: Loaded, body: bytes) -> None:
        """Keep the body of a request that was answered, to warm up what comes next."""
        if len(body) <= RECORDED_BYTES:
            self._recorded.setdefault(loaded.live.version.name, deque(maxlen=RECORDED)).append(body)

    def ended(self, decisions: Sequence[str]) -> None:
        """Tell the perturbed copies of all versions that these were the last decisions of their episodes."""
        for route in self.routes.values():
            for loaded in route.parts():
                if loaded.live.perturbing:
                    loaded.live.perturbing.ended(decisions)

    def recorded(self) -> dict[str, list[bytes]]:
        """Of every policy the bodies that are kept."""
        return {name: list(bodies) for name, bodies in self._recorded.items() if bodies}

    def recall(self, bodies: Mapping[str, Iterable[bytes]]) -> None:
        """Keep bodies that were answered before this server began; before anything is loaded."""
        for name, some in bodies.items():
            self._recorded[name] = deque(some, maxlen=RECORDED)

    def swap(self, name: str, number: int) -> None:
        """Load a version and let it decide all.

        Raises:
            Error: what `load` raised, or the version cannot be served; the old one goes on.
        """
        with self._swapping:
            self._set(name, Route(self._loaded(name, number)))
            self._failures.pop((name, number), None)

    def follow(self, wanted: Callable[[], Wanted], at_once: bool = False) -> None:
        """Route every policy as is wanted. What fails is in `status`, and tried again ever later.

        Args:
            at_once: try now what failed before.
        """
        try:
            found = wanted()
        except Exception as error:  # a store that is away for a while raises what it likes; we serve on
            self.lost = Error(f"which versions are wanted is not known: {type(error).__name__}: {error}")
            return
        self.lost = None
        with self._swapping:
            before = self.routes
            self._wanted = {**self._wanted, **found}
            for name, want in found.items():
                numbers = _numbers(want)
                self._failures = {
                    key: failure
                    for key, failure in self._failures.items()
                    if key[0] != name or key[1] in numbers  # of what nobody wants any more
                }
                self._go_to(name, want, at_once)
            changed = before is not self.routes
            del before
        if changed:
            give_back()

    def status(self) -> dict[str, dict[str, object]]:
        """Of every policy what decides, what should, and why it does not, ready for JSON."""
        return {name: self._status(name) for name in self.names}

    def _go_to(self, name: str, want: int | Rollout, at_once: bool) -> None:
        """The old route stays while the champion is not there; a candidate that is not there gets no traffic."""
        rollout = want if isinstance(want, Rollout) and want.running else None
        champion = self._there(name, _numbers(want)[0], at_once)
        if champion is None:
            return
        challenger = self._there(name, rollout.candidate, at_once) if rollout else None
        new = Route(champion, rollout, challenger) if challenger else Route(champion)
        old = self.routes.get(name)
        if old is None or (old.champion, old.rollout, old.challenger) != (new.champion, new.rollout, new.challenger):
            self._set(name, new)

    def _there(self, name: str, number: int, at_once: bool) -> Loaded | None:
        """The version, loaded now if it must be; None: that failed, now or lately."""
        route = self.routes.get(name)
        loaded = next((one for one in route.parts() if one.number == number), None) if route else None
        failure = self._failures.get((name, number))
        if loaded:
            return loaded
        if failure and failure.wait > 0 and not at_once:
            failure.wait -= 1
            return None
        try:
            loaded = self._loaded(name, number)
        except Error as error:
            tries = failure.tries + 1 if failure else 1
            self._failures[name, number] = _Failure(error, tries, wait=min(60, 2 ** min(tries, 6)))
        else:
            self._failures.pop((name, number), None)
        return loaded

    def _set(self, name: str, route: Route) -> None:
        old = self.routes.get(name)
        before = tuple(old.parts()) if old else ()
        self.routes = {**self.routes, name: route}
        self._counts.swaps += sum(one not in before for one in route.parts())

    def _loaded(self, name: str, number: int) -> Loaded:
        try:
            return self._prepared(name, number)
        except Error:
            raise
        except Exception as error:  # a graph library raises what it likes; none of it may stop the old version
            raise Error(f"{name}/{number} did not load: {type(error).__name__}: {error}") from error

    def _prepared(self, name: str, number: int) -> Loaded:
        live = self._load(name, number)
        version, problem = live.version, live.problem
        if (version.name, version.number, problem.name) != (name, number, name):
            raise ConfigError(
                f"asked for {name}/{number}, loaded {version.name}/{version.number} of problem {problem.name}",
                hint="a policy has the name of its problem",
            )
        read = reader(problem, self._candidates)
        names = version.encoder.actions or getattr(problem.actions, "names", ())
        together = same_alone(version.encoder, names, live.run) and live.rowwise
        if live.perturbing:
            live = replace(live, perturbing=checked(live.perturbing, version.encoder, names, together))
        loaded = Loaded(live, read, together, self._now())
        for body in live.warm_up:
            _answer(loaded, body)
        self._try_recorded(loaded, name)
        return loaded

    def _try_recorded(self, loaded: Loaded, name: str) -> None:
        """One odd request that only the old version can read keeps nobody back; if it is all of them, it does.

        Where there is no old version these are requests of a server before this one: those that are refused are kept
        no longer, whatever changed since then.
        """
        bodies = tuple(self._recorded.get(name, ()))
        refused = {}
        for body in bodies:
            try:
                _answer(loaded, body)
            except DataError as error:
                refused[body] = error
        if name not in self.routes:
            if refused:
                self.recall({name: [body for body in bodies if body not in refused]})
            return
        if bodies and refused.keys() >= set(bodies):
            first = next(iter(refused.values())).message
            raise DataError(
                f"{name}/{loaded.number} refuses all of the last {len(bodies)} requests: {first}",
                hint="the version before answered them; a server that is started anew may not know them",
            )

    def _status(self, name: str) -> dict[str, object]:
        route = self.routes.get(name)
        champion = route.champion if route else None
        want = self._wanted.get(name, champion.number if champion else 0)
        return {
            "version": champion.number if champion else None,
            "digest": champion.live.version.digest if champion else None,
            "since": champion.since if champion else None,
            "together": champion.together if champion else None,
            "wanted": _numbers(want)[0],
            "error": self._failed(name, _numbers(want)[0]),
            "rollout": self._rollout_status(name, want, route) if isinstance(want, Rollout) else None,
            "sampling": _sampling_status(champion.live.perturbing) if champion else None,
        }

    def _rollout_status(self, name: str, want: Rollout, route: Route | None) -> dict[str, object]:
        challenger = route.challenger if route else None
        return {
            "candidate": want.candidate,
            "share": want.share,
            "state": want.state,
            "loaded": challenger is not None and challenger.number == want.candidate,
            "error": self._failed(name, want.candidate),
        }

    def _failed(self, name: str, number: int) -> dict[str, object] | None:
        failure = self._failures.get((name, number))
        return {"version": number, "tries": failure.tries, **error_parts(failure.error)} if failure else None


def decisions_of(
    loaded: Loaded, requests: Sequence[Request], now: int, perturbing: Perturbing | None = None
) -> tuple[list[Decision], Iterable[Array]]:
    """What a version decides, and the scores of each request that it decided by: [K, ...], padding after its own.

    Args:
        perturbing: its copies, where units really meet the decisions.
    Raises:
        Error: the version is broken, or a request is not for it.
    """
    live = loaded.live
    return decide_by_copies(perturbing, live.run, live.problem, live.version, requests, now, together=loaded.together)


def _answer(loaded: Loaded, body: bytes) -> None:
    decisions_of(loaded, [loaded.read(body, lambda: "warm-up")], 0)


def _sampling_status(perturbing: Perturbing | None) -> dict[str, object] | None:
    """Whether perturbed copies decide now, and why not; None: the version has none."""
    if perturbing is None:
        return None
    why_not = perturbing.why_not()
    return {"share": perturbing.share, "active": not why_not, "why_not": why_not}


def _numbers(want: int | Rollout) -> tuple[int, ...]:
    """Versions that have to be loaded, the champion first."""
    if not isinstance(want, Rollout):
        return (want,)
    if want.state == "done":
        return (want.candidate,)
    return (want.baseline, want.candidate) if want.running else (want.baseline,)
