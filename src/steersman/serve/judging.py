"""What classify and regress make of the outputs of a model: labels with scores, or values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from steersman.core.errors import DataError
from steersman.core.signature import Signature

Array = np.ndarray


def classes_of(outputs: Sequence[Array], signature: Signature) -> list[list[tuple[str, float]]]:
    """Label and score of every class, of every row.

    The scores are the output `scores`, or the only one of floats. The labels are the output `classes`, if it is of
    texts and as large; else the model's property `classes`; else the number of the class.

    Raises:
        DataError: no output can be the scores.
    """
    found = dict(zip((tensor.name for tensor in signature.outputs), outputs, strict=True))
    scores = _only(found, "scores", signature)
    scores = scores[:, None] if scores.ndim == 1 else scores
    if scores.ndim != 2:
        raise DataError(f"the scores have {scores.ndim} axes, must have rows and classes")
    labels = found.get("classes")
    if labels is not None and labels.dtype == object and labels.shape == scores.shape:
        names = labels.tolist()
    elif len(signature.classes) == scores.shape[1]:
        names = [list(signature.classes)] * len(scores)
    else:
        names = [[str(i) for i in range(scores.shape[1])]] * len(scores)
    return [list(zip(name, score, strict=True)) for name, score in zip(names, scores.tolist(), strict=True)]


def values_of(outputs: Sequence[Array], signature: Signature) -> list[float]:
    """The value of every row: of the output `outputs`, or the only one of floats.

    Raises:
        DataError: no output can be the values.
    """
    found = dict(zip((tensor.name for tensor in signature.outputs), outputs, strict=True))
    array = _only(found, "outputs", signature)
    if array.ndim == 0 or array.size != len(array):
        raise DataError(f"the values are {list(array.shape)}, must be one a row")
    return array.reshape(-1).tolist()


def _only(found: Mapping[str, Array], name: str, signature: Signature) -> Array:
    floats = [array for array in found.values() if array.dtype.kind == "f"]
    array = found.get(name)
    if array is not None and array.dtype.kind == "f":
        return array
    if len(floats) != 1:
        names = ", ".join(tensor.name for tensor in signature.outputs)
        raise DataError(f"of the outputs {names} none is {name}, and not exactly one is of floats")
    return floats[0]
