"""The warehouse: versions that are written once, and the aliases that point at them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from steersman.core.decision import NAME
from steersman.core.errors import ConflictError, DataError, Error, NotFoundError, did_you_mean
from steersman.core.features import Encoder
from steersman.core.policy import Explorer
from steersman.core.report import Report
from steersman.core.version import Parents, Rollout, Version
from steersman.models.stores import open_store, warm_up_of

MODEL = "model.onnx"
VERSION = "version.json"
REPORT = "report.json"
PAGE = "report.html"
ALIASES = "aliases.json"
CHAMPION = "champion"
"""Alias of the version that decides."""

LATEST = "latest"
NUMBER = re.compile(r"[1-9][0-9]{0,17}")
DIGITS = re.compile(r"-?[0-9]+")


class Draft(Struct, frozen=True, kw_only=True):
    """A version that has no number yet; the fields are those of Version."""

    name: str
    encoder: Encoder
    explorer: Explorer
    seed: str
    parents: Parents
    report: Report | None = None
    forced: bool = False
    made_at: int


class Move(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An alias was set.

    Attributes:
        alias: e.g. `champion`.
        number: of the version it points at from then on.
        at: microseconds UTC.
        previous: where it pointed before; None: nowhere.
        rollback: it went back to where it had pointed.
    """

    alias: str
    number: int
    at: int
    previous: int | None = None
    rollback: bool = False


class Aliases(Struct, frozen=True):
    """What aliases.json holds: where every alias points, every move that led there and every rollout, oldest first."""

    aliases: dict[str, int] = {}
    history: tuple[Move, ...] = ()
    rollouts: tuple[Rollout, ...] = ()

    @property
    def rollout(self) -> Rollout | None:
        """The one that goes on."""
        return self.rollouts[-1] if self.rollouts and self.rollouts[-1].running else None


