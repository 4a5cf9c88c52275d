"""Content codings: compressed bodies read to a limit, answers compressed for who accepts that. Pure."""

from __future__ import annotations

import zlib

from steersman.core.errors import DataError, TooLargeError

CODINGS = frozenset((b"gzip", b"x-gzip", b"deflate"))
"""Those that a body may come in."""

MOST_BYTES = 4 << 20
"""An answer above this is sent as it is: it would hold up the others for too long."""

MOST_MEMBERS = 16
_LEVEL = 1
_GZIP, _ANY = 31, 47
"""Of zlib: a gzip member; the same, or a zlib stream, told apart by their first bytes."""


def inflated(body: bytes, limit: int) -> bytes:
    """What a compressed body holds: gzip, of one or several members, or a zlib stream.

    Args:
        limit: bytes that it may hold; no more are made of it.
    Raises:
        TooLargeError: it holds more.
        DataError: it is not compressed so, or not to its end.
    """
    parts: list[bytes] = []
    size = 0
    while body:
        if len(parts) == MOST_MEMBERS:
            raise TooLargeError(f"the body has over {MOST_MEMBERS} gzip members", hint="compress it in one")
        member = zlib.decompressobj(_ANY)
        try:
            parts.append(member.decompress(body, limit - size + 1))
        except zlib.error as error:
            raise DataError(f"the body is not compressed as content-encoding says: {error}") from None
        size += len(parts[-1])
        if size > limit:
            raise TooLargeError(f"the body holds over {limit} bytes", hint="send less in one body")
        if not member.eof:
            raise DataError("the compressed body ends before its end")
        body = member.unused_data
    return b"".join(parts)


def accepts_gzip(header: bytes) -> bool:
    """Whether an Accept-Encoding lets an answer be gzip.

    >>> [accepts_gzip(one) for one in (b"gzip, deflate", b"br;q=1.0, gzip;q=0.8", b"gzip;q=0", b"*", b"identity", b"")]
    [True, True, False, True, False, False]
    """
    for one in header.lower().split(b","):
        name, _, weight = one.partition(b";")
        if name.strip() in (b"gzip", b"x-gzip", b"*"):
            return weight.replace(b" ", b"") not in (b"q=0", b"q=0.0", b"q=0.00", b"q=0.000")
    return False


def gzipped(body: bytes) -> bytes:
    """One gzip member."""
    made = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    return made.compress(body) + made.flush()
