"""What a build gives: rows in their order, the Batch they become, and the count of all that did not enter."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from msgspec import Struct

from steersman.core.batch import Batch
from steersman.core.features import Encoder, Raw
from steersman.core.profile import Profile
from steersman.core.shared import is_shared
from steersman.core.slots import Slots
from steersman.engine.disk import replacing

CONTEXT_NUMBERS = "context_numbers"
DECISION_IDS = "decision_ids"

_BLOCK = 16_384
"""Rows that are encoded at once."""


class Files(Protocol):
    """The Parquet files of a log."""

    @property
    def decisions(self) -> Sequence[str]:
        """Of one problem. They may hold decisions outside the window."""

    @property
    def outcomes(self) -> Sequence[str]:
        """They may hold outcomes of other problems and other windows."""


class Counts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What entered a build and what did not.

    Every decision logged in the window is in exactly one of `decisions`, `waiting`, `duplicates`, `deferred`,
    `too_long`, `too_late`; every episode in exactly one of `terminated`, `truncated`, `open`.

    Attributes:
        decisions: rows of the Batch.
        waiting: decisions of the window whose wait is not over.
        duplicates: further decisions of the window with an id that was seen before.
        deferred: decisions that nobody said were carried out.
        too_long: decisions of the episodes that are longer than most, and were left out on demand.
        long_episodes: those episodes.
        max_length: decisions of the longest episode that was allowed to stay; None: any.
        too_late: decisions too long after the start of their episode, left out on demand.
        estimated: rows whose propensity is an estimate.
        outcomes: that count: of a row, in time.
        late: outcomes of a row that came after its wait, and are not used.
        off_list: outcomes in time about an item that the ranked list did not have; they are not used.
        late_ends: rows whose episode was closed by an `ends` that came late.
        dangling: outcomes stamped within the window whose decision is not in the files. The log of outcomes is one
            for all problems and does not stop at a window, so the outcomes of other problems and of decisions before
            the files are in this number: it means something for a log of one problem, read from its beginning.
        duplicate_outcomes: further outcomes with an id that was seen before, among all that were read.
        without_outcome: rows without any outcome in time.
        units, episodes: in the Batch.
        terminated: episodes the world ended.
        truncated: episodes somebody ended: `truncated`, the horizon, or an `ends` that came late.
        open: episodes whose last row has a next step that was not seen.
        begun: episodes that began before the window: their first decision is not in the Batch.
    """

    decisions: int
    waiting: int
    duplicates: int
    outcomes: int
    late: int
    late_ends: int
    dangling: int
    duplicate_outcomes: int
    without_outcome: int
    units: int
    episodes: int
    terminated: int
    truncated: int
    open: int
    deferred: int = 0
    too_long: int = 0
    long_episodes: int = 0
    max_length: int | None = None
    too_late: int = 0
    estimated: int = 0
    off_list: int = 0
    begun: int = 0


@dataclass(frozen=True, eq=False)
class RawRows:
    """The rows of a Batch before the encoder, in the same order: an exported graph must give the same from these.

    Attributes:
        context: numbers [N, C] f64, texts [N, T] object.
        candidates: numbers [N, K, C'] f64, texts [N, K, T'] object; broadcast views where all rows have the same.
        ids: [N, K] object, ids of the candidates, ascending in a row; NO_TEXT where padded.
    """

    context: Raw
    candidates: Raw
    ids: np.ndarray


def coded_as(name: str, texts: np.ndarray) -> dict[str, np.ndarray]:
    """[...] object (str) as three arrays: the different texts as UTF-8 one after the other, where each ends, and
    which one stands where. Without the repeats of a broadcast view."""
    rows = without_repeats(texts)
    flat = rows.ravel().tolist()
    code_of = {text: code for code, text in enumerate(dict.fromkeys(flat))}
    encoded = [text.encode() for text in code_of]
    codes = np.fromiter(map(code_of.__getitem__, flat), dtype=np.int64, count=len(flat))
    return {
        f"{name}.codes": codes.reshape(rows.shape),
        f"{name}.ends": np.cumsum([len(text) for text in encoded], dtype=np.int64),
        f"{name}.utf8": np.frombuffer(b"".join(encoded), dtype=np.uint8),
    }