class Warehouse:
    """`<root>/<name>/<number>/{model.onnx, report.json, report.html, version.json}` and `<root>/<name>/aliases.json`.

    A directory is a version if its name is an integer as we write it (`7`, not `007`) and it holds version.json,
    which is written last: on a local disk it appears whole or not at all, by a rename; on object storage it counts
    from the moment version.json is there. Model servers that poll `<base>/<name>/<integer>/` can read it as it is.

    Args:
        url: a path, or any URL that fsspec knows.
    Raises:
        ConfigError: the URL has no known scheme.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._store = open_store(url)

    def publish(self, draft: Draft, graph: bytes, page: str = "") -> Version:
        """Store a policy under the next number. Of two who publish at once, each gets a number of its own.

        Args:
            graph: a composed ONNX graph.
            page: the report for people, as HTML; empty: none is stored.
        Raises:
            DataError: the name is not one, or a field of the draft is not of its type.
        """
        _check_name(draft.name)
        draft = _checked(draft)
        fields = {field: getattr(draft, field) for field in draft.__struct_fields__}
        number = max(_numbers(self._store.entries(draft.name)), default=0) + 1
        decides = digest(graph, draft.encoder, draft.explorer, draft.seed)
        while True:
            version = Version(number=number, digest=decides, graph=MODEL, **fields)
            report = {} if draft.report is None else {REPORT: _json(draft.report)}
            report |= {PAGE: page.encode()} if page else {}
            if self._store.place(f"{draft.name}/{number}", {MODEL: graph, **report, VERSION: _json(version)}):
                return version
            number += 1

    def read(self, name: str, number: int) -> tuple[Version, bytes]:
        """A version and its graph, as they were published.

        Raises:
            NotFoundError: there is no such version.
            DataError: a file of it is damaged.
        """
        _check_name(name)
        at = f"{name}/{number:d}"
        try:
            text = self._store.read(f"{at}/{VERSION}")
        except FileNotFoundError:
            raise self._not_found(name, str(number)) from None
        version = self._decode(text, f"{at}/{VERSION}", Version)
        if (version.name, version.number, version.graph) != (name, number, MODEL):
            raise DataError(
                f"{self.url}/{at}/{VERSION} is of {version.name}/{version.number} with {version.graph}",
                hint="a version is never moved: publish it again",
            )
        try:
            graph = self._store.read(f"{at}/{MODEL}")
        except FileNotFoundError:
            raise DataError(f"{self.url}/{at}/{MODEL} is gone", hint="restore it, or publish it again") from None
        found = digest(graph, version.encoder, version.explorer, version.seed)
        if found != version.digest:
            raise DataError(
                f"{self.url}/{at}/{MODEL} ({len(graph)} bytes) is damaged: "
                f"digest {found[:12]}, {VERSION} says {version.digest[:12]}",
                hint="restore the version from a copy, or publish it again",
            )
        return version, graph

    def warm_up(self, name: str) -> tuple[bytes, ...]:
        """Bodies of decide requests that every version must answer before it decides; none if nobody wrote them."""
        _check_name(name)
        return warm_up_of(self._store, name)

    def names(self) -> tuple[str, ...]:
        """Names of the policies that have a version, sorted."""
        names = sorted(name for name in self._store.entries("") if NAME.fullmatch(name))
        return tuple(name for name in names if self._latest(name))

    def numbers(self, name: str) -> tuple[int, ...]:
        """Numbers of the versions there are, ascending; none if there is no such policy."""
        _check_name(name)
        return tuple(number for number in _numbers(self._store.entries(name)) if self._has(name, number))

    def resolve(self, name: str, reference: str | int) -> int:
        """The number that a number, an alias or `latest` stands for.

        Raises:
            NotFoundError: there is no such policy, version or alias.
        """
        _check_name(name)
        text = str(reference)
        if text == LATEST:
            number = self._latest(name)
        elif DIGITS.fullmatch(text):
            number = next((number for number in _numbers([text]) if self._has(name, number)), 0)
        else:
            _check_alias(text)
            number = self.aliases(name).get(text, 0)
        if number:
            return number
        raise self._not_found(name, text)

    def aliases(self, name: str) -> dict[str, int]:
        """Where every alias of a policy points."""
        return self._aliases(name).aliases

    def history(self, name: str) -> tuple[Move, ...]:
        """Every move of an alias of a policy, oldest first."""
        return self._aliases(name).history

    def set_alias(self, name: str, alias: str, number: int, at: int) -> None:
        """Point an alias at a version; pointing it where it points already is no move.

        Args:
            at: microseconds UTC.
        Raises:
            NotFoundError: there is no such version.
            DataError: the alias is not a name, or is `latest`.
        """
        _check_name(name)
        _check_alias(alias)
        if not self._has(name, number):
            raise self._not_found(name, str(number))
        with self._store.locked(name):
            now = self._aliases(name)
            previous = now.aliases.get(alias)
            if previous != number:
                self._move(name, now, Move(alias=alias, number=number, at=at, previous=previous))

    def rollback(self, name: str, alias: str, at: int) -> int:
        """Point an alias where it pointed before; again: one further back.

        Returns:
            the number it points at now.
        Raises:
            NotFoundError: there is no such alias, or the version before is gone.
            ConflictError: it has not pointed anywhere else.
        """
        _check_name(name)
        _check_alias(alias)
        if alias not in self.aliases(name):
            raise self._not_found(name, alias)
        with self._store.locked(name):
            now = self._aliases(name)
            trail = _trail(now.history, alias)
            if len(trail) < 2:
                raise ConflictError(
                    f"{name}@{alias} has pointed at version {now.aliases[alias]} only",
                    hint=f"steersman promote {name}@VERSION points it elsewhere",
                )
            back = trail[-2]
            if not self._has(name, back):
                raise self._not_found(name, str(back))
            self._move(name, now, Move(alias=alias, number=back, at=at, previous=now.aliases[alias], rollback=True))
        return back

    def pointed(self, name: str) -> frozenset[int]:
        """Versions that an alias or a rollout that goes on points at."""
        now = self._aliases(name)
        rollout = {now.rollout.baseline, now.rollout.candidate} if now.rollout else set[int]()
        return frozenset({*now.aliases.values(), *rollout})

    def remove(self, name: str, number: int) -> None:
        """Remove a version for good; one that is not there is no error. Its decisions can not be replayed any more.

        Raises:
            ConflictError: an alias or a rollout points at it.
        """
        _check_name(name)
        with self._store.locked(name):
            if number in self.pointed(name):
                raise ConflictError(f"{name}/{number} is pointed at", hint="move its alias, or end its rollout")
            self._store.remove(f"{name}/{number:d}", first=VERSION)

    def deployed(self, name: str) -> int | Rollout | None:
        """What decides: the champion's number, or the rollout of another version beside it; None: nothing does."""
        now = self._aliases(name)
        return now.rollout or now.aliases.get(CHAMPION)

    def rollouts(self, name: str) -> tuple[Rollout, ...]:
        """Every state of every rollout of a policy, oldest first."""
        return self._aliases(name).rollouts

    def roll_out(self, name: str, candidate: int, share: float, at: int) -> Rollout:
        """Give a share of the units to a version beside the champion; 0: it is in the shadow.

        A first share is a canary's, one after it a ramp's. A rollout ends when the champion moves: it is done if it
        moves to the candidate, else backed out.

        Args:
            share: in [0, 1).
            at: microseconds UTC.
        Raises:
            NotFoundError: there is no champion, or no such version.
            DataError: the candidate is the champion, or the share is not in [0, 1).
        """
        _check_name(name)
        if not self._has(name, candidate):
            raise self._not_found(name, str(candidate))
        with self._store.locked(name):
            now = self._aliases(name)
            if CHAMPION not in now.aliases:
                raise self._not_found(name, CHAMPION)
            before = now.rollout
            again = before is not None and before.candidate == candidate and before.state != "shadow"
            state: Any = "shadow" if share == 0 else "ramp" if again else "canary"
            rollout = Rollout(
                problem=name, baseline=now.aliases[CHAMPION], candidate=candidate, share=share, state=state, since=at
            )
            ended = (_ended(before, "backed out", at),) if before and before.candidate != candidate else ()
            self._write(name, Aliases(now.aliases, now.history, (*now.rollouts, *ended, rollout)))
        return rollout

    def back_out(self, name: str, at: int) -> Rollout:
        """End the rollout: the champion decides everything again.

        Raises:
            ConflictError: there is none.
        """
        _check_name(name)
        with self._store.locked(name):
            now = self._aliases(name)
            if now.rollout is None:
                raise ConflictError(f"{name} has no rollout", hint="its champion decides everything already")
            ended = _ended(now.rollout, "backed out", at)
            self._write(name, Aliases(now.aliases, now.history, (*now.rollouts, ended)))
        return ended

    def _move(self, name: str, now: Aliases, move: Move) -> None:
        rollouts = now.rollouts
        if now.rollout and move.alias == CHAMPION:
            state = "done" if move.number == now.rollout.candidate else "backed out"
            rollouts = (*rollouts, _ended(now.rollout, state, move.at))
        self._write(name, Aliases(now.aliases | {move.alias: move.number}, (*now.history, move), rollouts))

    def _write(self, name: str, then: Aliases) -> None:
        self._store.replace(f"{name}/{ALIASES}", _json(then))

    def _aliases(self, name: str) -> Aliases:
        _check_name(name)
        try:
            text = self._store.read(f"{name}/{ALIASES}")
        except FileNotFoundError:
            return Aliases()
        return self._decode(text, f"{name}/{ALIASES}", Aliases)

    def _has(self, name: str, number: int) -> bool:
        return self._store.exists(f"{name}/{number:d}/{VERSION}")

    def _latest(self, name: str) -> int:
        """The highest number, 0 if there is none. Looks from the top, so that many versions cost nothing."""
        numbers = reversed(_numbers(self._store.entries(name)))
        return next((number for number in numbers if self._has(name, number)), 0)

    def _not_found(self, name: str, reference: str) -> NotFoundError:
        numbers = self.numbers(name)
        if not numbers:
            return NotFoundError(
                f"the warehouse {self.url} has no policy {name!r}", hint=did_you_mean(name, self.names())
            )
        if DIGITS.fullmatch(reference):
            hint = f"it has {len(numbers)} versions, {numbers[0]} to {numbers[-1]}"
            return NotFoundError(f"policy {name} has no version {reference}", hint=hint)
        hint = did_you_mean(reference, [*self.aliases(name), LATEST])
        return NotFoundError(f"policy {name} has no alias {reference!r}", hint=hint)

    def _decode(self, text: bytes, path: str, kind: type) -> Any:
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, Error) as error:
            raise DataError(f"{self.url}/{path} is damaged: {error}", hint="restore it from a copy") from None


