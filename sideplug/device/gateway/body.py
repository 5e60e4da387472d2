"""The body of a request, whole and plain: bounded in size, unpacked where it came packed.

It does not know what is in a body. Test: pytest tests/device/test_gateway.py
"""

from __future__ import annotations

import zlib

from starlette.requests import Request

from sideplug.contract.errors import InputError, TooLong

MAX_BODY_BYTES = 32 << 20  # also of what a packed body unpacks to
# zlib's window bits: 47 finds out whether it is gzip's form or zlib's.
PACKED = {"gzip": 47, "x-gzip": 47, "deflate": 47}
PLAIN = ("", "identity")


async def read_body(request: Request) -> bytes:
    """Return the request's body. Raises TooLong, and InputError for one that can't be unpacked."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in (*PLAIN, *PACKED):
        raise InputError(f"a body packed with {encoding[:40]!r} can't be read: send it plain, or packed with gzip")
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise _too_long()
        parts.append(part)
    body = b"".join(parts)
    return body if encoding in PLAIN else unpacked(body, PACKED[encoding])


def unpacked(body: bytes, window_bits: int) -> bytes:
    """Return what a packed body holds. Raises TooLong, InputError (it is damaged, or cut off)."""
    unpacker = zlib.decompressobj(window_bits)
    try:
        plain = unpacker.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise InputError("the body is packed, and damaged: send it again, or plain") from error
    if len(plain) > MAX_BODY_BYTES:
        raise _too_long()
    if not unpacker.eof:
        raise InputError("the body is packed, and cut off: send it again, or plain")
    return plain


def _too_long() -> TooLong:
    return TooLong(f"the body must have at most {MAX_BODY_BYTES >> 20} MiB")
