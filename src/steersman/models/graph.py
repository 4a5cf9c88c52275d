"""Run a stored graph: onnxruntime and numpy only, so that serving never loads what builds graphs."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from steersman.core.errors import DataError
from steersman.core.features import Raw
from steersman.models.external import locations

Array = np.ndarray

CONTEXT_NUMBERS = "context_numbers"
CONTEXT_TEXTS = "context_texts"
CONTEXT_LISTS = "context_lists"
CANDIDATE_NUMBERS = "candidate_numbers"
CANDIDATE_TEXTS = "candidate_texts"
CANDIDATE_LISTS = "candidate_lists"
CANDIDATE_IDS = "candidate_ids"
ENCODED_CONTEXT = "encoded_context"
ENCODED_CANDIDATES = "encoded_candidates"
SCORES = "scores"
ROWWISE = "steersman.rowwise"
"""Name of a property of the model: `yes` if a row's bits can hardly depend on the rows beside it."""

CONTEXT_INPUTS = (CONTEXT_NUMBERS, CONTEXT_TEXTS, CONTEXT_LISTS)
CANDIDATE_INPUTS = (CANDIDATE_NUMBERS, CANDIDATE_TEXTS, CANDIDATE_LISTS)
INPUTS = (*CONTEXT_INPUTS, *CANDIDATE_INPUTS, CANDIDATE_IDS)

_REAL = {"tensor(float)": np.float32, "tensor(double)": np.float64}

LARGE = 1 << 20
"""Bytes of a model from which on it matters how onnxruntime reads them."""

CHUNK = 4096
"""Rows at once where speed per row counts: the layers of a chunk stay in the processor's cache."""


class Graph:
    """Raw rows to scores, the preprocessing inside. Safe to share between threads; one call uses one core.

    Raises:
        DataError: the bytes are not a graph with these inputs and this output.
    """

    def __init__(self, data: bytes) -> None:
        self.session = open_session(data)
        self.inputs = tuple(node.name for node in self.session.get_inputs())
        outputs = [node.name for node in self.session.get_outputs()]
        if CANDIDATE_IDS not in self.inputs or not set(self.inputs) <= set(INPUTS) or outputs != [SCORES]:
            raise DataError(
                f"a graph from {', '.join(self.inputs)} to {', '.join(outputs)}; must be from {CANDIDATE_IDS} "
                f"and any of {', '.join(INPUTS[:-1])} to {SCORES}",
                hint="only a composed graph, with its encoder inside, can be served",
            )
        self.rowwise = self.session.get_modelmeta().custom_metadata_map.get(ROWWISE) == "yes"
        open_to_feed = sorted(self.session.get_overridable_initializers(), key=lambda node: node.name)
        self._parameters = [
            (node.name, tuple(node.shape), _REAL[node.type]) for node in open_to_feed if node.type in _REAL
        ]

    def perturbed(self, flat: Array) -> Copy:
        """`scores` of the same graph with other parameters: what it holds is they, and no graph.

        Args:
            flat: [d], in the order of `models.parameters`.
        Raises:
            DataError: the graph is not open to so many.
        """
        size = sum(math.prod(shape) for _, shape, _ in self._parameters)
        if not size or flat.shape != (size,):
            raise DataError(f"parameters of the shape {flat.shape} for a graph that is open to {size}")
        row = flat.astype(np.result_type(*(kind for _, _, kind in self._parameters)))
        given = _cut(self._parameters, row, ())
        return Copy(row, functools.partial(self.scores, given=given))

    def scores(self, context: Raw, candidates: Raw, ids: Array, given: Mapping[str, Array] | None = None) -> Array:
        """Score of every candidate.

        Args:
            context: [N, ...] from `Encoder.raw_context`.
            candidates: [N, K, ...] from `Encoder.raw_candidates`.
            ids: [N, K] object (str), from there too.
            given: name -> parameters, instead of those in the graph.
        Returns:
            [N, K] f32, or draws of them [N, K, M]. What stands at padding means nothing.
        Raises:
            DataError: the rows are not what the graph's encoder takes.
        """
        return _run(self.session, {**_feed(self.inputs, context, candidates, ids), **(given or {})})


@dataclass(frozen=True, eq=False)
class Copy:
    """A graph with other parameters.

    Attributes:
        row: [d], the parameters.
        run: `Graph.scores` with them.
    """

    row: Array
    run: Callable[[Raw, Raw, Array], Array]

    def __call__(self, context: Raw, candidates: Raw, ids: Array) -> Array:
        """As `Graph.scores`."""
        return self.run(context, candidates, ids)


