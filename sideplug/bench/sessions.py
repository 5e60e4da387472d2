"""Sessions with a served cloud, and how fast they decode: the one place where the benchmark opens a session.

It does not know who is measured or why. Test: pytest tests/bench/test_parts.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from sideplug.contract.gate import Gate
from sideplug.contract.text import Prompt
from sideplug.device.address import Address
from sideplug.device.client import Client
from sideplug.device.responders import Responder
from sideplug.device.session import Session
from sideplug.plugins import Plugin

Stream = Callable[[list[int], int], list[float]]  # prompt ids, most tokens → the clock's time at each token


def open_session(
    cloud: str | Address, plugin: Plugin | None = None, gate: Gate | None = None, responder: Responder | None = None
) -> Session:
    """Return a session with the cloud at this URL or address, for a `with` statement: see Client.connect.

    It does not connect again, so that a break does not pass for slowness.
    """
    client = Client.at(cloud)
    return replace(client, address=replace(client.address, retry_s=0.0)).connect(plugin, gate, responder)


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
    inside = sum(start < at <= end for each in times for at in each)
    return float(inside / (end - start))
