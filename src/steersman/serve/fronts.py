"""Predict calls of three protocols: from a request to the models, and back in the words that it came in."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import msgspec
import numpy as np

from steersman.core.errors import ConflictError, DataError, Error, NotFoundError
from steersman.serve import kserve, sagemaker, tfserving, values
from steersman.serve.binary import Infer
from steersman.serve.connection import Owner
from steersman.serve.exchange import Asked, HttpError, Slot
from steersman.serve.metrics import REST, Metrics
from steersman.serve.predicting import Models, Serving
from steersman.serve.settings import Settings

Array = np.ndarray
_to_json = msgspec.json.Encoder().encode
READER, INFER = "tfserving reader", "infer"
Errors = Callable[[Error], bytes]
METHODS = ("GET", "POST", "DELETE")
T = TypeVar("T")


class Path(NamedTuple):
    """A request target: the path still quoted, and the query."""

    text: str
    query: str


@functools.lru_cache(values.ROUTES)
def split(target: bytes) -> Path:
    """Path and query of a request target, which may be a whole URL."""
    text = target.decode("latin-1")
    if not text.startswith("/"):
        try:
            parts = urlsplit(text)
            return Path(parts.path, parts.query)
        except ValueError:  # what is no URL is no path that we know
            return Path(text, "")
    path, _, query = text.partition("?")
    return Path(path, query)


def count(metrics: Metrics, slot: Slot, status: int) -> None:
    """Count a request that asked a model."""
    if slot.about is not None:
        metrics.seen(slot.about, status, (time.perf_counter() - slot.began) * 1e6)


def refuse(server: Owner, slot: Slot, error: Exception, errors: Errors) -> None:
    """Answer an error in the words of a protocol."""
    if not isinstance(error, Error):
        error = Error(f"{type(error).__name__}: {error}", hint="this is a defect of the server")
    server.count(error)
    slot.answer(error.http_status, errors(error))


def called(route: Callable[[str, str], T | None], asked: Asked, path: Path, slot: Slot) -> T:
    """The call that a request line is.

    Raises:
        NotFoundError, HttpError: it is none, or is one with another method.
    """
    method = asked.method.decode()
    if call := route(method, path.text):
        return call
    told = f"{method} {path.text[:200]}"
    slot.allow = ", ".join(other for other in METHODS if route(other, path.text))
    if slot.allow:
        raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, told, hint=f"use {slot.allow}")
    raise NotFoundError(f"no such call: {told}")


def _about(slot: Slot, serving: Serving, api: str) -> None:
    slot.about = serving.name, serving.number, api, REST
    slot.began = time.perf_counter()


class Fronts:
    """The protocols over the models.

    Args:
        server: whose connections they are.
        ready: whether all that is wanted is there, and requests are welcome.
    """

    def __init__(self, models: Models, settings: Settings, server: Owner, ready: Callable[[], bool]) -> None:
        self.models = models
        self._settings = settings
        self._server = server
        self.ready = ready
        self._version = importlib.metadata.version("steersman")

    # -- TensorFlow Serving ------------------------------------------------------------------------------------

    def tf_serving(self, asked: Asked, path: Path, slot: Slot) -> None:
        """Answer a call of TensorFlow Serving's REST API."""
        call = tfserving.route(asked.method.decode(), path.text)
        if call.verb == "status":
            slot.answer(200, values.write(tfserving.status(call.name, self.models.states(call.name), call.number)))
            return
        serving = self.find(call)
        signature = serving.model.signature
        if call.verb == "metadata":
            slot.answer(200, values.write(tfserving.metadata(serving.name, serving.number, signature)))
            return
        _about(slot, serving, call.verb.title())
        if call.verb == "predict":
            question = self._reader(serving)(asked.body)
        else:
            question = tfserving.read_examples(asked.body, signature)

        def write(outputs: list[Array]) -> bytes:
            return tfserving.write(call.verb, question, outputs, signature)

        self._predict(serving, question.feeds, slot, write, tfserving.error_body)

    def _predict(
        self,
        serving: Serving,
        feeds: dict[str, Array],
        slot: Slot,
        write: Callable[[list[Array]], bytes],
        errors: Errors,
    ) -> None:
        def answer(outputs: list[Array] | Error) -> None:
            try:
                if isinstance(outputs, Error):
                    raise outputs
                body = write(outputs)
            except Exception as error:
                count(self._server.metrics, slot, getattr(error, "http_status", 500))
                refuse(self._server, slot, error, errors)
            else:
                count(self._server.metrics, slot, 200)
                slot.answer(200, body)

        self.models.predict(serving, feeds, answer)

    def find(self, call: tfserving.Call) -> Serving:
        """The version that a call of TensorFlow Serving asks for.

        Raises:
            Error: there is none, in its words.
        """
        try:
            return self.models.find(call.name, call.number, call.label)
        except NotFoundError as error:
            raise tfserving.not_served(call, error.field != "label") from None

    def _reader(self, serving: Serving) -> tfserving.Reader:
        reader: tfserving.Reader | None = serving.kept.get(READER)
        if reader is None:
            serving.kept[READER] = reader = tfserving.reader(serving.model.signature)
        return reader

    # -- Open Inference Protocol -------------------------------------------------------------------------------

    def open_inference(self, asked: Asked, path: Path, slot: Slot) -> None:
        """Answer a call of the Open Inference Protocol."""
        call = called(kserve.route, asked, path, slot)
        if call.verb == "infer":
            self._infer(call, asked, slot)
        elif call.verb in ("load", "unload"):
            self._switch(call.name, call.verb == "load", slot, kserve.error_body)
        else:
            only_ready = call.verb == "index" and kserve.wants_ready(asked.body)
            status, answer = self.about(call, only_ready)
            slot.answer(status, _to_json(answer))

    def about(self, call: kserve.Call, only_ready: bool = False) -> tuple[int, Any]:
        """Whatever the Open Inference Protocol tells without running a model: HTTP status, and what JSON says.

        Args:
            only_ready: of an index: without the models that do not serve.
        """
        match call.verb:
            case "server":
                return 200, {"name": "steersman", "version": self._version, "extensions": kserve.EXTENSIONS}
            case "live":
                return 200, {"live": True}
            case "server ready":
                return 200 if self.ready() else 400, {"ready": self.ready()}
            case "index":
                states = {name: self.models.states(name) for name in self.models.names}
                return 200, kserve.index(states, only_ready)
            case "all stats":
                return 200, kserve.stats(list(self.models.served()))
        if call.verb == "ready":
            with contextlib.suppress(NotFoundError):
                self.models.find(call.name, call.number)
                return 200, {"name": call.name, "ready": True}
            return 400, {"name": call.name, "ready": False}
        serving = self.models.find(call.name, call.number)
        signature = serving.model.signature
        if call.verb == "stats":
            return 200, kserve.stats([serving])
        if call.verb == "config":
            return 200, kserve.config(serving.name, signature)
        known = self.models.states(serving.name)
        numbers = sorted(state.number for state in known if state.state == "available")
        return 200, kserve.metadata(serving.name, numbers, signature)

    def _infer(self, call: kserve.Call, asked: Asked, slot: Slot) -> None:
        serving = self.models.find(call.name, call.number)
        _about(slot, serving, "ModelInfer")
        length = asked.headers.get(b"inference-header-content-length")
        if length is not None and not (length.isdigit() and len(length) < 19):
            raise DataError(f"Inference-Header-Content-Length is {length[:40]!r}, must be a number of bytes")
        infer: Infer | None = serving.kept.get(INFER)
        if infer is None:
            serving.kept[INFER] = infer = Infer(serving.name, serving.number, serving.model.signature)
        question, known = infer.read(asked.body, None if length is None else int(length))

        def write(outputs: list[Array]) -> bytes:
            body, json_bytes = infer.write(question, known, outputs)
            if json_bytes is not None:
                slot.kind = kserve.BINARY
                slot.more = b"\r\ninference-header-content-length: %d" % json_bytes
            return body

        self._predict(serving, question.feeds, slot, write, kserve.error_body)

    def _switch(self, name: str, on: bool, slot: Slot, errors: Errors) -> None:
        def done(error: Exception | None) -> None:
            if error is None:
                slot.answer(200, b"{}")
            else:
                refuse(self._server, slot, error, errors)

        self._server.aside(lambda: self.models.switch(name, on), done)

    # -- SageMaker ---------------------------------------------------------------------------------------------

    def sagemaker(self, asked: Asked, path: Path, slot: Slot) -> None:
        """Answer a call of SageMaker's container contract."""
        call = called(sagemaker.route, asked, path, slot)
        match call.verb:
            case "ping":
                slot.answer(200 if self.ready() else 503, b"")
            case "parameters":
                most = max(1, self._settings.max_body_bytes >> 20)
                waiting = min(self._settings.max_waiting, 64)
                answer = {"MaxConcurrentTransforms": waiting, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": most}
                slot.answer(200, _to_json(answer))
            case "list":
                names = [name for name in self.models.names if self._serves(name)]
                slot.answer(200, _to_json({"models": [self._place(name) for name in names]}))
            case "show":
                slot.answer(200, _to_json(self._place(self.models.find(call.name).name)))
            case "load":
                self._load(sagemaker.read_load(asked.body), slot)
            case "unload":
                self.models.find(call.name)
                self._switch(call.name, False, slot, tfserving.error_body)
            case _:
                self._invoke(call.name, asked, slot)

    def _serves(self, name: str) -> bool:
        return any(state.state == "available" for state in self.models.states(name))

    def _place(self, name: str) -> dict[str, str]:
        return {"modelName": name, "modelUrl": self.models.place(name)}

    def _load(self, name: str, slot: Slot) -> None:
        if self._serves(name):
            raise ConflictError(f"model {name} is served already")
        self._switch(name, True, slot, tfserving.error_body)

    def _invoke(self, name: str, asked: Asked, slot: Slot) -> None:
        names = self.models.names
        name = (
            name or asked.headers.get(b"x-amzn-sagemaker-target-model", b"").decode("latin-1") or self._settings.model
        )
        if not name:
            if len(names) != 1:
                hint = "name one as model under [serve], or in X-Amzn-SageMaker-Target-Model"
                raise DataError(f"{len(names)} models are served, and none was named", hint=hint)
            [name] = names
        serving = self.models.find(name)
        _about(slot, serving, "Invoke")
        signature = serving.model.signature
        content_type = asked.headers.get(b"content-type", b"").decode("latin-1")
        accept = asked.headers.get(b"accept", b"").decode("latin-1")
        question = sagemaker.read(asked.body, content_type, accept, signature)

        def write(outputs: list[Array]) -> bytes:
            body = sagemaker.write(question, outputs, signature)
            slot.kind = question.accept.encode()
            return body

        self._predict(serving, question.read.feeds, slot, write, tfserving.error_body)
