"""The memory that all KV caches together may take: promised to a text when its work begins, for its longest end.

So a cloud says "try later" at the door, and never runs out of memory in the middle of somebody's reply.
"""

from __future__ import annotations

import threading

from sideplug.contract.errors import Busy, InputError

LEAST = 64  # tokens: below that nobody could be served


class KVMemory:
    """`limit_bytes` for caches of `token_bytes` a token. Raises InputError where that is next to nothing."""

    def __init__(self, limit_bytes: int, token_bytes: int) -> None:
        if limit_bytes < LEAST * token_bytes:
            raise InputError(
                f"the memory for texts in work must be at least {LEAST * token_bytes / 2**20:.1f} MiB for this model "
                f"({LEAST} tokens), got {limit_bytes / 2**20:.1f}"
            )
        self.limit_bytes = limit_bytes
        self.token_bytes = token_bytes
        self.reserved_bytes = 0
        self._lock = threading.RLock()  # promised by whoever takes a request, released by whoever held it last

    def promise(self, tokens: int) -> Reservation:
        """Raises Busy when what is left does not hold `tokens`."""
        size = tokens * self.token_bytes
        with self._lock:
            if self.reserved_bytes + size > self.limit_bytes:
                room = self.limit_bytes / 2**20
                raise Busy(f"the cloud's memory for texts in work ({room:,.0f} MiB) is taken: try later")
            self.reserved_bytes += size
        return Reservation(self, size)

    @property
    def tokens(self) -> int:
        """What a single text may have at most."""
        return self.limit_bytes // self.token_bytes

    def release(self, size: int) -> None:
        with self._lock:
            self.reserved_bytes -= size


class Reservation:
    """Some bytes, until they are released or nobody holds it any more."""

    def __init__(self, memory: KVMemory, size: int) -> None:
        self._memory = memory
        self._size = size

    def release(self) -> None:
        self._memory.release(self._size)
        self._size = 0

    def __del__(self) -> None:
        self.release()
