"""Sessions that take what they can: each kind does one thing, again and again, until it is told to stop.

They run in a process of their own, as neighbours of somebody whose speed is measured: see hostile.
Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from sideplug.bench.sessions import open_session
from sideplug.contract import wire
from sideplug.contract.errors import Busy, SideplugError
from sideplug.contract.frames import Ask, Error, Frame, Kind
from sideplug.contract.progress import running_hash
from sideplug.contract.text import Prompt
from sideplug.device.address import Address
from tests.robustness.generated import Tensors, message
from tests.robustness.huge import HUGE, huge_map
from tests.robustness.raw_session import NO_GATE, OPEN
from tests.robustness.tiny_cloud import CONTEXT, VOCAB, WIDTH, WORDS, a_plugin

WAIT_S = 5.0  # for a frame


class Line:
    """A connection that sends any frame."""

    def __init__(self, address: Address) -> None:
        headers = {"Authorization": f"Bearer {address.key}"}
        self.connection: ClientConnection = connect(
            address.endpoint, ssl=address.tls(), additional_headers=headers, compression=None, max_size=None
        ).__enter__()  # left by closing its socket, without a word
        self._number = 0

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self.connection.socket.close()

    def send(self, kind: Kind, control: dict[str, Any], tensors: Tensors | None = None) -> None:
        """Send a frame, whatever it says."""
        self.connection.send(message(kind, control, tensors or {}, self._number))
        self._number += 1

    def send_packed(self, kind: Kind, packed: bytes) -> None:
        """Send a frame with this control map."""
        self.connection.send(wire.join(kind, packed, b"", self._number))
        self._number += 1

    def receive(self) -> Frame:
        """Return the next frame. Raises TimeoutError."""
        data = self.connection.recv(timeout=WAIT_S)
        assert isinstance(data, bytes)
        return wire.decode(data)

    def open(self, **changes: Any) -> None:
        """Open a session as it must be, but for these."""
        self.send(Kind.OPEN, {**OPEN, **changes}, {"gate": NO_GATE})
        self.receive()

    def answer(self, ask: Ask) -> None:
        """Answer a question with a correction of nothing."""
        rows = {"delta": np.zeros((1, WIDTH), np.int8), "scales": np.ones(1, np.float32)}
        draft = np.zeros((1, 0), np.int32)
        self.send(Kind.ANSWER, {"turn": ask.turn, "run": ask.run, "at": ask.at}, {**rows, "draft": draft})


Hostile = Callable[[Line, random.Random], None]  # one round, on a connection of its own


def ids(rng: random.Random, count: int) -> list[int]:
    """Return so many token ids."""
    return [rng.randrange(2, VOCAB) for _ in range(count)]


def prompt(rng: random.Random, count: int, most: int, **more: Any) -> dict[str, Any]:
    """Return the fields of a PROMPT."""
    return {"turn": 1, "ids": ids(rng, count), "max_tokens": most, "sampling": {"temperature": 1.0}, **more}


def tap_seeds(line: Line, rng: random.Random) -> None:
    """A tap with a seed of its own, asked about some tokens."""
    line.open(tap=f"l0.1.2-r{WIDTH}-s{rng.randrange(1, 10**9)}-int8")
    line.send(Kind.PROMPT, prompt(rng, 20, 24))
    while not isinstance(frame := line.receive(), Error) and frame.kind is not Kind.DONE:
        if isinstance(frame, Ask):
            line.answer(frame)


def big_frames(line: Line, rng: random.Random) -> None:
    """One frame of megabytes: millions of empty maps, of empty lists or of ids."""
    line.open()
    line.send_packed(*huge_map(rng.choice(HUGE)))
    line.receive()


def unanswered(line: Line, rng: random.Random) -> None:
    """Asked, and silent, with the longest reply that there is."""
    line.open()
    line.send(Kind.PROMPT, prompt(rng, 20, CONTEXT, window=32))
    while True:
        with suppress(TimeoutError):
            line.receive()


def resumed(line: Line, rng: random.Random) -> None:
    """A reply that goes on behind hundreds of tokens, each of which is run alone, and that is left at once."""
    line.open(gates=[{"kind": "shut"}])
    fields = prompt(rng, CONTEXT // 2, CONTEXT // 2)
    done = ids(rng, CONTEXT // 4)
    line.send(Kind.PROMPT, {**fields, "done": done, "hash": running_hash(done, running_hash(fields["ids"]))})
    for _ in range(3):
        line.receive()
    time.sleep(rng.random() / 2)


def never_reads(line: Line, rng: random.Random) -> None:
    """Asks for much, and reads none of it until it is cut off."""
    line.open(tap=f"l0.1.2-r{WIDTH}-s0-raw")
    text = " ".join(rng.choices(WORDS, k=200))
    for number in range(8):
        line.send(Kind.READ, {"number": number, "text": "", "reply": text, "score": False})
    time.sleep(70)


def greedy(line: Line, rng: random.Random) -> None:
    """Eight examples at a time that the base writes, as long as they may be."""
    line.open()
    asked = itertools.count()

    def ask() -> None:
        text = " ".join(rng.choices(WORDS, k=20))
        fields = {"number": next(asked), "text": text, "reply": "", "score": False, "greedy_tokens": 512}
        line.send(Kind.READ, fields)

    for _ in range(8):
        ask()
    while not isinstance(line.receive(), Error):
        ask()


def long_texts(line: Line, rng: random.Random) -> None:
    """Texts that are read only to be refused."""
    line.open()
    fields = {"turn": 1, "max_tokens": 5, "sampling": {}, "text": "a b " * (24 * CONTEXT)}
    for _ in range(20):
        line.send(Kind.PROMPT, fields)
        line.receive()


def head_rows(line: Line, rng: random.Random) -> None:
    """All of the head, again and again."""
    line.open()
    for part in range(200):
        line.send(Kind.ROWS, {"part": part}, {"ids": np.arange(VOCAB, dtype=np.int32)})
        line.receive()


def pings(line: Line, rng: random.Random) -> None:
    """Pings without end, and a CANCEL of nothing behind each."""
    line.open()
    for _ in range(10_000):
        line.connection.ping(rng.randbytes(16))
        line.send(Kind.CANCEL, {"turn": 1})


HOSTILE: dict[str, Hostile] = {
    each.__name__: each
    for each in (
        tap_seeds,
        big_frames,
        unanswered,
        resumed,
        never_reads,
        greedy,
        long_texts,
        head_rows,
        pings,
    )
}


def run_hostile(kind: str, address: Address, seed: int, stop: Event) -> None:
    """Play rounds of a kind until `stop`."""
    for round_number in itertools.count():
        if stop.is_set():
            return
        try:
            with Line(address) as line:
                done = threading.Event()

                def cut(line: Line = line, done: threading.Event = done) -> None:
                    while not done.wait(0.1):
                        if stop.is_set():
                            with suppress(OSError):
                                line.connection.socket.shutdown(2)
                            return

                threading.Thread(target=cut, daemon=True).start()
                try:
                    HOSTILE[kind](line, random.Random(f"{seed}/{kind}/{round_number}"))
                finally:
                    done.set()
        except (OSError, WebSocketException, SideplugError, TimeoutError, AssertionError):
            time.sleep(0.05)


def run_well(address: Address, fingerprint: str, seed: int, stop: Event) -> None:
    """Talk as a person's device does, without a pause, until `stop`."""
    plugin = a_plugin(fingerprint, seed)
    rng = random.Random(seed)
    while not stop.is_set():
        with suppress(SideplugError), open_session(address, plugin) as session:
            while not stop.is_set():
                try:
                    for _ in session.generate(Prompt.user(" ".join(rng.choices(WORDS, k=12))), 48):
                        if stop.is_set():
                            return
                except Busy:
                    time.sleep(0.2)


def neighbours(kinds: list[str], addresses: list[Address], fingerprint: str, seed: int, stop: Event) -> None:
    """The process of the neighbours: one thread for each; the kind "well" behaves.

    They have the lowest priority: the core that they share with the person's device is the person's first.
    """
    os.nice(19)
    threads = []
    for number, (kind, address) in enumerate(zip(kinds, addresses, strict=True)):
        if kind == "well":
            thread = threading.Thread(target=run_well, args=(address, fingerprint, seed + number, stop), daemon=True)
        else:
            thread = threading.Thread(target=run_hostile, args=(kind, address, seed + number, stop), daemon=True)
        thread.start()
        threads.append(thread)
    stop.wait()
    for thread in threads:
        thread.join(5)


class Neighbours:
    """Neighbours in a process of their own, for a `with` statement."""

    def __init__(self, kinds: list[str], addresses: list[Address], fingerprint: str, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._stop: Event = context.Event()
        arguments = (kinds, addresses, fingerprint, seed, self._stop)
        self._process = context.Process(target=neighbours, args=arguments, daemon=True)

    def __enter__(self) -> None:
        self._process.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
