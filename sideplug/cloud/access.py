"""Access control of a cloud: each request needs a valid key, and each key may have a number of sessions at once.

It does not know sockets or frames; Service turns its errors into responses. Test: pytest tests/cloud/test_access.py
"""

from __future__ import annotations

from collections.abc import Iterable

from sideplug.cloud.keys import Holder, Keys
from sideplug.contract.errors import Busy, Unauthorized

RETRY_S = 5  # the Retry-After of a refusal for lack of room, in seconds


class AccessControl:
    """keys: the keys that are accepted; None: no key is needed."""

    def __init__(self, keys: Keys | None) -> None:
        self._keys = keys

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
            raise Busy(f"this key has its {limit} sessions: end one, or try later")

    def check_valid(self, holder: Holder | None) -> None:
        """Check that the key of a session is still valid. Raises Unauthorized."""
        if holder is not None and self._keys is not None and not self._keys.is_valid(holder):
            raise Unauthorized("this session's key was revoked: ask whoever runs the cloud for another")
