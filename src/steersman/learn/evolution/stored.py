"""A search on disk: one file with all that it goes on from, and nothing that it could not go on from to the bit."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from steersman.core.errors import DataError, Error, NotFoundError
from steersman.learn.evolution.search import Past, Search, Settings
from steersman.learn.packed import read_sealed, write_sealed


class _Past(Struct, frozen=True, forbid_unknown_fields=True):
    generation: int
    digest: str


class _Stored(Struct, frozen=True, forbid_unknown_fields=True):
    """What the file holds beside the arrays."""

    settings: Settings
    run: str
    generation: int
    digest: str
    past: tuple[_Past, ...]


def save(search: Search, path: Path) -> None:
    """Write a search to a file that appears whole; one that is there is replaced. The same search, the same bytes."""
    about = _Stored(
        settings=search.settings,
        run=search.run.hex(),
        generation=search.generation,
        digest=search.digest,
        past=tuple(_Past(past.generation, past.digest) for past in search.past),
    )
    arrays = {f"now.{name}": array for name, array in search.arrays.items()}
    for past in search.past:
        arrays |= {f"past.{past.generation}.{name}": array for name, array in past.arrays.items()}
    write_sealed({"about": np.frombuffer(msgspec.json.encode(about), dtype=np.uint8)} | arrays, path)


def load(path: Path) -> Search:
    """Read a search that `save` wrote.

    Raises:
        NotFoundError: there is none.
        DataError: the file is damaged, or its parameters are not those that were perturbed.
    """
    try:
        arrays = read_sealed(path, hint="go back to the version before, which has its own")
        about = msgspec.json.decode(arrays.pop("about").tobytes(), type=_Stored)
    except FileNotFoundError:
        raise NotFoundError(f"{path} is not there", hint="steersman es init makes one") from None
    except (KeyError, msgspec.MsgspecError, Error) as error:
        raise DataError(f"{path} holds no search: {error}") from None
    search = Search(
        settings=about.settings,
        run=bytes.fromhex(about.run),
        generation=about.generation,
        arrays=_of(arrays, "now."),
        past=tuple(Past(past.generation, past.digest, _of(arrays, f"past.{past.generation}.")) for past in about.past),
    )
    if search.digest != about.digest:
        raise DataError(f"{path} has the parameters {search.digest[:12]}, and says {about.digest[:12]}")
    return search


def _of(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
