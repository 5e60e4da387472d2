"""A device that asks for much and reads nothing: what a server does when a socket is really full."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
from websockets.sync.client import connect

from sideplug.cloud.counters import Counters
from sideplug.contract.frames import ROWS_PER_FRAME, GateSpec, Open, Rows
from sideplug.contract.wire import PATH, encode
from tests.conftest import eventually


@contextlib.contextmanager
def a_raw_device(url: str) -> Iterator[Any]:
    """A connection that has said OPEN, sends no pings, and leaves little room for what it does not read."""
    host, _, port = url.removeprefix("ws://").partition(":")
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        line.connect((host, int(port)))
        options: dict[str, Any] = {"compression": None, "max_size": None, "max_queue": 1, "ping_interval": None}
        with connect(url + PATH, sock=line, close_timeout=0.5, **options) as connection:
            opening = Open("", "", "add", [GateSpec("shut")], "x", np.zeros((0, 0), np.float32))
            connection.send(encode(opening, 0))
            yield connection


def ask_for_rows(connection: Any, counters: Counters, count: int = 80) -> None:
    """Ask for parts of the head again and again, reading nothing, until the server sends no more of them."""
    ids = np.arange(ROWS_PER_FRAME, dtype=np.int32) % 300
    for number in range(count):
        connection.send(encode(Rows(0, ids), number + 1))
        try:
            eventually(lambda: counters.frames["down", "head"] > number, within_s=2.0)  # noqa: B023
        except AssertionError:
            return
