"""Who may ask for what: API keys by their digests, and the role that a call needs. Pure."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from steersman.core.errors import ConfigError, Error

Role = Literal["predict", "decide", "admin"]
OPEN = frozenset(("/v1/live", "/v1/ready", "/ping", "/v2/health/live", "/v2/health/ready"))
"""What a load balancer asks, without a key."""

_DECIDES = ("/v1/decide/", "/v1/outcome", "/personalizer/")
_PREDICTS = ("/v1/models", "/v2", "/invocations", "/models", "/execution-parameters")
_ADMIN = re.compile(r"/v2/repository/models/[^/]+/(load|unload)|/models(/[^/]+)?")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Key(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one client.

    Attributes:
        sha256: of the key, in hex: the key itself stands in no file of ours.
        roles: what it opens.
    """

    sha256: str
    roles: tuple[Role, ...]

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.sha256):
            raise ConfigError("sha256 must be 64 hex digits", hint="steersman key makes one", field="sha256")


class UnauthorizedError(Error):
    """No key, or none that is known."""

    http_status = 401


class ForbiddenError(Error):
    """The key does not open this."""

    http_status = 403


def role_of(method: str, path: str) -> Role | None:
    """The role that a call needs; None: any key does, as for the status."""
    lower = path.lower()
    if method != "GET" and _ADMIN.fullmatch(path.rstrip("/")):  # as the routes read it
        return "admin"
    if lower.startswith(_DECIDES):
        return "decide"
    return "predict" if lower.startswith(_PREDICTS) else None


def key_in(headers: Mapping[bytes, bytes]) -> bytes:
    """The key of a request: a bearer token, `X-Api-Key`, or Personalizer's header."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and token:
        return token.strip()
    return headers.get(b"x-api-key", b"") or headers.get(b"ocp-apim-subscription-key", b"")


def check(keys: Mapping[str, Key], key: bytes, role: Role | None) -> None:
    """Let a request pass.

    The digest of its key is compared with every known one, so the time tells nothing of how near it was.

    Raises:
        UnauthorizedError, ForbiddenError: it may not.
    """
    digest = hashlib.sha256(key).hexdigest()
    roles: set[str] | None = None
    for one in keys.values():
        if hmac.compare_digest(digest, one.sha256):
            roles = set(one.roles)
    if roles is None:
        raise UnauthorizedError("no key that is known here", hint="send Authorization: Bearer KEY, or X-Api-Key: KEY")
    if role is not None and role not in roles:
        raise ForbiddenError(f"this key is not for {role}", hint=f"it is for {', '.join(sorted(roles))}")