class Crowd:
    """Copies of a graph that answer in one run, each a row, by the parameters that come with it.

    Args:
        data: of `models.parameters.crowd_of`.
    """

    def __init__(self, data: bytes) -> None:
        self._session = open_session(data)
        nodes = self._session.get_inputs()
        self._inputs = tuple(node.name for node in nodes if node.name in INPUTS)
        fed = sorted((node for node in nodes if node.name not in INPUTS), key=lambda node: node.name)
        self._parameters = [(node.name, tuple(node.shape[1:]), _REAL[node.type]) for node in fed]

    def scores(self, rows: Array, context: Raw, candidates: Raw, ids: Array) -> Array:
        """As `Graph.scores`; row n of each by the parameters rows[n], [N, d] in the order of `models.parameters`."""
        feed = _feed(self._inputs, context, candidates, ids)
        return _run(self._session, feed | _cut(self._parameters, rows, (len(rows),)))


class EncodedScorer:
    """A Scorer over encoded arrays: the part of a stored graph behind its encoder.

    Args:
        data: ONNX with the inputs `encoded_context` and `encoded_candidates`, either may be absent.
    """

    def __init__(self, data: bytes) -> None:
        self._session = open_session(data)
        self._inputs = [node.name for node in self._session.get_inputs()]

    def __call__(self, context: Array, candidates: Array) -> Array:
        """[N, F] f32, [N, K, A] f32 -> [N, K] or [N, K, M] f32; for numbers, K = 0, -> [N, S] f32. By chunks."""
        scores = [np.empty((0, candidates.shape[1]), dtype=np.float32)]
        for start in range(0, len(candidates), CHUNK):
            rows = slice(start, start + CHUNK)
            chunk = {ENCODED_CONTEXT: context[rows], ENCODED_CANDIDATES: candidates[rows]}
            scores.append(_run(self._session, {name: chunk[name] for name in self._inputs}))
        return np.concatenate(scores[1:] or scores)


def _feed(inputs: Container[str], context: Raw, candidates: Raw, ids: Array) -> dict[str, Array]:
    """What a graph takes of the raw rows."""
    feed = {CANDIDATE_IDS: ids}
    for raw, (numbers, texts, lists) in ((context, CONTEXT_INPUTS), (candidates, CANDIDATE_INPUTS)):
        if numbers in inputs:
            feed[numbers] = raw.numbers
        if texts in inputs:
            feed[texts] = _texts(raw)
        if lists in inputs:
            feed[lists] = raw.lists
    return feed


def _cut(
    parameters: Sequence[tuple[str, tuple[int, ...], Any]], rows: Array, leading: tuple[int, ...]
) -> dict[str, Array]:
    """The tensors of which the last axis of `rows` has the numbers one after the other; name -> [*leading, *shape]."""
    ends = np.cumsum([math.prod(shape) for _, shape, _ in parameters])
    parts = np.split(rows, ends[:-1], axis=-1)
    return {
        name: np.ascontiguousarray(part.reshape(*leading, *shape), dtype=kind)
        for (name, shape, kind), part in zip(parameters, parts, strict=True)
    }


def open_session(data: bytes, weights: Mapping[str, bytes] | None = None) -> onnxruntime.InferenceSession:
    """A session on one core that never spins: the server decides what runs in parallel.

    Args:
        weights: files that hold weights of the model, by their paths relative to its folder. No others are read.
    Raises:
        DataError: the bytes are not an ONNX model that onnxruntime can run, or a file of its weights is missing.
    """
    weights = weights or {}
    for place in (outside := locations(data)):
        if place not in weights:
            raise DataError(f"its weights are in {place}, which is not there", hint="put the file beside the model")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    if outside:
        buffers = [weights[place] for place in outside]
        options.add_external_initializers_from_files_in_memory(list(outside), buffers, list(map(len, buffers)))
    try:
        with _source(data) as source:
            return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors have no common class
        raise DataError(f"{len(data)} bytes are not an ONNX model that can run: {error}") from None


@contextmanager
def _source(data: bytes) -> Iterator[bytes | str]:
    """What onnxruntime shall read.

    It copies bytes with the interpreter locked, so that nothing is served meanwhile (0.2 s for 68 MB), and keeps them
    for as long as the session lives. A file it reads unlocked, and keeps nothing; so a large model is one, in memory.
    """
    if len(data) < LARGE or not hasattr(os, "memfd_create"):
        yield data
        return
    with os.fdopen(os.memfd_create("steersman-model"), "wb", buffering=0) as file:
        rest = memoryview(data)
        while rest:
            rest = rest[file.write(rest) :]
        yield f"/proc/self/fd/{file.fileno()}"


def _run(session: onnxruntime.InferenceSession, feed: dict[str, Array]) -> Array:
    try:
        return session.run([SCORES], feed)[0]
    except UnicodeEncodeError as error:
        raise DataError(f"a text can not be written as UTF-8: {error}") from None
    except Exception as error:  # onnxruntime's own errors have no common class
        given = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feed.items())
        raise DataError(f"the graph can not take {given}: {error}") from error


def _texts(raw: Raw) -> Array:
    if raw.texts.dtype == object:
        return raw.texts
    raise DataError(
        f"texts are {raw.texts.dtype}, must be object",
        hint="numpy's own text type drops NUL characters at the end of a text",
    )
