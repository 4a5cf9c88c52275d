"""Batch: arrays of fixed name, shape and dtype; valid or not alive."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass, fields

import numpy as np

from steersman.core.density import within
from steersman.core.errors import DataError
from steersman.core.features import Encoder
from steersman.core.shared import all_alike, is_shared, once
from steersman.core.slots import Slots

Array = np.ndarray

ROWS = 65_536
"""Rows that are looked at together."""

_NO = np.zeros(0, dtype=bool)
"""Of no row."""


@dataclass(frozen=True, eq=False)
class Batch:
    """N decisions as arrays, in the order of their episodes.

    How an episode goes on after its last row here is one of three things: terminated (discount 0: the world ended it),
    limited (a rule of the product ended it, so its return is complete, though its last state may be worth something),
    or not seen (next -1 and neither: something came, we do not know what).

    Attributes:
        encoder: what made the columns; without it the numbers mean nothing.
        context: [N, F] f32.
        candidates: [N, K, A] f32; rows of padding are zeros. May be a broadcast view.
        mask: [N, K] bool, True where there is a candidate.
        action: [N] i64, place of the action among the candidates; [N, L] i64 for ranked lists, the places of their
            items from the first slot on, -1 behind the last; or [N, D] f32 for numbers, within the bounds that the
            encoder has; then K and A are 0.
        propensity: [N] f64, of the action under the behavior policy, in (0, 1]; a density for numbers.
        reward: [N] f64; of a ranked list the sum over its slots.
        metrics: [N, M] f64, in the order of `metric_names`; NaN where the metric did not arrive.
        discount: [N] f64 in [0, 1]: of the value of the next step; 0: terminated.
        next: [N] i64, row of the next step of the same episode, -1: not seen. Always a later row.
        unit: [N] i64, whose decision it is: the cluster of every interval.
        metric_names: [M].
        limited: [N] bool, a limit of the product, in steps or in time, ended the episode here. Left out: none.
        begun: [N] bool, the row's episode began before its first row here. Left out: none.
        slots: what else is known of ranked lists; None: the action is something else.
    """

    encoder: Encoder
    context: Array
    candidates: Array
    mask: Array
    action: Array
    propensity: Array
    reward: Array
    metrics: Array
    discount: Array
    next: Array
    unit: Array
    metric_names: tuple[str, ...] = ()
    limited: Array = dataclasses.field(default_factory=lambda: _NO)
    begun: Array = dataclasses.field(default_factory=lambda: _NO)
    slots: Slots | None = None

    def __post_init__(self) -> None:
        for name in ("limited", "begun"):
            if getattr(self, name) is _NO:
                object.__setattr__(self, name, np.zeros(len(self), dtype=bool))
        self._check_shapes()
        self._check_values()
        if self.slots is not None:
            self.slots.check(self.action, self.mask, self.propensity, self.reward, len(self.metric_names))

    def __len__(self) -> int:
        return len(self.context)

    @property
    def numbers(self) -> bool:
        """Whether the action is a vector of numbers."""
        return self.action.dtype == np.float32

    @property
    def ranked(self) -> bool:
        """Whether the action is a ranked list."""
        return self.slots is not None

    @property
    def terminated(self) -> Array:
        """[N] bool."""
        return self.discount == 0

    @property
    def over(self) -> Array:
        """[N] bool, the episode is over after this row, by the world or by a rule: no reward of it is missing."""
        return self.terminated | self.limited

    @functools.cached_property
    def starts(self) -> Array:
        """[E] rows at which an episode starts, ascending."""
        first = np.ones(len(self), dtype=bool)
        first[self.next[self.next >= 0]] = False
        return np.flatnonzero(first)

    @property
    def episode(self) -> Array:
        """[N] i64, number of the row's episode: 0 for the first start, and so on."""
        number = np.empty(len(self), dtype=np.int64)
        number[self.starts] = np.arange(len(self.starts))
        return number[self._start_and_step[0]]

    @property
    def step(self) -> Array:
        """[N] i64, place in the episode, from 0."""
        return self._start_and_step[1]

    @functools.cached_property
    def _start_and_step(self) -> tuple[Array, Array]:
        """[N] the row where the episode starts, [N] how many steps ago: by pointer jumping, in log2(longest) passes."""
        rows = np.arange(len(self))
        start = rows.copy()
        seen = self.next >= 0
        start[self.next[seen]] = rows[seen]  # at first: the row just before
        step = (start != rows).astype(np.int64)
        while np.any(start != (further := start[start])):
            step += step[start]
            start = further
        return start, step

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over every array and the encoder: the same data, the same digest."""
        digest = hashlib.sha256(self.encoder.digest.encode())
        digest.update("\x1f".join(self.metric_names).encode())
        for field in array_fields():
            array = getattr(self, field)
            digest.update(f"{field}{array.shape}{array.dtype.str}".encode())
            if field == "candidates" and all_alike(array):
                array = array[:1]  # shared by all rows, be it as a view or as copies
            digest.update(np.ascontiguousarray(array).data)
        if self.slots is not None:
            for field, array in self.slots.arrays.items():
                digest.update(f"slots.{field}{array.shape}{array.dtype.str}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def take(self, rows: Array) -> Batch:
        """The rows, ascending; a next step that is not among them becomes not seen.

        Raises:
            DataError: the rows are not ascending, or not rows of this batch.
        """
        if np.any(np.diff(rows) <= 0) or np.any(rows[:1] < 0) or np.any(rows[-1:] >= len(self)):
            raise DataError(f"rows must be ascending, different and in [0, {len(self)})")
        place = np.full(len(self) + 1, -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        arrays = {name: _take(getattr(self, name), rows) for name in array_fields()}
        arrays["next"] = place[arrays["next"]]
        slots = None if self.slots is None else self.slots.take(rows)
        return Batch(encoder=self.encoder, metric_names=self.metric_names, slots=slots, **arrays)

    def _check_shapes(self) -> None:
        n, f = self.context.shape if self.context.ndim == 2 else (len(self.context), -1)
        k, a = self.candidates.shape[1:] if self.candidates.ndim == 3 else (-1, -1)
        if n == 0:
            raise DataError("the batch has no rows", hint="is the wait of any decision over? see wait_s")
        if f != self.encoder.context_width or a != self.encoder.candidate_width:
            raise DataError(
                f"columns: context {f}, candidates {a}; "
                f"the encoder makes {self.encoder.context_width} and {self.encoder.candidate_width}"
            )
        if self.numbers != (self.encoder.numbers is not None):
            raise DataError(f"action is {list(self.action.shape)}, the encoder has bounds {self.encoder.numbers}")
        action: tuple[type, tuple[int, ...]] = (np.int64, (n,))
        if self.slots is not None:
            action = (np.int64, (n, self.slots.propensity.shape[-1]))
        elif self.numbers:
            action = (np.float32, (n, self.action.shape[-1]))
            k = 0
        want = {
            "context": (np.float32, (n, f)),
            "candidates": (np.float32, (n, k, a)),
            "mask": (np.bool_, (n, k)),
            "action": action,
            "propensity": (np.float64, (n,)),
            "reward": (np.float64, (n,)),
            "metrics": (np.float64, (n, len(self.metric_names))),
            "discount": (np.float64, (n,)),
            "next": (np.int64, (n,)),
            "unit": (np.int64, (n,)),
            "limited": (np.bool_, (n,)),
            "begun": (np.bool_, (n,)),
        }
        for name, (dtype, shape) in want.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shape:
                raise DataError(f"{name} is {array.dtype}{list(array.shape)}, must be {np.dtype(dtype)}{list(shape)}")

    def _check_values(self) -> None:
        rows = np.arange(len(self))
        _refuse(~_finite(self.context), "context is not finite", self.context)
        _refuse(~_finite(once(self.candidates)), "candidates are not finite")
        _refuse(~np.isfinite(self.reward), "reward is {:g}", self.reward)
        _refuse(np.isinf(self.metrics).any(axis=1), "a metric is infinite: {}", self.metrics)
        bad = ~((self.propensity > 0) & np.isfinite(self.propensity))
        if not self.numbers:
            bad |= self.propensity > 1
        if self.numbers:
            _refuse(~np.isfinite(self.action).all(axis=1), "action is not finite")
            self._check_bounds()
        elif self.slots is None:
            outside = (self.action < 0) | (self.action >= self.mask.shape[1])
            _refuse(outside, "action is {}, not a place among the candidates", self.action)
            _refuse(~self.mask[rows, self.action], "action {} is padding, not a candidate", self.action)
        law = "a density above 0" if self.numbers else "in (0, 1]"
        _refuse(bad, f"propensity is {{:g}}, must be {law}", self.propensity)
        _refuse(~((self.discount >= 0) & (self.discount <= 1)), "discount is {:g}, must be in [0, 1]", self.discount)
        seen = self.next >= 0
        _refuse((self.next < -1) | (seen & (self.next <= rows)) | (self.next >= len(self)),
                "next is {}, must be a later row or -1", self.next)  # fmt: skip
        _refuse(seen & self.terminated, "a terminated row has the next row {}", self.next)
        _refuse(seen & self.limited, "a row after which its episode is over has the next row {}", self.next)
        later = self.next[seen]
        first = np.full(len(self), -1)
        first[later[::-1]] = rows[seen][::-1]  # of several rows with one next row the first
        joins = seen.copy()
        joins[seen] = first[later] != rows[seen]
        _refuse(joins, "next is row {}, which follows an earlier row too: an episode can not join another", self.next)
        other = seen.copy()
        other[seen] = self.unit[later] != self.unit[seen]
        _refuse(other, "next is row {} of another unit", self.next)
        other[seen] = self.begun[later] != self.begun[seen]
        _refuse(other, "next is row {}, and only one of the two is of an episode that began before", self.next)

    def _check_bounds(self) -> None:
        box = self.encoder.numbers
        if box is None or len(box.low) != self.action.shape[1]:
            raise DataError(f"an action is {self.action.shape[1]} numbers, the encoder has other bounds: {box}")
        _refuse(
            ~within(self.action, box),
            f"action {{}} is outside its bounds {list(box.low)} to {list(box.high)}",
            self.action,
        )


def array_fields() -> tuple[str, ...]:
    """Names of the arrays that every Batch has, in their order."""
    return tuple(field.name for field in fields(Batch) if field.name not in ("encoder", "metric_names", "slots"))


def _take(array: Array, rows: Array) -> Array:
    if is_shared(array):  # it stays so
        return np.broadcast_to(array[:1], (len(rows), *array.shape[1:]))
    return array[rows]


def _finite(array: Array) -> Array:
    """[N] bool, every number of the row is finite. In parts: an array may be mapped, and larger than the memory."""
    out = np.empty(len(array), dtype=bool)
    for start in range(0, len(array), ROWS):
        part = array[start : start + ROWS]
        out[start : start + ROWS] = np.isfinite(part).all(axis=tuple(range(1, array.ndim)))
    return out


def _refuse(bad: Array, message: str, values: Array | None = None) -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        value = "" if values is None else values[rows[0]]
        text = message.format(value) if "{" in message else message
        raise DataError(f"row {rows[0]}: {text} ({rows.size} such rows of {len(bad)})")
