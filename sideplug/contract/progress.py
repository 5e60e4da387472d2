"""Where a reply stands: a running hash over every token id so far, prompt and reply.

A device that was cut off goes on by it: the cloud that it finds then, the same or another, must have come to the same
hash, or the two would continue different texts. It does not know sessions or the wire.
Test: pytest tests/contract/test_progress.py
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def running_hash(ids: Iterable[int], before: str = "") -> str:
    """16 hex digits: BLAKE2b of the hash before and the next id (int32, little-endian), id after id."""
    found = bytes.fromhex(before)
    for token in ids:
        found = hashlib.blake2b(found + token.to_bytes(4, "little"), digest_size=8).digest()
    return found.hex()