def digest(graph: bytes, encoder: Encoder, explorer: Explorer, seed: str) -> str:
    """SHA-256 over all that decides: same digest, same decisions."""
    parts = (
        hashlib.sha256(graph).hexdigest(),
        encoder.digest,
        msgspec.json.encode(explorer, order="sorted").decode(),
        seed,
    )
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def _ended(rollout: Rollout, state: Any, at: int) -> Rollout:
    return msgspec.structs.replace(rollout, state=state, share=float(state == "done"), since=at)


def _checked(draft: Draft) -> Draft:
    """The draft as it will be read: an int where a float belongs would give another digest."""
    try:
        return msgspec.json.decode(_json(draft), type=Draft)
    except (msgspec.MsgspecError, UnicodeEncodeError, Error) as error:
        raise DataError(f"the draft of {draft.name} can not be stored: {error}") from None


def _numbers(names: Iterable[str]) -> list[int]:
    """The integers among the names, as we write them: no sign, no leading zero, no other digits."""
    return sorted(int(name) for name in names if NUMBER.fullmatch(name))


def _trail(history: Iterable[Move], alias: str) -> list[int]:
    """Where an alias pointed, oldest first, without what a rollback took back."""
    trail: list[int] = []
    for move in history:
        if move.alias != alias:
            continue
        if not trail and move.previous is not None:
            trail.append(move.previous)
        if move.rollback:
            del trail[-1:]
        else:
            trail.append(move.number)
    return trail


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise DataError(
            f"policy name {name[:80]!r} must match {NAME.pattern}",
            hint="letters, digits, - and _, a letter first; it is a folder of the warehouse",
            field="name",
        )


def _check_alias(alias: str) -> None:
    if not NAME.fullmatch(alias) or alias == LATEST:
        raise DataError(
            f"alias {alias[:80]!r} must match {NAME.pattern} and not be {LATEST}",
            hint=f"letters, digits, - and _, a letter first; {LATEST} is always the highest number",
            field="alias",
        )


def _json(noun: Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(noun), indent=2) + b"\n"
