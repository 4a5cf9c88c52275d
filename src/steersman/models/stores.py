"""Where a warehouse keeps its files: a local disk, or any object storage that fsspec knows."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from steersman.core.errors import ConfigError, ConflictError
from steersman.engine.disk import appearing, make_directory, replacing

WARM_UP = "warmup.jsonl"
MOST_WARM_UP = 1000
TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


class Store(Protocol):
    """Files under one root. Paths are relative to it, parts joined by `/`."""

    def entries(self, path: str) -> list[str]:
        """Names of what is in a directory; none if there is no such directory."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        ...

    def read(self, path: str) -> bytes:
        """Raises FileNotFoundError if there is no such file."""
        ...

    def read_below(self, directory: str, path: str) -> bytes:
        """A file below a directory. Raises FileNotFoundError if it is not there, or elsewhere by a link."""
        ...

    def place(self, path: str, files: Mapping[str, bytes]) -> bool:
        """Make a directory of these files that nobody sees until its last file is whole; False: it exists."""
        ...

    def remove(self, path: str, first: str) -> None:
        """Remove a directory of files, the file `first` before all others; one that is not there is no error."""
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Write a file: who reads it finds the old bytes or the new ones, never a part."""
        ...

    def locked(self, path: str) -> AbstractContextManager[None]:
        """Keep other writers of a directory out while one reads, changes and writes it."""
        ...


def open_store(url: str) -> Store:
    """The store of a path or URL, e.g. `warehouse`, `s3://bucket/warehouse`, `memory://warehouse`.

    Raises:
        ConfigError: no storage is known under the URL's scheme, or its driver is not installed.
    """
    try:
        filesystem, root = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"warehouse {url!r} can not be opened: {error}", field="warehouse") from None
    if isinstance(filesystem, LocalFileSystem):
        return Disk(Path(root))
    return Objects(filesystem, root)


class Disk:
    """A local disk. What is written is fsynced before it appears, and its directory after.

    It is written aside, in a hidden directory beside its place, and renamed; what a writer that is killed leaves there
    nobody reads, and the next one removes it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def entries(self, path: str) -> list[str]:
        try:
            return os.listdir(self._root / path)  # noqa: PTH208  # names only: an entry may vanish meanwhile
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, path: str) -> bool:
        return (self._root / path).is_file()

    def read(self, path: str) -> bytes:
        try:
            return (self._root / path).read_bytes()
        except (NotADirectoryError, IsADirectoryError):
            raise FileNotFoundError(errno.ENOENT, "no such file", path) from None

    def read_below(self, directory: str, path: str) -> bytes:
        real = (self._root / directory / path).resolve()
        if not real.is_relative_to((self._root / directory).resolve()) or not real.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return real.read_bytes()

    def place(self, path: str, files: Mapping[str, bytes]) -> bool:
        try:
            with appearing(self._root / path) as aside:
                for name, data in files.items():
                    (aside / name).parent.mkdir(parents=True, exist_ok=True)
                    (aside / name).write_bytes(data)
        except ConflictError:
            return False
        except OSError as error:  # it appeared meanwhile
            if error.errno in TAKEN and (self._root / path).exists():
                return False
            raise
        return True

    def remove(self, path: str, first: str) -> None:
        target = self._root / path
        (target / first).unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)

    def replace(self, path: str, data: bytes) -> None:
        with replacing(self._root / path) as aside:
            aside.write_bytes(data)

    @contextmanager
    def locked(self, path: str) -> Iterator[None]:
        """The lock is the kernel's: it ends with its process, so a killed writer locks nobody out."""
        make_directory(self._root / path)
        with (self._root / path / ".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class Objects:
    """Object storage: no rename and no locks.

    A file of a directory is created only if it is not there, which gives the directory to one writer, who may find some
    that another left behind; the last file is the sign that the others are whole. Two who replace the same file at
    once: the last one wins.
    """

    def __init__(self, filesystem: Any, root: str) -> None:
        self._filesystem = filesystem
        self._root = root.rstrip("/")

    def entries(self, path: str) -> list[str]:
        self._filesystem.invalidate_cache()  # others write, too
        try:
            found = self._filesystem.ls(self._at(path), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [name.rstrip("/").rpartition("/")[2] for name in found]

    def exists(self, path: str) -> bool:
        self._filesystem.invalidate_cache()
        return self._filesystem.isfile(self._at(path))

    def read(self, path: str) -> bytes:
        return self._filesystem.cat_file(self._at(path))

    def read_below(self, directory: str, path: str) -> bytes:
        return self.read(f"{directory}/{path}")

    def place(self, path: str, files: Mapping[str, bytes]) -> bool:
        for name, data in files.items():
            try:
                self._filesystem.pipe_file(self._at(f"{path}/{name}"), data, mode="create")
            except OSError:  # not every driver says FileExistsError
                if self.exists(f"{path}/{name}"):
                    return False
                raise
        return True

    def remove(self, path: str, first: str) -> None:
        if self.exists(f"{path}/{first}"):
            self._filesystem.rm_file(self._at(f"{path}/{first}"))
        for name in self.entries(path):
            self._filesystem.rm_file(self._at(f"{path}/{name}"))

    def replace(self, path: str, data: bytes) -> None:
        self._filesystem.pipe_file(self._at(path), data)

    def locked(self, path: str) -> AbstractContextManager[None]:
        return nullcontext()

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"


def warm_up_of(store: Store, name: str) -> tuple[bytes, ...]:
    """Lines of `<name>/warmup.jsonl`: requests that a version must answer before it serves; the first 1,000."""
    try:
        text = store.read(f"{name}/{WARM_UP}")
    except FileNotFoundError:
        return ()
    lines = [line for line in text.splitlines() if line.strip()]
    return tuple(lines[:MOST_WARM_UP])
