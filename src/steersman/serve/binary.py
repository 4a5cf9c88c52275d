"""Infer requests with binary tensors, whose JSON is that of an earlier one: neither read nor written again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from steersman.core.signature import Signature
from steersman.serve import kserve
from steersman.serve.kserve import Question

Array = np.ndarray
HEADS, HEAD_BYTES, SHAPES = 64, 1024, 16
"""Kept for a version: JSON of requests, of so many bytes each; and of each that of answers, one for the same shapes."""


class _Input(NamedTuple):
    """Of an input: its name, the type and shape of its numbers, and where these lie in the body."""

    name: str
    kind: np.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class Known(Struct, frozen=True, eq=False):
    """What the JSON of a request says, all of whose numbers are binary.

    Attributes:
        inputs: in the order of the request.
        rest: what of its Question is not the numbers.
        size: of the body, in bytes.
        answers: shapes of the outputs -> the JSON of the answer.
    """

    inputs: tuple[_Input, ...]
    rest: Question
    size: int
    answers: dict[tuple[tuple[int, ...], ...], bytes]

    def feeds(self, body: bytes) -> dict[str, Array]:
        """The arrays of a body; each of bytes of its own, so that it is aligned."""
        feeds = {}
        for name, kind, shape, start, end in self.inputs:
            feeds[name] = np.frombuffer(body[start:end], kind).reshape(shape)
        return feeds


class Infer:
    """Reads and answers the infer requests of one version, as `kserve` does.

    Args:
        name, number: of the version.
    """

    def __init__(self, name: str, number: int, signature: Signature) -> None:
        self._served = name, number
        self._signature = signature
        self._known: dict[bytes, Known] = {}

    def read(self, body: bytes, json_bytes: int | None) -> tuple[Question, Known | None]:
        """The question, and what is known of its JSON.

        Raises:
            DataError: the body is not what the signature takes.
        """
        if json_bytes is None or not 0 < json_bytes <= min(len(body), HEAD_BYTES):
            return kserve.read_infer(body, json_bytes, self._signature), None
        head = body[:json_bytes]
        known = self._known.get(head)
        if known is not None and len(body) == known.size:
            return Question(known.feeds(body), known.rest.outputs, known.rest.id), known
        question = kserve.read_infer(body, json_bytes, self._signature)
        known = _known(question, json_bytes, len(body))
        if known is not None:
            if len(self._known) >= HEADS:
                del self._known[next(iter(self._known))]
            self._known[head] = known
        return question, known

    def write(self, question: Question, known: Known | None, outputs: Sequence[Array]) -> tuple[bytes, int | None]:
        """The answer, and how much of it is JSON; None: all.

        Raises:
            DataError: classes of an output were asked for that has none.
        """
        shapes = tuple([array.shape for array in outputs])
        text = known.answers.get(shapes) if known is not None else None
        if text is not None:
            return b"".join([text, *[kserve.to_raw(outputs[one.place]) for one in question.outputs]]), len(text)
        answer, json_bytes = kserve.write_infer(*self._served, question, outputs, self._signature)
        # Of texts and classes the sizes are not told by the shapes.
        raw = all(one.binary and not one.classes and outputs[one.place].dtype != object for one in question.outputs)
        if known is not None and json_bytes is not None and raw and len(known.answers) < SHAPES:
            known.answers[shapes] = answer[:json_bytes]
        return answer, json_bytes


def _known(question: Question, json_bytes: int, size: int) -> Known | None:
    """What the JSON of a body of a size says; None: some of the numbers stand in it."""
    arrays = question.feeds.values()
    whole = json_bytes + sum(array.nbytes for array in arrays) == size
    if not arrays or not whole or any(array.dtype.kind not in "fiu" for array in arrays):
        return None
    inputs, at = [], json_bytes
    for name, array in question.feeds.items():
        inputs.append(_Input(name, array.dtype.newbyteorder("<"), array.shape, at, at + array.nbytes))
        at += array.nbytes
    return Known(tuple(inputs), Question({}, question.outputs, question.id), size, {})
