"""The cloud's door: a key on every request, so many sessions of each key, and the end of those whose key was revoked.

It does not know sockets or frames: server.py says what it decides. Test: pytest tests/cloud/test_access.py
"""

from __future__ import annotations

from collections.abc import Iterable

from sideplug.cloud.keys import Holder, Keys
from sideplug.contract.errors import Busy, Unauthorized

RETRY_S = 5  # what a key that has all its sessions is told


class AccessControl:
    """`keys`: those that may come in; None: everybody may."""

    def __init__(self, keys: Keys | None) -> None:
        self._keys = keys

    def admit(self, authorization: list[str]) -> Holder | None:
        """Whose request it is, by its Authorization headers; None where no keys are asked for. Raises Unauthorized."""
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
        """May it have one more session beside those of `others`? Raises Busy."""
        limit = holder.limits.sessions if holder else 0
        if holder and limit and sum(other is not None and other.id == holder.id for other in others) >= limit:
            raise Busy(f"this key has its {limit} sessions: end one, or try later")

    def check_valid(self, holder: Holder | None) -> None:
        """Is the key of a session still in force? Raises Unauthorized."""
        if holder is not None and self._keys is not None and not self._keys.is_valid(holder):
            raise Unauthorized("this session's key was revoked: ask whoever runs the cloud for another")