def without_repeats(array: np.ndarray) -> np.ndarray:
    """Of a broadcast array the row that all rows are; an array without columns has rows that are alike too."""
    return array[:1] if is_shared(array) or array.size == 0 else array


@dataclass(frozen=True, eq=False)
class Ids:
    """Ids of decisions as their bytes; texts are made of them when somebody asks, for ten million are a gigabyte.

    Attributes:
        codes: [N] i64, which of the texts the id of each is.
        ends: [T] i64, where each text ends.
        utf8: [bytes] u8, the texts one after the other.
    """

    codes: np.ndarray
    ends: np.ndarray
    utf8: np.ndarray

    def values(self) -> np.ndarray:
        """[N] object."""
        return texts_of(self.ends, self.utf8)[self.codes]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """As `coded_as` has them."""
        return {f"{DECISION_IDS}.{name}": getattr(self, name) for name in ("codes", "ends", "utf8")}


def texts_of(ends: np.ndarray, utf8: np.ndarray) -> np.ndarray:
    """[T] object, the texts of which `coded_as` tells where they end."""
    stops, body = ends.tolist(), utf8.tobytes()
    return np.array([body[start:stop].decode() for start, stop in zip([0, *stops], stops, strict=False)], dtype=object)


@dataclass(frozen=True, eq=False)
class Built:
    """N decisions in the order of their episodes, joined with what came of them.

    Attributes:
        encoder: makes the Batch out of the raw rows.
        raw: the rows as logged.
        at: [N] i64, when each decision was made, microseconds UTC.
        mask, action, propensity, reward, metrics, discount, next, unit, limited, begun, metric_names: as in Batch.
        ids: of the decisions.
        draws: [U] f64 in [0, 1), one a unit: a hash of its name, so that a unit keeps its draw in every build.
        profiles: of the fields, if the encoder was fitted in this build.
        since, until: the window of decisions, microseconds UTC.
        directory: where it lies on disk; None: in memory.
        digests: of arrays that were written while they were made, so that nobody reads them again for it.
    """

    encoder: Encoder
    raw: RawRows
    mask: np.ndarray
    action: np.ndarray
    propensity: np.ndarray
    reward: np.ndarray
    metrics: np.ndarray
    discount: np.ndarray
    next: np.ndarray
    unit: np.ndarray
    limited: np.ndarray
    begun: np.ndarray
    metric_names: tuple[str, ...]
    at: np.ndarray
    ids: Ids
    draws: np.ndarray
    counts: Counts
    since: int
    until: int
    profiles: tuple[Profile, ...] = ()
    directory: Path | None = None
    digests: Mapping[str, bytes] = field(default_factory=dict)
    slots: Slots | None = None

    def __len__(self) -> int:
        return len(self.action)

    @functools.cached_property
    def batch(self) -> Batch:
        """The rows as a Batch. Of a build on disk the encoded columns are put beside it, once, and mapped."""
        return Batch(
            encoder=self.encoder,
            context=self._encoded("context", (len(self), self.encoder.context_width), self._context),
            candidates=self._candidates(),
            metric_names=self.metric_names,
            slots=self.slots,
            **{name: getattr(self, name) for name in STEPS},
        )

    @functools.cached_property
    def decision_ids(self) -> np.ndarray:
        """[N] object, id of every row."""
        return self.ids.values()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over all that the Batch is made from: the same log, window and encoder, the same digest."""
        total = hashlib.sha256(self.encoder.digest.encode())
        total.update("\x1f".join(self.metric_names).encode())
        with ThreadPoolExecutor(2) as threads:  # hashing lets other threads run
            unknown = [name for name in self.arrays if name not in self.digests]
            found = threads.map(_digest, (self.arrays[name] for name in unknown))
            digests = {**self.digests, **dict(zip(unknown, found, strict=True))}
        for name in self.arrays:
            total.update(name.encode() + digests[name])
        return total.hexdigest()

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name, texts as numbers, without the repeats of broadcast views."""
        found = {name: without_repeats(getattr(self, name)) for name in STEPS}
        for name, raw in (("context", self.raw.context), ("candidate", self.raw.candidates)):
            found[f"{name}_numbers"] = without_repeats(raw.numbers)
            found[f"{name}_lists"] = without_repeats(raw.lists)
            found |= coded_as(f"{name}_texts", raw.texts)
        found |= coded_as("candidate_ids", self.raw.ids)
        found["draws"] = self.draws
        found["at"] = self.at
        if self.slots is not None:
            found |= {f"slots_{name}": array for name, array in self.slots.arrays.items()}
        return found

    def _candidates(self) -> np.ndarray:
        """[N, K, A] f32; padding is zeros; a broadcast view where all rows have the same."""
        n, k = self.mask.shape
        width = self.encoder.candidate_width
        if is_shared(self.raw.ids):
            return np.broadcast_to(self._offered(slice(0, 1)), (n, k, width))
        return self._encoded("candidates", (n, k, width), self._offered)

    def _context(self, rows: slice) -> np.ndarray:
        return self.encoder.encode_context(self.raw.context.take(rows))

    def _offered(self, rows: slice) -> np.ndarray:
        encoded = self.encoder.encode_candidates(self.raw.candidates.take(rows), self.raw.ids[rows])
        encoded[~self.mask[rows]] = 0.0
        return encoded

    def _encoded(self, name: str, shape: tuple[int, ...], encode: Callable[[slice], np.ndarray]) -> np.ndarray:
        """The rows in blocks; of a build on disk the file of them, made again if it is not what was written."""
        blocks = [slice(start, start + _BLOCK) for start in range(0, len(self), _BLOCK)]
        if self.directory is None:
            out = np.empty(shape, dtype=np.float32)
            for rows in blocks:
                out[rows] = encode(rows)
            return out
        path = self.directory / f"encoded_{name}.npy"
        if not _is_sealed(path):
            digest = hashlib.sha256()
            # Written, not mapped: on a full disk that is an error, and a mapped page would end the process.
            with replacing(path) as aside, aside.open("wb") as file:
                write_header(file, shape, np.dtype(np.float32))
                for rows in blocks:
                    block = np.ascontiguousarray(encode(rows))
                    digest.update(block.data)
                    file.write(block.data)
            with replacing(_seal(path)) as aside:
                aside.write_text(f"{digest.hexdigest()} {_code()}")
        return np.load(path, mmap_mode="r", allow_pickle=False)


STEPS = ("mask", "action", "propensity", "reward", "metrics", "discount", "next", "unit", "limited", "begun")
"""Names of the arrays of a Batch that a Built has as they are."""


def _digest(array: np.ndarray) -> bytes:
    digest = digest_of(array.shape, array.dtype)
    digest.update(np.ascontiguousarray(array.T).data)
    return digest.digest()


def digest_of(shape: tuple[int, ...], dtype: np.dtype) -> hashlib._Hash:
    """The digest of an array, before its numbers: by columns, as those of the context lie."""
    return hashlib.sha256(f"{shape}{dtype.str}".encode())


def write_header(file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype, *, by_columns: bool = False) -> None:
    """What stands before the numbers of a .npy file."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": by_columns, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)


def _is_sealed(path: Path) -> bool:
    """Whether a file of encoded rows is what this version of Steersman wrote: nothing else knows of damage to it."""
    seal = _seal(path)
    if not (path.exists() and seal.exists()):
        return False
    encoded = np.load(path, mmap_mode="r", allow_pickle=False)
    return seal.read_text() == f"{hashlib.sha256(encoded.data).hexdigest()} {_code()}"


def _seal(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _code() -> str:
    return importlib.metadata.version("steersman")
