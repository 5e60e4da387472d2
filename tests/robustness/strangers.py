"""All that is not a person's device behaving well: garbage, wrong keys, connections that say nothing or never read.

Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from sideplug.contract import wire
from sideplug.contract.errors import Busy, CloudError, SideplugError
from sideplug.contract.frames import Cancel, Done, Error, GateSpec, Open, PromptFrame, Read, SamplingSpec, Tokens
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.device.link import WebSocketLink
from sideplug.terminal import say
from tests.robustness.people import cut
from tests.robustness.tiny_cloud import WORDS, Cloud


class Stranger(threading.Thread):
    """Does `act` again and again, with pauses, until the end; counts what each came to."""

    def __init__(self, name: str, act: Callable[[random.Random], str], pause_s: float, seed: int, end: float) -> None:
        super().__init__(name=name, daemon=True)
        self._act, self._pause_s, self._end = act, pause_s, end
        self._rng = random.Random(f"{seed}/{name}")
        self.outcomes: Counter[str] = Counter()

    def run(self) -> None:
        """Act until the end."""
        while time.monotonic() < self._end:
            try:
                outcome = self._act(self._rng)
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            self.outcomes[outcome] += 1
            time.sleep(max(0.0, min(self._rng.uniform(0.2, 1.8) * self._pause_s, self._end - time.monotonic())))


class Strangers:
    """All that is not a person's device behaving well. `end`: when they must have gone, on the monotonic clock."""

    def __init__(self, cloud: Cloud, key: str, known: Prompt, base_text: str, seed: int, end: float) -> None:
        self._cloud, self._key, self._end = cloud, key, end
        self._known, self._base_text = known, base_text
        self._held = ExitStack()
        self.wrong: list[str] = []
        acts: list[tuple[Callable[[random.Random], str], float]] = [
            (self._random_bytes, 1.0),
            (self._http_junk, 1.0),
            (self._random_messages, 1.0),
            (self._wrong_checksum, 1.0),
            (self._wrong_key, 1.0),
            (self._half_open, 4.0),
            (self._vanishes, 1.0),
            (self._never_answers, 1.0),
            (self._misses_deadlines, 3.0),
            (self._never_reads, 2.0),
        ]
        self._threads = [
            Stranger(act.__name__.strip("_").replace("_", " "), act, pause, seed, end) for act, pause in acts
        ]

    def start(self) -> None:
        """Let all of them act, each in a thread."""
        for thread in self._threads:
            thread.start()

    def gone(self) -> dict[str, dict[str, int]]:
        """What each came to, by name."""
        for thread in self._threads:
            thread.join(max(0.1, self._end + 30 - time.monotonic()))
        self._held.close()
        return {thread.name: dict(thread.outcomes) for thread in self._threads}

    @property
    def _left(self) -> float:
        return max(0.5, self._end - time.monotonic())

    def _tcp(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._cloud.port), 20)

    def _tls(self) -> socket.socket:
        context = self._cloud.address().tls()
        assert context is not None
        return context.wrap_socket(self._tcp())

    def _websocket(self, receive_bytes: int = 0) -> ClientConnection:
        """With a good key; `receive_bytes`: of a buffer that is small, so that the cloud feels an unread byte."""
        bare = socket.socket()
        if receive_bytes:
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        bare.settimeout(20)
        bare.connect(("127.0.0.1", self._cloud.port))
        address = self._cloud.address(self._key)
        return connect(
            address.endpoint,
            sock=bare,
            ssl=address.tls(),
            additional_headers={"Authorization": f"Bearer {self._key}"},
            compression=None,
            max_size=wire.MAX_FRAME_BYTES,
            max_queue=1 if receive_bytes else 16,
            ping_interval=None,
            close_timeout=1,
        )

    def _opening(self, tap: str = "") -> Open:
        return Open("", tap, "add", [GateSpec("open")], "tests/load", np.zeros((0, 0), np.float32))

    def _prompt(self, max_tokens: int = 48, **more: Any) -> PromptFrame:
        return PromptFrame(1, max_tokens, SamplingSpec(), **self._known.to_wire(), **more)

    def _random_bytes(self, rng: random.Random) -> str:
        secure = rng.random() < 0.5
        with self._tls() if secure else self._tcp() as stream:
            stream.sendall(rng.randbytes(rng.choice([1, 20, 300, 5000, 200_000])))
            return f"{'in TLS' if secure else 'bare'}: {_end_of(stream)}"

    def _http_junk(self, rng: random.Random) -> str:
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        kind, request = rng.choice(
            [
                ("a wrong method", "DELETE /v1/session HTTP/1.1\r\nHost: a\r\n\r\n"),
                ("a wrong version", "GET / HTTP/9.9\r\n\r\n"),
                ("no request", "\r\n\r\n\r\n"),
                ("an endless header", f"GET / HTTP/1.1\r\nX: {'a' * 20_000}\r\n\r\n"),
                ("many headers", "GET / HTTP/1.1\r\n" + "X: a\r\n" * 500 + "\r\n"),
                ("a body", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\nabc"),
                ("a bad upgrade", f"GET /v1/session HTTP/1.1\r\nHost: a\r\n{upgrade}Sec-WebSocket-Key: x\r\n\r\n"),
                ("half a request", "GET /v1/sess"),
                ("not ASCII", "GET /\u00e9\u0000 HTTP/1.1\r\nAuthorization: Bearer \u00ff\r\n\r\n"),
            ]
        )
        with self._tls() as stream:
            stream.sendall(request.encode("latin-1"))
            if kind == "half a request":
                return f"{kind}: left"
            return f"{kind}: {_end_of(stream)}"

    def _random_messages(self, rng: random.Random) -> str:
        with self._websocket() as connection:
            for _ in range(rng.randint(1, 3)):
                message = rng.randbytes(rng.choice([0, 1, 19, 20, 21, 400, 70_000]))
                with suppress(ConnectionClosed):
                    connection.send(message if rng.random() < 0.9 else message.hex())
            return _refused(connection)

    def _wrong_checksum(self, rng: random.Random) -> str:
        with self._websocket() as connection:
            message = bytearray(wire.encode(self._opening()))
            message[rng.randrange(16, len(message))] ^= rng.randint(1, 255)
            connection.send(bytes(message))
            return _refused(connection)

    def _wrong_key(self, rng: random.Random) -> str:
        real = self._key
        key = rng.choice([real[:-1], real + "a", f"sp-{'0' * 12}-{'a' * 43}", "x", real.swapcase()])
        try:
            WebSocketLink.open(self._cloud.address(key)).close()
        except CloudError as error:
            return error.code
        return "LET IN"

    def _half_open(self, rng: random.Random) -> str:
        """Connections that say nothing: left open until they are cut, or to the end."""
        make = rng.choice([self._tcp, self._tls, self._websocket])
        self._held.enter_context(make())
        return f"{make.__name__.strip('_')} left open"

    def _vanishes(self, rng: random.Random) -> str:
        """A device that asks and is gone: at once, while it waits for memory, or in its reply."""
        with self._websocket() as connection:
            for number, frame in enumerate([self._opening(), self._prompt(max_tokens=rng.choice([1, 48, 900]))]):
                connection.send(wire.encode(frame, number))
            with suppress(TimeoutError):
                for _ in range(rng.randint(0, 4)):
                    connection.recv(timeout=rng.uniform(0, 2))
            cut(connection, rng)
        return "gone"

    def _never_answers(self, rng: random.Random) -> str:
        """Asked, and silent: until it is sent away, if the run is long enough (two minutes)."""
        with self._websocket() as connection:
            for number, frame in enumerate([self._opening(), self._prompt(window=rng.choice([0, 24]))]):
                connection.send(wire.encode(frame, number))
            return _refused(connection, self._left)

    def _misses_deadlines(self, rng: random.Random) -> str:
        """Never answers, but has said that it may be late: its text is the base's."""
        link = WebSocketLink.open(self._cloud.address(self._key))
        try:
            link.send(self._opening())
            link.send(self._prompt(window=rng.choice([0, 8]), deadline_ms=rng.choice([1, 30])))
            text = ""
            while not isinstance(frame := link.receive(self._left + 20), Done):
                text += frame.text if isinstance(frame, Tokens) else ""
        except Busy:
            return "busy"
        finally:
            link.close()
        if text != self._base_text:
            self.wrong.append(f"after its deadlines: {text!r} instead of {self._base_text!r}")
            say(f"WRONG {self.wrong[-1]}")
        return "the base's text" if text == self._base_text else "WRONG TEXT"

    def _never_reads(self, rng: random.Random) -> str:
        """Asks for much (examples, with a raw tap) and reads none of it: cut off after a minute."""
        with self._websocket(4096) as connection:
            connection.send(wire.encode(self._opening(Tap.raw(2, 64).name)))
            text, began = " ".join(rng.choices(WORDS, k=250)), time.monotonic()
            try:
                for number in range(1, 1000):
                    read = Read(number, text, False, text="")
                    frame = read if number < 20 else Cancel(1)  # then just to see if it is there
                    connection.send(wire.encode(frame, number))
                    time.sleep(1)
                    if time.monotonic() > self._end:
                        break
                return "to the end"
            except (ConnectionClosed, OSError, TimeoutError):
                return f"cut off after {round((time.monotonic() - began) / 30) * 30} s"


def _end_of(stream: socket.socket) -> str:
    """How the other side ends it."""
    stream.settimeout(15)
    got = b""
    try:
        while piece := stream.recv(1 << 16):
            got += piece
    except TimeoutError:
        return "held open"
    except OSError as error:
        return f"reset ({type(error).__name__})"
    return got.split(b"\r\n")[0].decode("ascii", "replace") if got.startswith(b"HTTP") else "ended"


def _refused(connection: ClientConnection, seconds: float = 20) -> str:
    """The ERROR that comes, and the close code."""
    code, last = "no error", time.monotonic() + seconds
    try:
        while True:
            message = connection.recv(timeout=max(0.0, last - time.monotonic()))
            frame = wire.decode(message) if isinstance(message, bytes) else None
            if isinstance(frame, Error):
                code = frame.code
    except TimeoutError:
        return f"{code}, held open"
    except ConnectionClosed as error:
        return f"{code}, closed {error.rcvd.code if error.rcvd else 'without a word'}"
    except (WebSocketException, SideplugError) as error:
        return repr(error)
