"""Shares: how much of something that all users share each of them has, and the most that one may have.

    most = limit / (users + 1)        users: those who have some or want some; so there is always room for one more

What a user has already is never taken away when others come; it gets no more until it is below its share again. A user
is the holder of a key with all of its sessions; without keys, one session. It does not know what is shared: tokens of
KV memory, bytes of projections. Test: pytest tests/cloud/test_shares.py
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection

from sideplug.cloud.model.memory import Reservation


class Shares:
    """Shares of `limit`, by user. It may be used from several threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: Counter[str] = Counter()
        self._lock = threading.RLock()  # taken by whoever begins something, given back by whoever held it last

    def held(self, user: str) -> int:
        """How much a user has."""
        return self._held[user]

    @property
    def total(self) -> int:
        """How much all users have together."""
        with self._lock:
            return self._held.total()

    def most(self, user: str, wanting: Collection[str] = ()) -> int:
        """The most that this user may have, beside those who have some and those who are `wanting` some."""
        with self._lock:
            return self.limit // (len({user, *wanting, *self._held}) + 1)

    def allows(self, user: str, size: int, wanting: Collection[str] = ()) -> bool:
        """Whether a user may have so much more."""
        return self._held[user] + size <= self.most(user, wanting) and self.total + size <= self.limit

    def take(self, user: str, size: int) -> Reservation:
        """Count `size` for a user until the reservation is released; it is not checked against the limit."""
        with self._lock:
            self._held[user] += size
        return Reservation([(_Part(self, user), size)])

    def give_back(self, user: str, size: int) -> None:
        """Count `size` as free again: for the reservation."""
        with self._lock:
            self._held[user] -= size
            if self._held[user] <= 0:
                del self._held[user]


class _Part:
    """What one user has of the shares."""

    def __init__(self, shares: Shares, user: str) -> None:
        self._shares = shares
        self._user = user

    def release(self, size: int) -> None:
        """Count `size` of it as free again."""
        self._shares.give_back(self._user, size)
