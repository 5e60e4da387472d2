"""Access control of a cloud: each request needs a valid key, and each key may have a number of sessions at once.

A web page may come in where its origin is allowed; since a browser sets no headers, its key may come as a WebSocket
sub-protocol, "key.sp-…", beside our own, "sideplug".

It does not know sockets or frames; Service turns its errors into responses. Test: pytest tests/cloud/test_access.py
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sideplug.cloud.keys import Holder, Keys
from sideplug.cloud.token_bucket import TokenBuckets
from sideplug.contract.errors import Busy, InputError, Unauthorized, WrongOrigin

RETRY_S = 5  # the Retry-After of a refusal for lack of room, in seconds
CONNECTIONS = 60  # new sessions of a key a minute, at least …
CONNECTIONS_OF_EACH = 8  # … or so many of each session that it may have
LOGGED_A_MINUTE = 10  # refusals that are logged one by one; of further ones the number
SUBPROTOCOL, KEY = "sideplug", "key."  # of a WebSocket that a web page opens
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._\-\[\]:]+")
log = logging.getLogger("sideplug.cloud")


@dataclass(frozen=True)
class Caller:
    """Who sends an HTTP request. authorization: its headers of that name. origin: of the web page that sends it; "" for
    other programs. protocols: the sub-protocols that a WebSocket offers. address: where it comes from."""

    authorization: Sequence[str] = ()
    origin: str = ""
    protocols: Sequence[str] = ()
    address: str = ""

    @property
    def has_key(self) -> bool:
        """Whether it says whose it is."""
        return bool(self.authorization or self._keys)

    @property
    def key(self) -> str:
        """The one key that it shows; "" where it shows none, or several."""
        keys = self._keys
        for header in self.authorization:
            scheme, _, key = header.partition(" ")
            keys = [*keys, key.strip() if scheme.lower() == "bearer" else ""]
        return keys[0] if len(keys) == 1 else ""

    @property
    def _keys(self) -> list[str]:
        return [each.removeprefix(KEY) for each in self.protocols if each.startswith(KEY)]


def checked_origins(text: str) -> tuple[str, ...]:
    """The origins of --allow-origin, with commas between. Raises InputError."""
    origins = tuple(each.strip().rstrip("/").lower() for each in text.split(",") if each.strip())
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise InputError(f"--allow-origin must be like https://plugin.example, got {origin[:80]!r}")
    return origins


class AccessControl:
    """keys: the keys that are accepted; None: no key is needed. origins: of web pages that may come in."""

    def __init__(self, keys: Keys | None, origins: Sequence[str] = ()) -> None:
        self._keys, self._origins = keys, frozenset(origins)
        self._connections = TokenBuckets()

    @property
    def wants_keys(self) -> bool:
        """Whether requests must carry a key."""
        return self._keys is not None

    def admit(self, caller: Caller) -> Holder | None:
        """Return whose request it is; None if no key is needed. Raises WrongOrigin, Unauthorized."""
        if caller.origin and caller.origin.lower() not in self._origins:
            raise WrongOrigin(
                f"pages of {caller.origin[:80]} may not use this cloud: whoever runs it allows them (--allow-origin)"
            )
        if self._keys is None:
            return None
        if not caller.key:
            raise Unauthorized("this cloud wants a key (Authorization: Bearer …): --cloud-key or SIDEPLUG_CLOUD_KEY")
        holder = self._keys.check(caller.key)
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
