"""Token buckets limit how many tokens a key may use per minute: one bucket for each key, in bounded memory.

A bucket holds one minute's tokens and fills at a constant rate. A request may ask for more than the bucket holds: then
the bucket must be full, it goes below zero, and the next request waits until that debt is paid. It does not know clocks
or key files: the time and the key's id are given. Test: pytest tests/cloud/test_token_bucket.py
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

MAX_BUCKETS = 4096  # beyond this, full buckets are forgotten (a new one is full too), or the fullest if none is full


@dataclass
class _Bucket:
    level: float  # tokens in it; below 0 it is a debt
    at_s: float  # when `level` was right
    limit: int  # tokens that it holds, and that flow in each minute

    def fill(self, now_s: float) -> None:
        self.level = min(self.limit, self.level + max(0.0, now_s - self.at_s) * self.limit / 60)
        self.at_s = now_s


class TokenBuckets:
    """The buckets of all keys, for several threads.

    `limit` is always tokens per minute (0: no limit), `now_s` seconds of a steady clock.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, holder_id: str, tokens: int, limit: int, now_s: float) -> float:
        """Take `tokens` from a key's bucket and return 0; or take nothing and return the seconds to wait."""
        if limit <= 0:
            return 0.0
        with self._lock:
            bucket = self._bucket(holder_id, limit, now_s)
            lacking = min(tokens, limit) - bucket.level
            if lacking > 1e-6:  # anything less is a rounding error of the floats
                return lacking * 60 / limit
            bucket.level -= tokens
            return 0.0

    def charge(self, holder_id: str, tokens: int, limit: int, now_s: float) -> None:
        """Take tokens that have been used already, whatever the bucket holds: it may go below zero.

        A number below 0 gives back what was taken and not used.
        """
        if limit > 0:
            with self._lock:
                bucket = self._bucket(holder_id, limit, now_s)
                bucket.level = min(limit, bucket.level - tokens)

    def _bucket(self, holder_id: str, limit: int, now_s: float) -> _Bucket:
        """The bucket of a key, as it is now."""
        bucket = self._buckets.get(holder_id)
        if bucket is None:
            self._make_room(now_s)
            bucket = self._buckets[holder_id] = _Bucket(limit, now_s, limit)
        bucket.limit = limit
        bucket.fill(now_s)
        return bucket

    def _make_room(self, now_s: float) -> None:
        if len(self._buckets) < MAX_BUCKETS:
            return
        for bucket in self._buckets.values():
            bucket.fill(now_s)
        for name in [name for name, bucket in self._buckets.items() if bucket.level >= bucket.limit]:
            del self._buckets[name]
        if len(self._buckets) >= MAX_BUCKETS:
            fullest = max(self._buckets.items(), key=lambda item: item[1].level / item[1].limit)
            del self._buckets[fullest[0]]
