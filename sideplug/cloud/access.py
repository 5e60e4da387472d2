"""Access control of a cloud: each request needs a valid key, and each key may have a number of sessions at once.

It does not know sockets or frames; Service turns its errors into responses. Test: pytest tests/cloud/test_access.py
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from sideplug.cloud.keys import Holder, Keys
from sideplug.cloud.token_bucket import TokenBuckets
from sideplug.contract.errors import Busy, Unauthorized

RETRY_S = 5  # the Retry-After of a refusal for lack of room, in seconds
CONNECTIONS = 60  # new sessions of a key a minute, at least …
CONNECTIONS_OF_EACH = 8  # … or so many of each session that it may have
LOGGED_A_MINUTE = 10  # refusals that are logged one by one; of further ones the number
log = logging.getLogger("sideplug.cloud")


class AccessControl:
    """keys: the keys that are accepted; None: no key is needed."""

    def __init__(self, keys: Keys | None) -> None:
        self._keys = keys
        self._connections = TokenBuckets()

    @property
    def wants_keys(self) -> bool:
        """Whether requests must carry a key."""
        return self._keys is not None

    def admit(self, authorization: list[str]) -> Holder | None:
        """Return whose request it is by its Authorization headers; None if no key is needed. Raises Unauthorized."""
        if self._keys is None:
            return None
        scheme, _, key = (authorization[0] if len(authorization) == 1 else "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("this cloud wants a key (Authorization: Bearer …): --cloud-key or SIDEPLUG_CLOUD_KEY")
        holder = self._keys.check(key.strip())
        if holder is None:
            raise Unauthorized("this cloud does not know this key, or no longer: ask whoever runs it for another")
        return holder

    @staticmethod
    def check_room(holder: Holder | None, others: Iterable[Holder | None]) -> None:
        """Check that `holder` may have one more session besides those of `others`. Raises Busy."""
        limit = holder.limits.sessions if holder else 0
        if holder and limit and sum(other is not None and other.id == holder.id for other in others) >= limit:
            raise Busy(f"this key has its {limit} sessions: end one, or try later", RETRY_S)

    def check_rate(self, holder: Holder | None) -> None:
        """Count one more connection of `holder`. Raises Busy where a key without a pause connects again and again."""
        if holder is None or not holder.limits.sessions:
            return
        most = max(CONNECTIONS, CONNECTIONS_OF_EACH * holder.limits.sessions)
        wait_s = self._connections.take(holder.id, 1, most, time.monotonic())
        if wait_s:
            raise Busy(f"this key has begun {most} sessions in a minute: try again in {wait_s:.0f} s", max(1.0, wait_s))

    def check_valid(self, holder: Holder | None) -> None:
        """Check that the key of a session is still valid. Raises Unauthorized."""
        if holder is not None and self._keys is not None and not self._keys.is_valid(holder):
            raise Unauthorized("this session's key was revoked: ask whoever runs the cloud for another")


class RefusalLog:
    """Logs refused keys with the address that they came from: so many a minute one by one, of the others the number.

    So whoever tries keys is seen, and does not fill the log.
    """

    def __init__(self, a_minute: int = LOGGED_A_MINUTE) -> None:
        self._most = a_minute
        self._since_s = -60.0
        self._count = 0
        self._addresses: set[str] = set()  # of those that were not logged one by one

    def note(self, address: str, path: str, now_s: float | None = None) -> None:
        """Log that a request from this address for this path was refused, or count it."""
        self.tick(now_s)
        self._count += 1
        if self._count <= self._most:
            log.warning("a key was refused", extra={"fields": {"address": address or "unknown", "path": path[:80]}})
        elif len(self._addresses) < 1000:
            self._addresses.add(address)

    def tick(self, now_s: float | None = None) -> None:
        """Begin a new minute if the last one is over, and log how many of it were not logged; called now and then."""
        now_s = time.monotonic() if now_s is None else now_s
        if now_s - self._since_s < 60:
            return
        if self._count > self._most:
            more, some = self._count - self._most, sorted(self._addresses)
            fields = {"count": more, "addresses": len(some), "such_as": some[0]}
            log.warning("more keys were refused in a minute", extra={"fields": fields})
        self._since_s, self._count, self._addresses = now_s, 0, set()
