"""What makes a file or a directory last: written aside, fsynced, renamed, and its directory fsynced; and one writer.

What is written aside lies in a directory `.<name>.<random>.part`, which its process holds a lock on for as long as it
lives. What nobody holds any more was left by one that was killed: the next who writes beside it removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steersman.core.errors import ConflictError

_PART = re.compile(r"\..+\.[0-9a-f]{16}\.part")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


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
def beside(path: Path) -> Iterator[Path]:
    """An empty directory on the disk of `path`, gone at the end, or at the next call there if the process is killed."""
    make_directory(path.parent)
    sweep(path.parent)
    made: list[Path] = []
    locks: list[int] = []
    try:
        _hold(path, made, locks)
        yield made[-1]
    finally:  # whatever a signal raises, and wherever
        try:
            _remove(made)
        except BaseException:
            _remove(made)
            raise
        finally:
            for lock in locks:
                os.close(lock)


def sweep(directory: Path) -> int:
    """Remove what processes that died had been writing in a directory. Returns how many things.

    What a living process holds stays, whatever machine or container it runs in, as far as locks are seen there.
    """
    with os.scandir(directory) as entries:
        left = [entry.path for entry in entries if _PART.fullmatch(entry.name)]
    return sum(map(_is_swept, left))


def _is_swept(path: str) -> bool:
    try:
        lock = os.open(path, _FOLDER | os.O_NOFOLLOW)
    except OSError:
        return False  # somebody else was quicker, or it is none of ours
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
    except OSError:
        return False  # it is alive, or the disk knows no locks, or it is not ours to remove
    finally:
        os.close(lock)
    return True


def _hold(path: Path, made: list[Path], locks: list[int]) -> None:
    """Make a directory beside `path`, the last of `made`, and lock it by a descriptor, the last of `locks`."""
    while True:
        made.append(path.with_name(f".{path.name}.{secrets.token_hex(8)}.part"))
        made[-1].mkdir()
        try:
            locks.append(os.open(made[-1], _FOLDER))
        except FileNotFoundError:
            continue  # taken for a dead one's, before it was locked
        try:
            fcntl.flock(locks[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # the same, a moment later
        except OSError:
            return  # the disk knows no locks on directories, so nobody sweeps there
        if made[-1].is_dir():
            return


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to; at the end it takes the place of `path`, whole and durable.

    If the body raises, what it wrote is removed and `path` stays as it was.
    """
    with beside(path) as folder:
        aside = folder / path.name
        try:
            yield aside
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException as error:
            _name(error, path)
            raise
    fsync_directory(path.parent)


@contextmanager
def appearing(directory: Path) -> Iterator[Path]:
    """A directory to write files to; at the end it takes the name `directory`, whole and durable.

    If the body raises, what it wrote is removed.

    Raises:
        ConflictError: the directory is there already.
    """
    if directory.exists():
        raise ConflictError(f"{directory} is there already", hint="it is written once")
    with beside(directory) as aside:
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
