"""SageMaker's container contract: ping, invocations in several content types, multi-model calls. Pure."""

from __future__ import annotations

import ast
import csv
import io
import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from urllib.parse import unquote

import numpy as np
from msgspec import Struct

from steersman.core.errors import DataError, Error
from steersman.core.signature import TEXT, Signature, Tensor
from steersman.serve import tfserving, values

Array = np.ndarray
JSON, CSV, LINES, NPY, NPZ = (
    "application/json",
    "text/csv",
    "application/jsonlines",
    "application/x-npy",
    "application/x-npz",
)
_SAME = {"application/jsonl": LINES, "application/x-jsonlines": LINES, "application/npy": NPY}
_MODEL = re.compile(r"/models/([^/]+)(/invoke)?")
_PLAIN = {
    ("GET", "/ping"): "ping",
    ("POST", "/invocations"): "invoke",
    ("GET", "/execution-parameters"): "parameters",
    ("GET", "/models"): "list",
    ("POST", "/models"): "load",
}
_NPY = re.compile(rb"\x93NUMPY([\x01\x02\x03])\x00")
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
UNPACKED_BYTES = 64 << 20
"""What the arrays of one npz may have together."""


class MediaError(Error):
    """A content type that is not read here."""

    http_status = 415


class NotAcceptableError(Error):
    """A content type that can not be written."""

    http_status = 406


class Call(Struct, frozen=True):
    """What a path asks for: a word of _PLAIN, or `invoke`, `show`, `unload` of a model."""

    verb: str
    name: str = ""


class Question(Struct, frozen=True):
    """A body, read, and the content type that the answer shall have."""

    read: tfserving.Question
    accept: str


def is_mine(path: str) -> bool:
    """Whether a path belongs to this protocol."""
    return path in ("/ping", "/invocations", "/execution-parameters", "/models") or path.startswith("/models/")


def route(method: str, path: str) -> Call | None:
    """What a request line asks for; None: nothing that there is."""
    if plain := _PLAIN.get((method, path)):
        return Call(plain)
    found = _MODEL.fullmatch(path)
    verbs = {("GET", None): "show", ("DELETE", None): "unload", ("POST", "/invoke"): "invoke"}
    verb = verbs.get((method, found[2])) if found else None
    return Call(verb, unquote(found[1])) if found and verb else None


def read_load(body: bytes) -> str:
    """Name of the model that shall be loaded.

    Raises:
        DataError: the body does not tell it.
    """
    document = values.parse(body)
    if not isinstance(document, dict) or not isinstance(document.get("model_name"), str):
        raise DataError("model_name is missing", hint='send {"model_name": ..., "url": ...}', field="model_name")
    return document["model_name"]


def read(body: bytes, content_type: str, accept: str, signature: Signature) -> Question:
    """The arrays of a body, and how to answer.

    Args:
        content_type, accept: of the request; empty: JSON.
    Raises:
        MediaError, NotAcceptableError: a content type is not known.
        DataError: the body is not what the signature takes.
    """
    kind = _media(content_type) or JSON
    wanted = _accepted(accept, kind)
    if kind == JSON:
        return Question(_from_json(body, signature), wanted)
    if kind == LINES:
        lines = [values.parse(line) for line in body.splitlines() if line.strip()]
        return Question(tfserving.from_instances(lines, signature), wanted)
    if kind == CSV:
        return Question(tfserving.Question(_from_csv(body, signature)), wanted)
    if kind == NPY:
        return Question(tfserving.Question(_named({_only(signature).name: _npy(body)}, signature)), wanted)
    if kind == NPZ:
        return Question(tfserving.Question(_named(_npz(body), signature)), wanted)
    known = ", ".join((JSON, CSV, LINES, NPY, NPZ))
    raise MediaError(f"content type {content_type[:80]!r} is not read here", hint=f"send {known}")


def write(question: Question, outputs: Sequence[Array], signature: Signature) -> bytes:
    """The answer in the content type that was accepted.

    Raises:
        NotAcceptableError: the outputs do not fit into it.
    """
    if question.accept == JSON:
        return tfserving.write_predict(question.read, outputs, signature)
    if question.accept == LINES:
        rows = values.parse(tfserving.write_predict(tfserving.Question({}), outputs, signature))["predictions"]
        return b"".join(values.write(row) + b"\n" for row in rows)
    if len(outputs) != 1:
        raise NotAcceptableError(f"{len(outputs)} outputs do not fit into {question.accept}", hint=f"accept {JSON}")
    [array] = outputs
    if question.accept == NPY:
        file = io.BytesIO()
        np.save(file, array.astype(str) if array.dtype == object else array, allow_pickle=False)
        return file.getvalue()
    if array.ndim not in (1, 2):
        raise NotAcceptableError(f"an output with {array.ndim} axes does not fit into {CSV}", hint=f"accept {JSON}")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(array.reshape(len(array), -1).tolist())
    return text.getvalue().encode()


def _media(text: str) -> str:
    kind = text.partition(";")[0].strip().lower()
    return _SAME.get(kind, kind)


def _accepted(accept: str, sent: str) -> str:
    """The first that can be written; who accepts anything gets JSON, or what he sent if that was no JSON."""
    if not accept.strip():
        return JSON
    for part in accept.split(","):
        kind = _media(part)
        if kind in (JSON, CSV, LINES, NPY):
            return kind
        if kind in ("*/*", "application/*"):
            return JSON if sent == NPZ else sent
        if kind == "text/*":
            return CSV
    raise NotAcceptableError(f"{accept[:80]!r} can not be written", hint=f"accept {JSON}, {CSV}, {LINES} or {NPY}")


