"""Whether perturbed copies of a policy may decide: what lies in es/NAME/ for servers to read, and who writes it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from steersman.config import Project
from steersman.core.errors import ConflictError, DataError
from steersman.flow import places

STOPPED, RESUMED, WATCHED = "stopped.json", "resumed.json", "watched.json"
LOOK_S = 0.5
"""Seconds after which a server looks again whether copies may decide."""


class Stopped(Struct, frozen=True):
    """No copy of the policy decides any more, until `resume`.

    Attributes:
        version: whose copies decided.
        at: microseconds UTC.
        reason: in a sentence.
    """

    version: int
    at: int
    reason: str


class Resumed(Struct, frozen=True):
    """Sampling was begun again: what was logged before `at` breaks no guardrail any more."""

    at: int
    stopped: Stopped


class Watched(Struct, frozen=True):
    """The last look at the guardrails of a policy.

    Attributes:
        version: whose copies decide.
        at: microseconds UTC.
        until: copies may decide no longer than this without another look.
        copies, clean: units whose decisions were looked at.
        failed: why nothing could be looked at; empty: all was.
    """

    version: int
    at: int
    until: int
    copies: int
    clean: int
    failed: str = ""


def place(project: Project, name: str) -> Path:
    """The directory of a policy."""
    return project.root / "es" / name


def stop(project: Project, name: str, version: int, reason: str, as_of: int) -> None:
    """No copy of the policy decides any more, in any server, from its next look on; the first reason stays.

    Args:
        as_of: up to when the log was read, microseconds UTC: who resumed later meant this, too.
    """
    if stopped(project, name) is not None or resumed_at(project, name) > as_of:
        return
    places.write(place(project, name) / STOPPED, Stopped(version, places.now_us(), reason))


def resume(project: Project, name: str) -> Stopped:
    """Let copies decide again; gives why they had stopped.

    Raises:
        ConflictError: nothing had stopped them.
    """
    project.policy(name)
    was = stopped(project, name)
    if was is None:
        raise ConflictError(f"{name}: no guardrail stopped its copies", hint=f"steersman es init {name} makes some")
    places.write(place(project, name) / RESUMED, Resumed(places.now_us(), was))
    (place(project, name) / STOPPED).unlink()
    return was


def watched(project: Project, name: str, look: Watched) -> None:
    """Write down a look."""
    places.write(place(project, name) / WATCHED, look)


def last(project: Project, name: str) -> Watched | None:
    """The last look; None: there was none."""
    return places.read(place(project, name) / WATCHED, Watched)


def stopped(project: Project, name: str) -> Stopped | None:
    """Why copies decide no more; None: nothing stopped them."""
    return places.read(place(project, name) / STOPPED, Stopped)


def resumed_at(project: Project, name: str) -> int:
    """When sampling was begun again, microseconds UTC; 0: it never was."""
    found = places.read(place(project, name) / RESUMED, Resumed)
    return found.at if found else 0


def why_not(project: Project, name: str) -> str:
    """Why copies may not decide now; empty: they may.

    Where guardrails are declared they may only while somebody looks at these.
    """
    try:
        return _why_not(project, name)
    except DataError as error:
        return f"paused: {error}"


def _why_not(project: Project, name: str) -> str:
    was = stopped(project, name)
    if was is not None:
        return f"stopped: {was.reason}"
    if not project.policy(name).guardrails:
        return ""
    look = last(project, name)
    if look is None:
        return f"paused: nobody has looked at the guardrails yet; steersman es watch {name} does"
    if look.failed:
        return f"paused: the guardrails can not be looked at: {look.failed}"
    away = (places.now_us() - look.until) / 1e6
    return f"paused: the last look at the guardrails is {away:.0f} s too old" if away > 0 else ""


def looking(project: Project, name: str) -> Callable[[], str]:
    """`why_not`, asked at most every `LOOK_S`."""
    looked, why = time.monotonic(), why_not(project, name)

    def look() -> str:
        nonlocal looked, why
        if time.monotonic() - looked > LOOK_S:
            looked = time.monotonic()
            with contextlib.suppress(OSError):  # a disk that is away for a while: as it was
                why = why_not(project, name)
        return why

    return look
