"""The memory that all KV caches together may take. A text reserves its share, for its longest end, before it begins.

So a cloud answers "try later" before it begins a text, and never runs out of memory in the middle of somebody's reply.
Every stage of a model counts its own blocks (`KVMemory`); a pipeline of several stages reserves in all of them or in
none (`JointMemory`). It does not know what a cache looks like. Test: pytest tests/cloud/test_stages.py
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from sideplug.contract.errors import Busy, InputError

MIN_TOKENS = 64  # a memory for fewer tokens could serve nobody


class Memory(Protocol):
    """What the engine asks about the memory of all KV caches."""

    @property
    def limit_bytes(self) -> int:
        """The bytes that all caches together may take."""
        ...

    @property
    def reserved_bytes(self) -> int:
        """The bytes that are reserved now."""
        ...

    @property
    def tokens(self) -> int:
        """The most tokens that a single text may have."""
        ...

    def reserve(self, tokens: int) -> Reservation:
        """Reserve memory for `tokens` tokens. Raises Busy when what is left does not hold them."""
        ...


class KVMemory:
    """The memory of one stage: `limit_bytes` for caches that take `token_bytes` a token.

    Raises InputError where it would hold fewer than MIN_TOKENS tokens.
    """

    def __init__(self, limit_bytes: int, token_bytes: int) -> None:
        if limit_bytes < MIN_TOKENS * token_bytes:
            raise InputError(
                f"the memory for texts in work must be at least {MIN_TOKENS * token_bytes / 2**20:.1f} MiB for this "
                f"model ({MIN_TOKENS} tokens), got {limit_bytes / 2**20:.1f}"
            )
        self.limit_bytes = limit_bytes
        self.token_bytes = token_bytes
        self.reserved_bytes = 0
        self._lock = threading.RLock()  # reserved by whoever takes a request, released by whoever held it last

    @property
    def tokens(self) -> int:
        """The most tokens that a single text may have."""
        return self.limit_bytes // self.token_bytes

    def reserve(self, tokens: int) -> Reservation:
        """Reserve memory for `tokens` tokens. Raises Busy when what is left does not hold them."""
        size = tokens * self.token_bytes
        with self._lock:
            if self.reserved_bytes + size > self.limit_bytes:
                room = self.limit_bytes / 2**20
                raise Busy(f"the cloud's memory for texts in work ({room:,.0f} MiB) is taken: try later")
            self.reserved_bytes += size
        return Reservation([(self, size)])

    def release(self, size: int) -> None:
        """Count `size` bytes as free again: for `Reservation`."""
        with self._lock:
            self.reserved_bytes -= size


class JointMemory:
    """The memories of several stages as one: a text reserves its tokens in every stage, or in none."""

    def __init__(self, stages: Sequence[Memory]) -> None:
        self._stages = stages

    @property
    def limit_bytes(self) -> int:
        """The bytes that all caches of all stages together may take."""
        return sum(memory.limit_bytes for memory in self._stages)

    @property
    def reserved_bytes(self) -> int:
        """The bytes that are reserved now in all stages."""
        return sum(memory.reserved_bytes for memory in self._stages)

    @property
    def tokens(self) -> int:
        """The most tokens that a single text may have: what the smallest stage holds."""
        return min(memory.tokens for memory in self._stages)

    def reserve(self, tokens: int) -> Reservation:
        """Reserve memory for `tokens` tokens in every stage. Raises Busy when one of them has no room for them."""
        joint = Reservation([])
        try:
            for memory in self._stages:
                joint.join(memory.reserve(tokens))
        except Busy:
            joint.release()
            raise
        return joint


class Lender(Protocol):
    """What a reservation gives something back to."""

    def release(self, size: int) -> None:
        """Count `size` as free again."""
        ...


class Reservation:
    """Something of one or several lenders, until it is released or nobody holds the reservation any more."""

    def __init__(self, shares: Sequence[tuple[Lender, int]]) -> None:
        self._shares = list(shares)

    def join(self, other: Reservation) -> None:
        """Take over what `other` has reserved: from now on it is released with this one."""
        self._shares += other._shares
        other._shares = []

    def release(self) -> None:
        """Give the bytes back; a second call does nothing."""
        while self._shares:
            lender, size = self._shares.pop()
            lender.release(size)

    def __del__(self) -> None:
        self.release()


def tokens_for(memory: Memory, size: int) -> int:
    """How many tokens' memory `size` bytes are, rounded up."""
    return -(-size * memory.tokens // max(1, memory.limit_bytes))


def divide(limit_bytes: int, token_bytes: Sequence[int]) -> list[int]:
    """Divide `limit_bytes` among stages that take `token_bytes` a token each, so that all hold the same tokens.

    Raises InputError as `KVMemory` does, of the whole.
    """
    if len(token_bytes) == 1:
        return [limit_bytes]
    tokens = KVMemory(limit_bytes, sum(token_bytes)).tokens
    return [tokens * each for each in token_bytes]
