"""Work aside: what would hold up the event loop is done in one thread of its own, a piece of each user at a time.

Decoding a frame of megabytes, tokenizing a long text and making a tap's projection take up to a second. In the event
loop everybody would wait for it; in a thread for each session they would take all cores. The thread rests six times
as long as it has worked, so that it takes a seventh of a core at most, and a user's next piece waits for longer than
that. The time counts as the user's share of the engine (`charge`). It does not know what is done.
Test: pytest tests/cloud/test_aside.py
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")
REST = 6.0  # how many times as long as a piece took the thread rests
USER_REST = 12.0  # how many times as long as its piece took a user's next one waits
MAX_REST_S = 2.0


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's


def _rest(seconds: float) -> None:
    """Give the memory of the last piece back to the system, which an allocator would keep, then sleep."""
    if _trim is not None:
        _trim(0)
    time.sleep(seconds)


class Aside:
    """One thread. `run` is called in the event loop. charge: told of the seconds that a piece of a user took."""

    def __init__(self, charge: Callable[[str, float], None] = lambda user, seconds: None) -> None:
        self._charge = charge
        self._thread = ThreadPoolExecutor(1, "aside")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self, user: str, function: Callable[[], T]) -> T:
        """Return function(), run in the thread. A second piece of one user waits until others' have had their turn."""
        turn = self._turns.get(user)
        if turn is None:
            turn = self._turns[user] = asyncio.Lock()
        loop = asyncio.get_running_loop()
        await turn.acquire()
        started_s, took_s = time.monotonic(), 0.0

        def timed() -> T:
            nonlocal started_s, took_s
            started_s = time.monotonic()
            try:
                return function()
            finally:
                took_s = min(time.monotonic() - started_s, MAX_REST_S)
                self._charge(user, took_s)
                self._thread.submit(_rest, min(REST * took_s, MAX_REST_S))

        try:
            return await loop.run_in_executor(self._thread, timed)
        finally:
            loop.call_later(min(USER_REST * took_s, MAX_REST_S), turn.release)

    def stop(self) -> None:
        """End the thread behind what it is doing."""
        self._thread.shutdown(wait=False, cancel_futures=True)
