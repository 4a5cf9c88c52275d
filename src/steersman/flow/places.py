"""Where verbs leave what they made for the next verb: builds/ and candidates/ of a project, found by digest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from steersman.config import Project
from steersman.core.errors import DataError, Error, NotFoundError
from steersman.engine.disk import beside, replacing

T = TypeVar("T")


class Candidate(Struct, frozen=True):
    """What `train` made: a policy that nobody was shown yet.

    Attributes:
        directory: holds policy/, and report.json and model.onnx once the verbs after `train` ran.
        build: directory of the build it was trained on.
        data: digest of the whole Batch of that build; where it was added to others, of all their digests.
        config: digest of the problem and of the learner's settings.
        policy: digest of the policy's files.
    """

    problem: str
    directory: str
    build: str
    data: str
    config: str
    policy: str
    learner: str
    seed: int


def now_us() -> int:
    """Microseconds since 1970, UTC: the only clock of the verbs."""
    return time.time_ns() // 1000


def code_version() -> str:
    """Version of Steersman."""
    return importlib.metadata.version("steersman")


def shadow_log(project: Project) -> Path:
    """Directory of the log of what versions in the shadow would have decided; no build reads it."""
    return project.log_directory.with_name(f"{project.log_directory.name}-shadow")


def place(project: Project, kind: str, name: str, digest: str) -> Path:
    """Directory of one thing of a kind (`builds`, `candidates`) of a problem."""
    return project.root / kind / name / digest[:12]


def scratch(project: Project, kind: str, name: str) -> AbstractContextManager[Path]:
    """An empty directory on the disk of a kind, gone at the end: what is made there can be moved to its place."""
    return beside(project.root / kind / name / "making")


def point(directory: Path) -> None:
    """Make this the latest of its kind."""
    write_bytes(directory.parent / "LATEST", directory.name.encode())


def pointed(project: Project, kind: str, name: str) -> str:
    """Name of the latest of a kind; empty: there is none."""
    pointer = project.root / kind / name / "LATEST"
    return pointer.read_text().strip() if pointer.exists() else ""


def latest(project: Project, kind: str, name: str, *, hint: str) -> Path:
    """Directory of the latest of a kind.

    Raises:
        NotFoundError: there is none, or the project has no such problem.
    """
    project.policy(name)
    digest = pointed(project, kind, name)
    if not digest:
        raise NotFoundError(f"{name}: nothing in {kind}/ yet", hint=hint)
    return place(project, kind, name, digest)


def write(path: Path, noun: Struct) -> None:
    """Replace a file as a whole by the noun as JSON."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(noun)))


def read(path: Path, kind: type[T]) -> T | None:
    """What `write` left there; None: there is no such file.

    Raises:
        DataError: it is damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, Error) as error:
        raise DataError(f"{path} is damaged: {error}", hint="restore it, or remove it") from None


def write_bytes(path: Path, body: bytes) -> None:
    """Replace a file as a whole: a reader sees the old one or the new one."""
    with replacing(path) as aside:
        aside.write_bytes(body)


def digest_of(*parts: Any) -> str:
    """SHA-256 of nouns and numbers."""
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def digest_of_files(directory: Path) -> str:
    """SHA-256 of all files below a directory, their names included."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def latest_candidate(project: Project, name: str) -> Candidate:
    """The candidate that the last `train` made."""
    at = latest(project, "candidates", name, hint=f"steersman train {name}")
    candidate = read_candidate(at)
    made_on = place(project, "builds", name, Path(candidate.build).name)
    return msgspec.structs.replace(candidate, build=str(made_on))  # a project may be moved


def read_candidate(at: Path) -> Candidate:
    """The candidate in a directory.

    Raises:
        NotFoundError: there is none.
        DataError: it is damaged.
    """
    candidate = read(at / "candidate.json", Candidate)
    if candidate is None:
        raise NotFoundError(f"{at} holds no candidate", hint="steersman train makes one")
    return msgspec.structs.replace(candidate, directory=str(at))
