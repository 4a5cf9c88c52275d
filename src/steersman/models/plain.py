"""Run any ONNX graph by its own signature: named arrays in, named arrays out. onnxruntime and numpy only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import onnxruntime

from steersman.core.errors import DataError
from steersman.core.signature import FREE, Signature, Tensor
from steersman.models.graph import Graph, open_session

Array = np.ndarray

CLASSES = "classes"
"""Name of a property of the model: a JSON array with the names of the classes that its scores are of."""

_NUMPY = {"float": "float32", "double": "float64", "string": "str"}


class Plain:
    """A graph as it is: no encoder, no explorer. Safe to share between threads; one call uses one core.

    Args:
        source: bytes of an ONNX model, or a Graph whose session is shared.
        weights: files that hold weights of the model, by their paths relative to its folder.
    Raises:
        DataError: it can not run, or takes or gives something else than tensors of numbers, booleans or texts.
    """

    def __init__(self, source: bytes | Graph, weights: Mapping[str, bytes] | None = None) -> None:
        self._session = source.session if isinstance(source, Graph) else open_session(source, weights)
        self.signature = Signature(
            tuple(_tensor(node) for node in self._session.get_inputs()),
            tuple(_tensor(node) for node in self._session.get_outputs()),
            _classes(self._session),
        )

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """All outputs, in the order of the signature.

        Raises:
            DataError: the graph can not take these values.
        """
        try:
            return self._session.run(None, feeds)
        except UnicodeEncodeError as error:
            raise DataError(f"a text can not be written as UTF-8: {error}") from None
        except Exception as error:  # onnxruntime's own errors have no common class
            given = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())
            raise DataError(f"the graph can not take {given}: {error}") from error


def _tensor(node: Any) -> Tensor:
    found = re.fullmatch(r"tensor\((\w+)\)", node.type)
    if not found:
        hint = "a classifier of skl2onnx: convert it with the option zipmap=False" if "map" in node.type else ""
        raise DataError(f"{node.name} is a {node.type}; only tensors can be served", hint=hint)
    # onnxruntime says [] of a scalar and of a shape that is not known.
    shape = tuple(size if isinstance(size, int) else FREE for size in node.shape) or None
    return Tensor(node.name, _NUMPY.get(found[1], found[1]), shape)


def _classes(session: onnxruntime.InferenceSession) -> tuple[str, ...]:
    text = session.get_modelmeta().custom_metadata_map.get(CLASSES, "[]")
    try:
        return tuple(msgspec.json.decode(text, type=list[str]))
    except msgspec.MsgspecError as error:
        raise DataError(f"the model's property {CLASSES} is not an array of texts: {error}") from None
