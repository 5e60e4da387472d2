"""Control maps of a few megabytes that would be gigabytes if they were decoded.

Test: pytest tests/cloud/test_inbound.py
"""

from __future__ import annotations

from typing import Any

import msgspec

from sideplug.contract.frames import Kind

EMPTY_MAPS = 4_000_000
HUGE = ("extensions", "messages", "top", "ids")


def huge_map(kind: str, count: int = EMPTY_MAPS) -> tuple[Kind, bytes]:
    """A control map of millions of empty maps, lists or ids, where the kind says so."""
    many = b"\xdd" + count.to_bytes(4, "big")
    base: dict[str, Any] = {"turn": 1, "max_tokens": 1, "sampling": {}}
    start = lambda fields: bytes([0x80 | (len(fields) + 1)]) + msgspec.msgpack.encode(fields)[1:]  # noqa: E731
    text = msgspec.msgpack.encode
    if kind == "extensions":
        return Kind.PROMPT, start(base) + text(kind) + b"\x81" + text("x") + many + b"\x80" * count
    if kind == "messages":
        return Kind.PROMPT, start(base) + text(kind) + many + b"\x80" * count
    if kind == "top":
        fields = {"turn": 1, "at": 1, "ids": [], "text": "", "by": ""}
        rows = min(count, 1 << 20)
        return Kind.TOKENS, start(fields) + text(kind) + b"\xdd" + rows.to_bytes(4, "big") + b"\x90" * rows
    rows = min(count, 800_000)
    return Kind.PROMPT, start(base) + text("ids") + b"\xdd" + rows.to_bytes(4, "big") + b"\xce\0\0\1\1" * rows
