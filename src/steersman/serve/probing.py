"""What a model does with made-up rows: whether each comes out beside others as it does alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping

import numpy as np

from steersman.core.errors import DataError
from steersman.core.signature import FREE, TEXT, Signature, Tensor

Array = np.ndarray
Run = Callable[[Mapping[str, Array]], list[Array]]

PROBES = (1, 2, 3, 8)
SIZE = 3
"""What a free axis behind the first has in a probe."""


def probed(signature: Signature, run: Run) -> tuple[bool, float]:
    """Whether rows of several requests may be one run, and the processor time of a run of one row in seconds.

    A model that refuses rows of made-up values is served without putting rows together.
    """
    together, run_s = False, 0.0
    with contextlib.suppress(DataError):
        feeds = probe(signature, max(PROBES))
        together = signature.rows and same_rows(run, feeds)
        took = []
        one = {name: array[:1] for name, array in feeds.items()} if signature.rows else feeds
        for _ in range(5):
            began = time.thread_time()
            run(one)
            took.append(time.thread_time() - began)
        run_s = min(took)
    return together, run_s


def same_rows(run: Run, feeds: Mapping[str, Array]) -> bool:
    """Whether each row gives alone what it gives beside others: the same texts and whole numbers, close floats."""
    alone = [run({name: array[i : i + 1] for name, array in feeds.items()}) for i in range(max(PROBES))]
    for count in PROBES:
        outputs = run({name: array[:count] for name, array in feeds.items()})
        for place, output in enumerate(outputs):
            expected = [row[place] for row in alone[:count]]
            if any(len(row) != 1 for row in expected) or len(output) != count:
                return False
            if not _close(output, np.concatenate(expected)):
                return False
    return True


def _close(a: Array, b: Array) -> bool:
    if a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool((a == b).all())
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True))


def probe(signature: Signature, rows: int) -> dict[str, Array]:
    """Rows of made-up values for every input; of those without rows, one value of their shape."""
    random = np.random.default_rng(0)
    return {tensor.name: _random(tensor, rows, random) for tensor in signature.inputs}


def _random(tensor: Tensor, rows: int, random: np.random.Generator) -> Array:
    first, *rest = tensor.shape or (1,)
    shape = tuple(SIZE if size == FREE else size for size in (rows if first == FREE else first, *rest))
    if tensor.dtype == TEXT:
        array = np.empty(shape, dtype=object)
        array.ravel()[:] = [f"t{i % 5}" for i in range(array.size)]
        return array
    if tensor.numpy.kind == "f":
        return random.normal(size=shape).astype(tensor.numpy)
    return random.integers(0, 2, size=shape).astype(tensor.numpy)