def _from_json(body: bytes, signature: Signature) -> tfserving.Question:
    document = values.parse(body)
    if isinstance(document, list):
        return tfserving.from_instances(document, signature)
    return tfserving.read_document(document, signature)


def _only(signature: Signature) -> Tensor:
    [tensor, *more] = signature.inputs
    if more:
        raise DataError(f"the model has {len(more) + 1} inputs, this content type can tell one", hint=f"send {JSON}")
    return tensor


def _from_csv(body: bytes, signature: Signature) -> dict[str, Array]:
    """Lines to rows: of the one input, or one column for each of several inputs."""
    try:
        rows = [row for row in csv.reader(io.StringIO(body.decode("utf-8-sig")), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"not CSV: {error}") from None
    if not rows:
        raise DataError("there is no line", hint="send a line of numbers a row, without a header")
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise DataError(f"line {i + 1} has {len(row)} values, the first has {len(rows[0])}")
    if len(signature.inputs) == 1:
        [tensor] = signature.inputs
        if len(tensor.shape or (0, 0)) == 1:
            if len(rows[0]) != 1:
                raise DataError(f"lines have {len(rows[0])} values, the model takes 1")
            return {tensor.name: _cells([row[0] for row in rows], tensor)}
        width = len(rows[0])
        return {tensor.name: _cells([cell for row in rows for cell in row], tensor).reshape(len(rows), width)}
    if len(rows[0]) != len(signature.inputs):
        raise DataError(f"lines have {len(rows[0])} values, the model has {len(signature.inputs)} inputs")
    feeds = {}
    for place, tensor in enumerate(signature.inputs):
        column = _cells([row[place] for row in rows], tensor)
        feeds[tensor.name] = column[:, None] if len(tensor.shape or ()) == 2 else column
    return feeds


def _cells(cells: list[str], tensor: Tensor) -> Array:
    if tensor.dtype == TEXT:
        return np.array(cells, dtype=object)
    try:
        return np.array([float(cell) if tensor.numpy.kind == "f" else int(cell) for cell in cells], dtype=tensor.numpy)
    except (ValueError, OverflowError) as error:
        raise DataError(f"input {tensor.name} takes {values.NAMES.get(tensor.dtype, tensor.dtype)}: {error}") from None


def _npy(body: bytes) -> Array:
    """An array of numpy's format; of Python objects never."""
    found = _NPY.match(body)
    size = 2 if found and found[1] == b"\x01" else 4
    start = 8 + size
    length = int.from_bytes(body[8:start], "little")
    if not found or start + length > len(body) or length > 10_000:
        raise DataError("not an array of numpy's format")
    try:
        header = ast.literal_eval(body[start : start + length].decode("latin-1").strip())
        dtype, shape, columns = np.dtype(header["descr"]), tuple(header["shape"]), bool(header["fortran_order"])
        count = math.prod(shape)
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise DataError(f"not an array of numpy's format: {error}") from None
    data = memoryview(body)[start + length :]
    if dtype.hasobject or dtype.names or not dtype.itemsize or any(type(one) is not int or one < 0 for one in shape):
        raise DataError(f"an array of {dtype} can not be read", hint="send numbers, booleans or texts")
    if count * dtype.itemsize != len(data):
        raise DataError(f"{len(data)} bytes are no array of {dtype} with shape {list(shape)}")
    try:
        if not count:
            return np.empty(shape, dtype=dtype)
        return np.array(np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if columns else "C"), order="C")
    except ValueError as error:
        raise DataError(f"no array of {dtype} can have {len(shape)} axes: {error}") from None


def _npz(body: bytes) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > UNPACKED_BYTES:
                raise DataError(f"the arrays have over {UNPACKED_BYTES} bytes together")
            if any(member.compress_type not in _PACKED for member in members):
                raise DataError("the arrays are packed by a method that numpy does not use")
            return {member.filename.removesuffix(".npy"): _npy(archive.read(member)) for member in members}
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise DataError(f"not an npz file: {error}") from None


def _named(arrays: dict[str, Array], signature: Signature) -> dict[str, Array]:
    """Arrays of the types that the model takes, where no value changes its kind."""
    tensors = {tensor.name: tensor for tensor in signature.inputs}
    feeds = {}
    for name, array in arrays.items():
        tensor = tensors.get(name)
        if tensor is not None and tensor.dtype == TEXT and array.dtype.kind in "SU":
            feeds[name] = _texts(array, name)
        elif tensor is not None and tensor.dtype != TEXT and np.can_cast(array.dtype, tensor.numpy, "same_kind"):
            with np.errstate(over="ignore"):
                feeds[name] = array.astype(tensor.numpy)
        else:
            feeds[name] = array  # the signature will refuse it
    return feeds


def _texts(array: Array, name: str) -> Array:
    try:
        if array.dtype.kind == "U":  # of its letters numpy checks none
            array.astype(array.dtype.newbyteorder("<")).tobytes().decode("utf-32-le")
        return array.astype(str).astype(object)
    except UnicodeDecodeError as error:
        raise DataError(f"input {name}: a text is not one: {error}") from None
