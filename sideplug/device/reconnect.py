"""The retry policy: how a device reconnects to a lost cloud, with growing pauses and for a limited time.

It does not know frames, nor how far a reply had got: see reply. Test: pytest tests/test_resume.py
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sideplug.contract.errors import Busy, CloudError, ProtocolError, SideplugError, Untrusted

FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 5.0
MAX_BREAKS = 12  # consecutive breaks without any progress between them; more are no accident

T = TypeVar("T")


@dataclass
class RetryPolicy:
    """patience_s: seconds to keep reconnecting; 0: do not reconnect. say: called with one line for each break."""

    patience_s: float = 60.0
    say: Callable[[str], None] = lambda line: None
    breaks: int = 0  # since the last progress

    def is_retryable(self, error: SideplugError) -> bool:
        """Return whether the connection failed, rather than the request."""
        if isinstance(error, ProtocolError):
            return error.blame == "remote" and not isinstance(error, Untrusted)
        return type(error).code in ("cloud", "unreachable", "internal")

    def connect(self, connect: Callable[[], T], lost: SideplugError) -> T:
        """Call `connect` until it succeeds; return its result. Raises `lost`, or an error that retrying can't help."""
        self.breaks += 1
        if self.patience_s <= 0 or self.breaks > MAX_BREAKS or not self.is_retryable(lost):
            raise lost
        self.say(f"{lost}: trying again for up to {self.patience_s:.0f} s")
        deadline, pause_s = time.monotonic() + self.patience_s, FIRST_PAUSE_S
        while True:
            try:
                return connect()
            except (CloudError, ProtocolError) as error:
                if not (isinstance(error, Busy) or self.is_retryable(error)):
                    raise
                if time.monotonic() + pause_s > deadline:
                    raise CloudError(f"{lost}, and was not back within {self.patience_s:.0f} s") from error
                cloud_pause_s = (error.retry_s if isinstance(error, Busy) else None) or 0.0
            time.sleep(min(max(pause_s, cloud_pause_s), MAX_PAUSE_S) * random.uniform(0.7, 1.0))  # spread the devices
            pause_s *= 2
