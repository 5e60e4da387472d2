"""A running hash over the token ids of a prompt and its reply. It identifies how far a reply has got.

A device whose connection broke resumes its reply with this hash. The cloud that it reconnects to, the same or another,
must compute the same hash; otherwise the two would continue different texts. It does not know sessions or the wire.
Test: pytest tests/contract/test_progress.py
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def running_hash(ids: Iterable[int], before: str = "") -> str:
    """Return the hash `before`, extended by `ids`: 16 hex digits.

    Each id extends it by one step: the BLAKE2b hash (8 bytes) of the previous hash and the id as a little-endian int32.
    """
    digest = bytes.fromhex(before)
    for token in ids:
        digest = hashlib.blake2b(digest + token.to_bytes(4, "little"), digest_size=8).digest()
    return digest.hex()
