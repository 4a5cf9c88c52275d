"""Predict calls over gRPC that differ from an earlier one in their numbers alone: read without protobuf. Pure."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from msgspec import Struct

from steersman.core.errors import DataError
from steersman.core.signature import Signature
from steersman.serve import tfserving_grpc
from steersman.serve.messages import parse
from steersman.serve.tfserving import Call

Array = np.ndarray
LENGTHS, ALIKE = 64, 8
"""Lengths of which templates are kept, and how many of each."""
EVERY = 4
"""One request of so many that fit none is learned: that is dearer than to read, and what comes again is met soon."""
AROUND_BYTES = 512
"""Of a template, which is all of a request but its numbers."""
LEAST_BYTES, MOST_BYTES = 4, 1 << 16
"""Of the numbers: fewer might be taken for others, and where there are more protobuf costs little beside them."""


class Template(Struct, frozen=True, eq=False):
    """A PredictRequest but for the numbers of its one input.

    Attributes:
        head, tail: the bytes before and after the numbers.
        call: what it asks for; wanted: its output filter.
        signature: that of the version for which it was read.
        kind, shape: of the numbers of the input called `name`.
    """

    head: bytes
    tail: bytes
    call: Call
    wanted: tuple[str, ...]
    signature: Signature
    name: str
    kind: np.dtype
    shape: tuple[int, ...]

    def feeds(self, body: bytes) -> dict[str, Array]:
        """The arrays of a request that `fits`."""
        numbers = body[len(self.head) : len(body) - len(self.tail)]  # a copy, which is aligned
        return {self.name: np.frombuffer(numbers, self.kind).reshape(self.shape)}


class Templates:
    """Those of requests that came before; the oldest goes first."""

    def __init__(self) -> None:
        self._known: dict[int, list[Template]] = {}
        self._strange = 0

    def find(self, body: bytes) -> Template | None:
        """The template of a request of which every byte but the numbers is known."""
        for one in self._known.get(len(body), ()):
            if body.startswith(one.head) and body.endswith(one.tail):
                return one
        return None

    def learn(self, body: bytes, request: Any, signature: Signature, feeds: Mapping[str, Array]) -> None:
        """Remember a request that could be read, now and then.

        Args:
            request: what protobuf says of the body; feeds: its arrays.
        """
        self._strange += 1
        if self._strange % EVERY or (made := _template(body, request, signature, feeds)) is None:
            return
        alike = self._known.pop(len(body), [])
        kept = [one for one in alike if (one.head, one.tail) != (made.head, made.tail)]  # of a version that is gone
        if len(self._known) >= LENGTHS:
            del self._known[next(iter(self._known))]
        self._known[len(body)] = [*kept[-ALIKE + 1 :], made]


def _template(body: bytes, request: Any, signature: Signature, feeds: Mapping[str, Array]) -> Template | None:
    """The template of a request; None: it has none that is sure.

    Where its numbers stand is tried and not computed: protobuf must read from the same bytes with others for the
    numbers just those, and all else as before. They are drawn anew, so that no client can make a request for them.
    """
    if len(feeds) != 1:
        return None
    [(name, array)] = feeds.items()
    # Whole numbers in fields of their own have bytes for digits, which may look like an array.
    if not request.inputs[name].tensor_content and array.dtype.kind != "f":
        return None
    kind = array.dtype.newbyteorder("<")
    if array.dtype.kind not in "fiu" or not LEAST_BYTES <= array.nbytes <= MOST_BYTES:
        return None
    numbers = array.astype(kind, copy=False).tobytes()
    at = body.find(numbers)
    head, tail = body[:at], body[at + len(numbers) :]
    if at < 0 or len(head) + len(tail) > AROUND_BYTES:
        return None
    call = tfserving_grpc.call_of("predict", request.model_spec)
    wanted = tuple(request.output_filter)
    for _ in range(2):
        drawn = np.frombuffer(os.urandom(len(numbers)), kind)
        other = np.nan_to_num(drawn).astype(kind).tobytes()  # a NaN may lose bits on its way
        try:
            found = parse(tfserving_grpc.PredictRequest, head + other + tail)
            [(again, read)] = tfserving_grpc.read_predict(found, signature, len(other)).items()
            same = again == name and read.shape == array.shape and read.tobytes() == other
            if not same or tfserving_grpc.call_of("predict", found.model_spec) != call:
                return None
        except (DataError, ValueError):
            return None
        if tuple(found.output_filter) != wanted:
            return None
    return Template(head, tail, call, wanted, signature, name, kind, array.shape)
