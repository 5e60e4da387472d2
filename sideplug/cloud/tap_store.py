"""The projections of taps that open sessions need: each is made once and lives as long as a session holds it.

A projection takes up to 64 MiB, and its seed is the device's choice. So it belongs to the sessions that asked for it:
it counts against their user's share, once for all sessions of that user, and ends with the last of them. How many
bytes of new projections a user makes a minute is bounded too. The default tap is kept for everybody and costs nobody
anything, so that a cloud full of strange taps still takes ordinary sessions. It does not know frames.
Test: pytest tests/cloud/test_tap_store.py
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from weakref import WeakValueDictionary

from sideplug.cloud.model.base import Sizes
from sideplug.cloud.model.memory import Reservation
from sideplug.cloud.shares import Shares
from sideplug.cloud.token_bucket import TokenBuckets
from sideplug.contract.errors import Busy
from sideplug.contract.tap import Encoder, Tap

MIN_BYTES = 48 << 20  # of all projections beside the default tap's …
DEFAULT_TAPS = 16  # … or as many default taps' projections, where the model is wide
SMALL_BYTES = 64 << 10  # of a projection that is made in a millisecond
RETRY_S = 5.0

Key = tuple[tuple[int, ...], int, int, bool]


@dataclass(frozen=True)
class HeldTap:
    """A session's hold on its encoder. claim: its user's, shared by all sessions of that user; None: it costs none."""

    encoder: Encoder
    claim: Reservation | None


class TapStore:
    """The encoders of one model's sessions. `take` may be called from any thread."""

    def __init__(self, shape: Sizes, limit: int = 0) -> None:
        """`limit`: bytes of all projections; 0: as the model's width asks for."""
        self._width = shape.width
        self._default = Tap.spread(shape.blocks, shape.width)
        self.shares = Shares(limit or max(MIN_BYTES, DEFAULT_TAPS * self._default.projection_bytes(shape.width)))
        self._rates = TokenBuckets()
        self._kept: Encoder | None = None
        self._encoders: WeakValueDictionary[Key, Encoder] = WeakValueDictionary()
        self._claims: WeakValueDictionary[tuple[str, Key], Reservation] = WeakValueDictionary()
        self._lock = threading.Lock()

    def is_at_hand(self, tap: Tap) -> bool:
        """Whether `take` has nothing to make, or so little that nobody notices."""
        if tap.projection_bytes(self._width) <= SMALL_BYTES:
            return True
        return self._kept is not None if tap == self._default else _key(tap) in self._encoders

    def take(self, user: str, tap: Tap, key_id: str = "") -> HeldTap:
        """The encoder of a tap, made now if no session has it. Raises Busy when the user's share does not hold it.

        `key_id`: whose projections a minute are counted; all that come without a key count as one.
        """
        size, key = tap.projection_bytes(self._width), _key(tap)
        if not size:
            return HeldTap(tap.encoder(self._width), None)
        with self._lock:  # two sessions that want the same one make it once
            if tap == self._default:
                self._kept = self._kept or tap.encoder(self._width)
                return HeldTap(self._kept, None)
            encoder, claim = self._encoders.get(key), self._claims.get((user, key))
            if claim is None:
                if not self.shares.allows(user, size):
                    raise Busy(f"the cloud has no room for another tap of {size / 2**20:.0f} MiB: try later", RETRY_S)
                claim = self.shares.take(user, size)
                self._claims[user, key] = claim
            if encoder is None:
                wait_s = self._rates.take(key_id, size, self.shares.limit, time.monotonic())
                if wait_s:
                    raise Busy(f"this key has had many taps made: try again in {wait_s:.0f} s", wait_s)
                encoder = tap.encoder(self._width)
                self._encoders[key] = encoder
            return HeldTap(encoder, claim)


def _key(tap: Tap) -> Key:
    return tap.layers, tap.rank, tap.seed, tap.codec == "int8"
