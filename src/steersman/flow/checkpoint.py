"""Where an interrupted training goes on: one .npz of arrays in the candidate's place, replaced as a whole. Data, never
code."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from steersman.core.errors import ConflictError, DataError
from steersman.core.report import Learned
from steersman.flow import places
from steersman.learn.packed import packed, unpacked

CHECKPOINT = "training.npz"
"""File of a candidate that is being trained, with all that it takes to go on."""

BEST = "best"
"""Directory of a candidate that is being trained, with the policy that is the best so far."""

_HEADER = "header"


class Identity(Struct, frozen=True):
    """What decides what comes out of a training.

    Attributes:
        data: digest of the Batch.
        config: digest of the problem and of the learner's settings.
        code: version of Steersman.
    """

    data: str
    config: str
    seed: int
    code: str

    def differs(self, other: Identity) -> str:
        """The first part that is not the other's, with both; empty: none."""
        for name in self.__struct_fields__:
            one, two = getattr(self, name), getattr(other, name)
            if one != two:
                return f"{name}: {str(one)[:12]} there, {str(two)[:12]} now"
        return ""


class _Header(Struct, frozen=True):
    of: Identity
    learned: tuple[Learned, ...]


@dataclass(frozen=True)
class Found:
    """A checkpoint.

    Attributes:
        arrays: the state of the learner.
        learned: what had been seen by then.
        done: steps.
    """

    arrays: Mapping[str, np.ndarray]
    learned: tuple[Learned, ...]
    done: int


@dataclass(frozen=True)
class Checkpoint:
    """Where an interrupted training goes on: one .npz of arrays, replaced as a whole. Data, never code."""

    place: Path
    identity: Identity

    def keep(self, arrays: Mapping[str, np.ndarray], learned: list[Learned]) -> None:
        """Replace the checkpoint."""
        header = msgspec.json.encode(_Header(self.identity, tuple(learned)))
        places.write_bytes(self.place / CHECKPOINT, packed({_HEADER: np.frombuffer(header, dtype=np.uint8), **arrays}))

    def found(self, name: str) -> Found | None:
        """The checkpoint of this training; None: it was never interrupted.

        Raises:
            ConflictError: there is none, but one with the same seed of other data, another config or another version.
            DataError: it is damaged.
        """
        own = self.place / CHECKPOINT
        for path in [own] if own.exists() else self._others():
            header, arrays = _read(path)
            what = header.of.differs(self.identity)
            if what and header.of.seed == self.identity.seed:
                raise ConflictError(
                    f"{name}: the training that was interrupted, in {path.parent}, is another one: {what}",
                    hint="build or configure as it was, or train without --resume, which begins anew and forgets it",
                )
            if not what:
                return Found(arrays, header.learned, int(arrays["done"]))
        return None

    def forget(self) -> None:
        """Remove what only a training that goes on needs."""
        (self.place / CHECKPOINT).unlink(missing_ok=True)
        shutil.rmtree(self.place / BEST, ignore_errors=True)

    def forget_all(self) -> None:
        """Forget the interrupted trainings of this problem with this seed."""
        for path in [self.place / CHECKPOINT, *self._others()]:
            if path.exists() and _read(path)[0].of.seed == self.identity.seed:
                Checkpoint(path.parent, self.identity).forget()

    def _others(self) -> list[Path]:
        return sorted(path for path in self.place.parent.glob(f"*/{CHECKPOINT}") if path.parent != self.place)


def _read(path: Path) -> tuple[_Header, dict[str, np.ndarray]]:
    try:
        arrays = unpacked(path.read_bytes(), path)
        return msgspec.json.decode(arrays.pop(_HEADER).tobytes(), type=_Header), arrays
    except (DataError, KeyError, msgspec.DecodeError) as error:
        raise DataError(f"{path} is damaged: {error}", hint="remove it, and train without --resume") from None
