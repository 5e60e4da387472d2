"""Reconnecting to a cloud that was lost: attempts with growing pauses, for a limited time.

It does not know what is said over the connection, nor how far a text was: see reply.
Test: pytest tests/test_resume.py
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sideplug.contract.errors import Busy, CloudError, ProtocolError, SideplugError

FIRST_S, LONGEST_S = 0.05, 5.0
BREAKS = 12  # one after another, with nothing new said between them: then it is no accident

T = TypeVar("T")


@dataclass
class RetryPolicy:
    """patience_s: seconds to keep trying a lost cloud; 0: not at all. say: receives one line for each break."""

    patience_s: float = 60.0
    say: Callable[[str], None] = lambda line: None
    breaks: int = 0  # since something new was said

    def is_retryable(self, error: SideplugError) -> bool:
        """Whether the connection failed, rather than what was asked."""
        if isinstance(error, ProtocolError):
            return error.blame == "remote"
        return type(error).code in ("cloud", "unreachable", "internal")

    def connect(self, connect: Callable[[], T], lost: SideplugError) -> T:
        """What `connect` gives. Raises `lost`, or what `connect` raised, where trying again does not help."""
        self.breaks += 1
        if self.patience_s <= 0 or self.breaks > BREAKS or not self.is_retryable(lost):
            raise lost
        self.say(f"{lost}: trying again for up to {self.patience_s:.0f} s")
        last, wait = time.monotonic() + self.patience_s, FIRST_S
        while True:
            try:
                return connect()
            except (CloudError, ProtocolError) as error:
                if not (isinstance(error, Busy) or self.is_retryable(error)):
                    raise
                if time.monotonic() + wait > last:
                    raise CloudError(f"{lost}, and was not back within {self.patience_s:.0f} s") from error
                asked = (error.retry_s if isinstance(error, Busy) else None) or 0.0
            time.sleep(min(max(wait, asked), LONGEST_S) * random.uniform(0.7, 1.0))  # not all devices at once
            wait *= 2
