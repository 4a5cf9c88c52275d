"""Live models: named arrays in, named arrays out; what one turn of the loop brought is one run of the graph."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from msgspec import Struct

from steersman.core.errors import Error, NotFoundError, OverloadedError, did_you_mean
from steersman.core.signature import Signature, checker
from steersman.serve import warmup
from steersman.serve.background import give_back
from steersman.serve.probing import Run, probed

Array = np.ndarray
Answered = Callable[[list[Array] | Error], None]
"""Takes the outputs in the order of the signature, or why there are none. Called once, on the loop's thread."""

HEAVY_S = 300e-6
"""A run that takes longer has no place on the event loop."""

LIGHT_S = 10e-6
"""Whose run takes no more for each of its requests is never heavy, however many they are: a thread costs more."""

NEAR_HEAVY_S = HEAVY_S / 8
"""After a run that takes longer by the clock on the wall, the processor time of the next is taken, which costs 1 us."""


class Limits(Struct, frozen=True):
    """Of one run of a graph, and of what may wait for one.

    Attributes:
        rows: that requests are put together to; a request alone may have more.
        waiting: requests that wait for one heavy model; more are refused.
    """

    rows: int = 256
    waiting: int = 512


@dataclass(frozen=True, eq=False)
class Model:
    """What `load` returns: a model, ready to run.

    Attributes:
        warm_up: what it must answer before it serves.
    """

    signature: Signature
    run: Run
    warm_up: tuple[dict[str, Array], ...] = ()


class Wanted(Struct, frozen=True):
    """The versions of a model that shall be served.

    Attributes:
        numbers: of the versions.
        default: the one that answers who names none; None: the highest that is served.
        labels: other names of versions.
    """

    numbers: tuple[int, ...]
    default: int | None = None
    labels: Mapping[str, int] = {}


class State(Struct, frozen=True):
    """Of one version: `start`, `loading`, `available`, `unloading` or `end`, and what went wrong."""

    number: int
    state: str
    error: Error | None = None


@dataclass(slots=True)
class _Asking:
    feeds: dict[str, Array]
    rows: int
    answer: Answered


@dataclass(eq=False)
class Serving:
    """A model that serves.

    Attributes:
        check: feeds to their rows, or DataError.
        together: rows of several requests may be one run: in probes every row came out as it did alone.
        run_s: processor time that a run takes of late; what it waits for a processor, or for the interpreter when it
            is on a thread, would make a model heavy for good on a machine that is busy.
        timed: whether the processor time of the next run is taken.
        recorded: of the last requests to any version some.
        kept: what the front ends keep of this version, by names of theirs.
        runs, rows: counted since it was loaded.
    """

    name: str
    number: int
    model: Model
    check: Callable[[Mapping[str, Array]], int]
    together: bool
    run_s: float
    recorded: warmup.Recorded
    runs: int = 0
    rows: int = 0
    waiting: deque[_Asking] = field(default_factory=deque)
    thread: ThreadPoolExecutor | None = None
    busy: bool = False
    timed: bool = True
    kept: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Failure:
    error: Error
    tries: int = 1
    wait: int = 1


