"""How many tokens a key may use in a minute: a token bucket for each, in bounded memory.

A bucket holds a minute's tokens and fills evenly. What is asked for at once may be more than it holds: then it must be
full, and the debt is paid before the next. It does not know keys or the clock: both are given.
Test: pytest tests/cloud/test_token_bucket.py
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_BUCKETS = 4096  # then full ones are forgotten, being as good as new, and the fullest where none is


@dataclass
class _Bucket:
    level: float  # tokens in it; below 0: a debt
    at: float
    limit: int

    def fill(self, now: float) -> None:
        self.level = min(self.limit, self.level + max(0.0, now - self.at) * self.limit / 60)
        self.at = now


class Meter:
    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def take(self, holder_id: str, tokens: int, limit: int, now: float) -> float:
        """0: they are taken. Else nothing is, and so many seconds are to be waited. limit: a minute's; 0: none.

        `now`: seconds of any clock that goes forward.
        """
        if limit <= 0:
            return 0.0
        bucket = self._buckets.get(holder_id)
        if bucket is None:
            self._make_room(now)
            bucket = self._buckets[holder_id] = _Bucket(limit, now, limit)
        bucket.limit = limit
        bucket.fill(now)
        lacking = min(tokens, limit) - bucket.level
        if lacking > 1e-6:  # less is how floats add up
            return lacking * 60 / limit
        bucket.level -= tokens
        return 0.0

    def charge(self, holder_id: str, tokens: int, limit: int, now: float) -> None:
        """Take tokens that were used already: a debt, perhaps."""
        self.take(holder_id, 0, limit, now)
        if limit > 0:
            self._buckets[holder_id].level -= tokens

    def _make_room(self, now: float) -> None:
        if len(self._buckets) < MAX_BUCKETS:
            return
        for bucket in self._buckets.values():
            bucket.fill(now)
        for name in [name for name, bucket in self._buckets.items() if bucket.level >= bucket.limit]:
            del self._buckets[name]
        if len(self._buckets) >= MAX_BUCKETS:
            fullest = max(self._buckets.items(), key=lambda item: item[1].level / item[1].limit)
            del self._buckets[fullest[0]]
