"""Sessions with a served cloud, and how fast they decode: the one place where the benchmark opens a session.

It does not know who is measured or why. Test: pytest tests/bench/test_parts.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from sideplug.contract.gate import Gate
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.device.address import Address
from sideplug.device.link import WebSocketLink
from sideplug.device.plugin import Plugin
from sideplug.device.runtime import Session

Stream = Callable[[list[int], int], list[float]]  # prompt ids, most tokens → the clock's time at each token


def open_session(
    cloud: str | Address, plugin: Plugin | None = None, gate: Gate | None = None, tap: Tap | None = None
) -> Session:
    """Return a session with the cloud at this URL or address; the caller closes its link."""
    address = Address(cloud) if isinstance(cloud, str) else cloud
    return Session.open(WebSocketLink.open(address), plugin, tap, gate)


@contextmanager
def session(
    cloud: str | Address, plugin: Plugin | None = None, gate: Gate | None = None, tap: Tap | None = None
) -> Iterator[Session]:
    """A session with the cloud at this URL or address, closed at the end."""
    opened = open_session(cloud, plugin, gate, tap)
    try:
        yield opened
    finally:
        opened.link.close()


def token_stream(opened: Session) -> Stream:
    """Return the function that lets this session write, greedily, and returns when each token came."""

    def stream(ids: list[int], tokens: int) -> list[float]:
        pieces = opened.generate(Prompt(ids=tuple(ids)), tokens)
        return [time.perf_counter() for piece in pieces for _ in piece.ids]

    return stream


def decode_rate(streams: list[Stream], prompts: list[list[int]], tokens: int) -> float:
    """Return the tokens a second of all streams together while all of them decode.

    Prefill and stragglers are left out. 0 where there was no such time: one reply ended before another began.
    """
    with ThreadPoolExecutor(len(streams)) as pool:
        times = list(pool.map(lambda stream, ids: stream(ids, tokens), streams, prompts))
    start, end = max(each[0] for each in times), min(each[-1] for each in times)
    if end <= start:
        return 0.0
    return sum(sum(start < at <= end for at in each) for each in times) / (end - start)
