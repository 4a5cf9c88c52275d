"""What makes a file or a directory last: written aside, fsynced, renamed, and its directory fsynced; and one writer."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steersman.core.errors import ConflictError


def fsync_directory(directory: Path) -> None:
    """Make the names in a directory last: a new file may be gone after a power loss until then."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directory(directory: Path) -> None:
    """Make a directory and its parents, each of them durable in its own parent."""
    missing = []
    path = directory
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        fsync_directory(path.parent)


def _name(error: BaseException, path: Path) -> None:
    """Say which file it was: the kernel does not where it refuses to write to an open one."""
    if isinstance(error, OSError) and error.errno and error.filename is None:
        error.filename = str(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; at the end it takes the place of `path`, whole and durable.

    If the body raises, what it wrote is removed and `path` stays as it was.
    """
    make_directory(path.parent)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        _name(error, path)
        raise
    fsync_directory(path.parent)


@contextmanager
def appearing(directory: Path) -> Iterator[Path]:
    """A directory beside `directory` to write files to; at the end it takes its name, whole and durable.

    If the body raises, what it wrote is removed.

    Raises:
        ConflictError: the directory is there already.
    """
    if directory.exists():
        raise ConflictError(f"{directory} is there already", hint="it is written once")
    make_directory(directory.parent)
    aside = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    shutil.rmtree(aside, ignore_errors=True)  # left by a process that died and had the same number
    aside.mkdir()
    try:
        yield aside
        for path in aside.rglob("*"):
            if path.is_dir():
                fsync_directory(path)
            else:
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        fsync_directory(aside)
        aside.rename(directory)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        _name(error, directory)
        raise
    fsync_directory(directory.parent)


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Hold a lock that no other process holds; it is the kernel's, so it ends with the process that holds it.

    Args:
        lock: the file that stands for it; it stays.
        what: is at work, for the error.
    Raises:
        ConflictError: another process holds it.
    """
    make_directory(lock.parent)
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(f"another {what} is running", hint="wait for its end") from None
        yield
    finally:
        os.close(fd)
