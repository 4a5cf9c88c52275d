"""Encoder: the transforms of a problem's fields as one value with a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from msgspec import Struct

from steersman.core.decision import NO_TEXT, Candidate, Numbers, Value
from steersman.core.errors import DataError
from steersman.core.features.encode import encode, encode_ids
from steersman.core.features.raw import LONGEST, Raw, raw_of, spread
from steersman.core.features.transforms import EDGE, LIMIT, NO_POWER, Ids, Transform

_RULES = (LIMIT, EDGE, NO_POWER, "blake2b-63")
"""What decides the numbers beside the parameters."""


class Encoder(Struct, frozen=True, forbid_unknown_fields=True):
    """Rows to float32, for the context and for the candidates. Frozen: same digest, same numbers.

    Attributes:
        context: one transform a context field, sorted by name, so the order in the log can not matter.
        candidate: one transform a candidate feature, sorted by name.
        actions: ids of the named actions, sorted; they become a one-hot in front of the candidate's features.
            Empty: a candidate is known by its features only.
        numbers: the bounds of the action, if it is numbers; then there are no candidates.
    """

    context: tuple[Transform, ...] = ()
    candidate: tuple[Transform, ...] = ()
    actions: tuple[str, ...] = ()
    numbers: Numbers | None = None

    def __post_init__(self) -> None:
        for group in (self.context, self.candidate):
            names = [transform.name for transform in group]
            if names != sorted(set(names)):
                raise DataError(f"encoder fields must be sorted and different: {', '.join(names)}")
        if list(self.actions) != sorted(set(self.actions)):
            raise DataError(f"encoder actions must be sorted and different: {', '.join(self.actions)}")
        if self.numbers is not None and (self.candidate or self.actions):
            raise DataError("an encoder for numbers as actions has no candidates")

    @property
    def context_width(self) -> int:
        """F, the number of context columns."""
        return sum(transform.width for transform in self.context)

    @property
    def candidate_width(self) -> int:
        """A, the number of candidate columns."""
        return len(self.actions) + sum(transform.width for transform in self.candidate)

    @property
    def digest(self) -> str:
        """SHA-256 over all that decides the numbers; a mean of 1 and a mean of 1.0 are the same."""
        decides = msgspec.to_builtins(msgspec.convert(msgspec.to_builtins(self), Encoder))
        if self.numbers is None:
            del decides["numbers"]  # what is not there decides nothing
        lists = any(isinstance(transform, Ids) for transform in (*self.context, *self.candidate))
        rules = (*_RULES, LONGEST) if lists else _RULES
        return hashlib.sha256(msgspec.json.encode((rules, decides), order="sorted")).hexdigest()

    def context_columns(self) -> tuple[str, ...]:
        """[F] a name for every context column, for reports."""
        return _labels(self.context)

    def candidate_columns(self) -> tuple[str, ...]:
        """[A] a name for every candidate column, for reports."""
        return tuple(f"action={name}" for name in self.actions) + _labels(self.candidate)

    def raw_context(self, rows: Sequence[Mapping[str, Value]]) -> Raw:
        """[N] rows of the log or of requests to arrays. Fields the encoder does not know are left out.

        Raises:
            DataError: a field holds something else than its transform reads.
        """
        return raw_of(self.context, rows)

    def raw_candidates(self, rows: Sequence[Sequence[Candidate]], width: int) -> tuple[Raw, np.ndarray]:
        """Candidates of N rows, padded to `width`.

        Returns:
            their features as [N, K, ...] and their ids as [N, K] object (NO_TEXT where padded).
        Raises:
            DataError: a row has more than `width`, or a feature holds something else than its transform reads.
        """
        for i, candidates in enumerate(rows):
            if len(candidates) > width:
                raise DataError(f"row {i}: {len(candidates)} candidates do not fit into {width} places")
        place = np.arange(width) < np.array([len(candidates) for candidates in rows])[:, None]
        flat = [candidate for candidates in rows for candidate in candidates]
        raw = raw_of(self.candidate, [candidate.features for candidate in flat])
        ids = np.array([candidate.id for candidate in flat], dtype=object)
        return raw.spread(place), spread(ids, place, NO_TEXT)

    def encode_context(self, raw: Raw, out: np.ndarray | None = None) -> np.ndarray:
        """[N, F] f32 from `raw_context`.

        Args:
            out: [N, F] f32 to write into, e.g. some columns of a larger, memory-mapped array. None: a new one.
        """
        if out is None:
            out = np.empty((len(raw.numbers), self.context_width), dtype=np.float32)
        encode(self.context, raw, out)
        return out

    def encode_candidates(self, raw: Raw, ids: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """[N, K, A] f32 from `raw_candidates`; an id the encoder does not know is all zeros.

        Args:
            out: [N, K, A] f32 to write into. None: a new one.
        """
        if out is None:
            out = np.empty((*ids.shape, self.candidate_width), dtype=np.float32)
        names = len(self.actions)
        encode_ids(self.actions, ids, out[..., :names])
        encode(self.candidate, raw, out[..., names:])
        return out


def _labels(transforms: tuple[Transform, ...]) -> tuple[str, ...]:
    return tuple(label for transform in transforms for label in transform.labels)
