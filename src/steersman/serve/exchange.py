"""What a connection and those who answer exchange: a request, and the place of its answer."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from steersman.core.errors import Error
from steersman.serve.coding import MOST_BYTES, gzipped
from steersman.serve.metrics import Which
from steersman.serve.plane import error_body

JSON = b"application/json"
KEPT = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"authorization",
        b"content-type",
        b"inference-header-content-length",
        b"ocp-apim-subscription-key",
        b"x-amzn-sagemaker-target-model",
        b"x-api-key",
    )
)
"""Headers that some protocol reads."""


class Asked(Struct, frozen=True):
    """A whole request.

    Attributes:
        target: path and query as they came.
        headers: those of KEPT, by their lower-case names.
    """

    method: bytes
    target: bytes
    headers: dict[bytes, bytes]
    body: bytes


class HttpError(Error):
    """What only HTTP can get wrong; its status has no class in the tree."""

    def __init__(self, status: int, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.http_status = status


class Slot:
    """The place of an answer among those of its connection; its `answer` is the plane's Reply.

    Args:
        answered: told when the answer is there.

    Attributes:
        kind: content type of the answer.
        more: further header lines of it, each behind a line's end.
        about, began: the model that was asked, and when, in seconds of a clock of its own; for the metrics.
        asked: the request, if there is an access log.
        gzip_from: bytes from which on an answer is compressed; 0: none is.
    """

    __slots__ = (
        "_answered", "about", "allow", "asked", "bare", "began", "body", "close", "gzip_from", "kind", "more",
        "status", "version",
    )  # fmt: skip

    def __init__(self, answered: Callable[[], None], version: str, close: bool, bare: bool) -> None:
        self._answered = answered
        self.version = version
        self.close = close
        self.bare = bare
        self.allow = ""
        self.kind = JSON
        self.about: Which | None = None
        self.began = 0.0
        self.asked: Asked | None = None
        self.more = b""
        self.gzip_from = 0
        self.status = 0
        self.body = b""

    def answer(self, status: int, body: bytes) -> None:
        if self.gzip_from and self.gzip_from <= len(body) <= MOST_BYTES:
            body = gzipped(body)
            self.more += b"\r\ncontent-encoding: gzip\r\nvary: accept-encoding"
        self.status = status
        self.body = body
        self._answered()

    def refuse(self, error: Error) -> None:
        self.answer(error.http_status, error_body(error))