class Models:
    """Answers predict requests of any model. Only `follow` and `switch` may be called from another thread.

    Args:
        load: (name, number) -> Model; may block; whatever it raises leaves the old versions serving.
        wanted: gives name -> Wanted; may block. A name that is absent is served no more.
        turn_on: (name, on) changes what `wanted` gives; None: nobody may.
        place: where a model lies, in words.
        trouble: why what `wanted` gives is not what it should be; None: it is.
    """

    def __init__(
        self,
        load: Callable[[str, int], Model],
        wanted: Callable[[], Mapping[str, Wanted]],
        *,
        turn_on: Callable[[str, bool], None] | None = None,
        place: Callable[[str], str] = str,
        trouble: Callable[[], Error | None] = lambda: None,
        limits: Limits | None = None,
    ) -> None:
        self._load = load
        self._look = wanted
        self._turn_on = turn_on
        self.place = place
        self._trouble = trouble
        self._limits = limits or Limits()
        self._serving: dict[str, dict[int, Serving]] = {}
        self._wanted: Mapping[str, Wanted] = {}
        self._failures: dict[tuple[str, int], _Failure] = {}
        self.recorded = warmup.Kept()
        self._loading: tuple[str, int] | None = None
        self._following = threading.Lock()
        self._asked: dict[Serving, list[_Asking]] = {}
        self._turning = False
        self._looked = False
        self.lost: Error | None = None

    def attach(self, call_soon: Callable[..., object], call_soon_threadsafe: Callable[..., object]) -> None:
        """Tell the models their event loop."""
        self._soon = call_soon
        self._soon_threadsafe = call_soon_threadsafe

    # -- versions ----------------------------------------------------------------------------------------------

    def follow(self, at_once: bool = False) -> None:
        """Load what is wanted and not there, then let go what is there and not wanted.

        The last version of a wanted model goes only when another one serves. What fails is tried again ever later.

        Args:
            at_once: try now what failed before.
        """
        with self._following:
            try:
                wanted = self._look()
            except Exception as error:  # a store that is away for a while raises what it likes; we serve on
                self.lost = Error(f"which models are wanted is not known: {type(error).__name__}: {error}")
                return
            self.lost, self._looked = None, True
            self._wanted = wanted
            for name, one in wanted.items():
                for number in sorted(one.numbers, reverse=True):
                    self._try(name, number, at_once)
            self._failures = {
                key: failure
                for key, failure in self._failures.items()
                if key[0] in wanted and key[1] in wanted[key[0]].numbers
            }
            gone = self._let_go(wanted)
        if gone:
            give_back()

    def switch(self, name: str, on: bool) -> None:
        """Serve a model of the store, or serve it no more; blocks until that is so.

        Raises:
            NotFoundError: the store has no such model.
            Error: it could not be loaded; it is switched off again.
        """
        if self._turn_on is None:
            raise NotFoundError("this server can not load or unload models", hint="put them into its models directory")
        self._turn_on(name, on)
        self.follow(at_once=True)
        if on and name not in self._serving:
            failures = [failure.error for key, failure in self._failures.items() if key[0] == name]
            self._turn_on(name, False)
            self.follow()
            raise failures[0] if failures else NotFoundError(f"model {name!r} is not wanted", hint=str(self.lost or ""))

    def only(self, names: Collection[str]) -> None:
        """Serve these models of the store and no others of it; blocks until that is so. All or none.

        Raises:
            NotFoundError: the store has not all of them.
            Error: one could not be loaded.
        """
        before = self.names
        added = [name for name in names if name not in before]
        try:
            for name in added:
                self.switch(name, on=True)
        except Error:
            self._turn_off(added)
            raise
        self._turn_off([name for name in before if name not in names])

    def _turn_off(self, names: Collection[str]) -> None:
        for name in names:
            with contextlib.suppress(NotFoundError):  # of the project, or nobody's
                self.switch(name, on=False)

    def _try(self, name: str, number: int, at_once: bool) -> None:
        if number in self._serving.get(name, {}):
            return
        failure = self._failures.get((name, number))
        if failure and failure.wait > 0 and not at_once:
            failure.wait -= 1
            return
        self._loading = (name, number)
        try:
            recorded, first = self.recorded.of(name), name not in self._serving
            serving = _prepared(name, number, self._load(name, number), recorded, first)
        except Exception as error:  # a graph library raises what it likes; none of it may stop the old version
            cause = _as_error(error)
            tries = failure.tries + 1 if failure else 1
            self._failures[name, number] = _Failure(cause, tries, wait=min(60, 2 ** min(tries, 6)))
        else:
            self._failures.pop((name, number), None)
            self._serving = {**self._serving, name: {**self._serving.get(name, {}), number: serving}}
        finally:
            self._loading = None

    def _let_go(self, wanted: Mapping[str, Wanted]) -> bool:
        """Whether anything was let go."""
        before = sum(map(len, self._serving.values()))
        kept = {}
        for name, servings in self._serving.items():
            numbers = wanted[name].numbers if name in wanted else ()
            stay = {number: one for number, one in servings.items() if number in numbers}
            if name in wanted and not stay:  # nothing of what is wanted loads: the old one goes on
                highest = max(servings)
                stay = {highest: servings[highest]}
            if stay:
                kept[name] = stay
        self._serving = kept
        self.recorded.only(kept)
        return sum(map(len, kept.values())) < before

    @property
    def error(self) -> Error | None:
        """Why it does not follow what is wanted, or not all of it."""
        return self.lost or self._trouble()

    @property
    def ready(self) -> bool:
        """Whether every wanted model has a version that serves, and which are wanted was known once."""
        return (self._looked or self.lost is None) and self._wanted.keys() <= self._serving.keys()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the models that are wanted or served, sorted."""
        return tuple(sorted({*self._wanted, *self._serving}))

    def find(self, name: str, number: int | None = None, label: str | None = None) -> Serving:
        """A version that serves.

        Raises:
            NotFoundError: there is none.
        """
        servings = self._serving.get(name)
        if not servings:
            raise NotFoundError(f"no model {name[:128]!r} is served", hint=did_you_mean(name[:128], self._serving))
        wanted = self._wanted.get(name)
        if label is not None:
            number = wanted.labels.get(label) if wanted else None
            if number is None:
                raise NotFoundError(f"model {name} has no label {label[:128]!r}", field="label")
        if number is None:
            default = wanted.default if wanted else None
            number = default if default in servings else max(servings)
        if number not in servings:
            raise NotFoundError(f"model {name} has no version {number} that serves", field="version")
        return servings[number]

    def states(self, name: str) -> list[State]:
        """Of all versions that serve, load or failed, the highest first; none of a model that is not known."""
        found = {number: State(number, "available") for number in self._serving.get(name, {})}
        if wanted := self._wanted.get(name):
            for number in wanted.numbers:
                found.setdefault(number, State(number, "start"))
        for (failed, number), failure in list(self._failures.items()):
            if failed == name:
                found[number] = State(number, "end", failure.error)
        loading = self._loading  # a thread loads meanwhile
        if loading and loading[0] == name:
            found[loading[1]] = State(loading[1], "loading")
        return [found[number] for number in sorted(found, reverse=True)]

    def served(self) -> Iterator[Serving]:
        """Every version that serves."""
        for servings in self._serving.values():
            yield from servings.values()

    # -- requests ----------------------------------------------------------------------------------------------

    def predict(self, serving: Serving, feeds: dict[str, Array], answer: Answered) -> None:
        """Answer with the outputs, at the earliest when this turn of the loop ends.

        Raises:
            DataError: the feeds do not fit the signature.
        """
        rows = serving.check(feeds)
        self._asked.setdefault(serving, []).append(_Asking(feeds, rows, answer))
        if not self._turning:
            self._turning = True
            self._soon(self._end_turn)

    def at_once(self, serving: Serving, feeds: dict[str, Array]) -> list[Array] | None:
        """The outputs of a light model, without waiting for the end of the turn; None: it is heavy, so `predict`.

        For who brings requests one in a turn, so that nothing could be put together.

        Raises:
            Error: the feeds do not fit the signature, or the model can not take them.
        """
        if serving.run_s > HEAVY_S or serving.busy:
            return None
        rows = serving.check(feeds)
        try:
            return _run_feeds(serving, feeds, rows, [feeds])
        except Exception as error:
            raise _as_error(error) from error

    def _end_turn(self) -> None:
        self._turning = False
        asked, self._asked = self._asked, {}
        for serving, askings in asked.items():
            if serving.run_s > HEAVY_S or serving.busy:
                self._put_aside(serving, askings)
            else:
                for group in _groups(askings, serving.together, self._limits.rows):
                    for asking, found in _answers(serving, group):
                        asking.answer(found)

    def _put_aside(self, serving: Serving, askings: list[_Asking]) -> None:
        """A thread runs what waits; what comes meanwhile is its next run."""
        for asking in askings:
            if len(serving.waiting) >= self._limits.waiting:
                asking.answer(OverloadedError(f"{len(serving.waiting)} requests wait for {serving.name} already"))
            else:
                serving.waiting.append(asking)
        if not serving.busy and serving.waiting:
            self._start(serving)

    def _start(self, serving: Serving) -> None:
        if serving.thread is None:
            serving.thread = ThreadPoolExecutor(1, f"steersman-{serving.name}")
        serving.busy = True
        group = next(_groups(list(serving.waiting), serving.together, self._limits.rows))
        taken = {id(asking) for asking in group}
        serving.waiting = deque(asking for asking in serving.waiting if id(asking) not in taken)
        serving.thread.submit(self._run_aside, serving, group)

    def _run_aside(self, serving: Serving, group: list[_Asking]) -> None:
        found = list(_answers(serving, group))
        # After the time to drain is over the loop is closed, and nobody is left to tell.
        with contextlib.suppress(RuntimeError):
            self._soon_threadsafe(self._settle, serving, found)

    def _settle(self, serving: Serving, found: list[tuple[_Asking, list[Array] | Error]]) -> None:
        serving.busy = False
        if serving.waiting:
            self._start(serving)
        for asking, outputs in found:
            asking.answer(outputs)


def _groups(askings: list[_Asking], together: bool, limit: int) -> Iterator[list[_Asking]]:
    """Cut into runs: of one shape behind the rows, and not over the limit of rows."""
    if not together:
        yield from ([asking] for asking in askings)
        return
    shapes: dict[tuple[tuple[int, ...], ...], list[_Asking]] = {}
    for asking in askings:
        shapes.setdefault(tuple([array.shape[1:] for array in asking.feeds.values()]), []).append(asking)
    for alike in shapes.values():
        start = rows = 0
        for i, asking in enumerate(alike):
            if i > start and rows + asking.rows > limit:
                yield alike[start:i]
                start, rows = i, 0
            rows += asking.rows
        yield alike[start:]


def _answers(serving: Serving, group: list[_Asking]) -> Iterator[tuple[_Asking, list[Array] | Error]]:
    """Run a group at once; whoever can not be answered is told so, alone."""
    try:
        outputs = _run(serving, group)
    except Exception as error:  # a graph library raises what it likes; every request must get an answer
        if len(group) > 1:
            half = len(group) // 2
            yield from _answers(serving, group[:half])
            yield from _answers(serving, group[half:])
            return
        yield group[0], _as_error(error)
        return
    if len(group) == 1:
        yield group[0], outputs
        return
    start = 0
    for asking in group:
        end = start + asking.rows
        yield asking, [output[start:end] for output in outputs]
        start = end


def _run(serving: Serving, group: list[_Asking]) -> list[Array]:
    rows = sum(asking.rows for asking in group)
    if len(group) == 1:
        feeds = group[0].feeds
    else:
        feeds = {name: np.concatenate([asking.feeds[name] for asking in group]) for name in group[0].feeds}
    outputs = _run_feeds(serving, feeds, rows, [asking.feeds for asking in group])
    if len(group) > 1 and any(len(output) != rows for output in outputs):
        serving.together = False  # the probes were not like this
        raise Error(f"{serving.name}/{serving.number} did not give {rows} rows")
    return outputs


def _run_feeds(serving: Serving, feeds: Mapping[str, Array], rows: int, those: list[dict[str, Array]]) -> list[Array]:
    began = time.perf_counter()
    used = time.thread_time() if serving.timed else 0.0
    outputs = serving.model.run(feeds)
    if serving.timed:
        took = time.thread_time() - used
        if took <= LIGHT_S * len(those):
            took = min(took, HEAVY_S)
        serving.run_s += 0.1 * (took - serving.run_s)
    serving.timed = max(time.perf_counter() - began, serving.run_s) > NEAR_HEAVY_S
    if serving.runs % warmup.EVERY == 0:
        warmup.record(serving.recorded, those[0])
    serving.runs += 1
    serving.rows += rows
    return outputs


def _as_error(error: Exception) -> Error:
    return error if isinstance(error, Error) else Error(f"{type(error).__name__}: {error}")


def _prepared(name: str, number: int, model: Model, recorded: warmup.Recorded, first: bool) -> Serving:
    """Warm a model up, and find out how long it takes and whether rows may be put together.

    Raises:
        DataError: it can not answer what it must.
    """
    for feeds in model.warm_up:
        model.signature.check(feeds)
        model.run(feeds)
    warmup.try_on(model.signature, model.run, recorded, first)
    together, run_s = probed(model.signature, model.run)
    return Serving(name, number, model, checker(model.signature), together, run_s, recorded)
