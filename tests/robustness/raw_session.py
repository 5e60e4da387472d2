"""A device's end of a session that sends whatever it is told to, and what one such session came to.

Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame as WebSocketFrame
from websockets.frames import Opcode
from websockets.sync.client import connect

from sideplug.contract import wire
from sideplug.contract.errors import ProtocolError
from sideplug.contract.frames import Ask, Context, Error, Frame, Head, Kind, Opened
from tests.robustness.generated import Tensors, message
from tests.robustness.tiny_cloud import WIDTH, Cloud

SILENCE_S = 20.0  # for the cloud to say something, or to close
PATIENT = {"turn": 1, "ids": [5, 6, 7, 8], "max_tokens": 6, "sampling": {}}
OPEN: dict[str, Any] = {
    "base": "",
    "tap": "l0.1.2-r16-s0-int8",
    "merge": "add",
    "gates": [{"kind": "open"}],
    "client": "tests/fuzz",
}
NO_GATE = np.zeros((0, WIDTH), np.float32)  # weights, where no gate is linear
SECRET = 424242  # part of the ROWS that asks whether a session goes on


class Silence(Exception):
    """The cloud neither answers nor closes."""


def short(control: dict[str, Any], tensors: Tensors) -> str:
    """Return a frame's contents as a line of text."""
    shown = {name: repr(value)[:60] for name, value in control.items()}
    shown |= {name: f"{value.dtype}{list(value.shape)} {value.ravel()[:3]!s}" for name, value in tensors.items()}
    return "{" + ", ".join(f"{name}: {value}" for name, value in shown.items()) + "}"


class Raw:
    """A session's end of the wire that sends any message; `sent`: all of them, as text."""

    def __init__(self, cloud: Cloud, stack: ExitStack) -> None:
        endpoint, options = cloud.address().endpoint, {"compression": None, "ping_interval": None, "close_timeout": 2}
        self.connection = stack.enter_context(connect(endpoint, max_size=wire.MAX_FRAME_BYTES, **options))  # type: ignore[arg-type]
        self.sent: list[str] = []
        self.errors: list[str] = []
        self.ask: Ask | None = None
        self.granted: list[str] = []
        self.asked = False  # is a reply under way, so far as is known?
        self.number = 0
        self.longest = 0  # bytes of a message
        self.most = wire.MAX_FRAME_BYTES  # … that the cloud takes, as it says

    def message(self, kind: int, control: dict[str, Any], tensors: Tensors | None = None) -> bytes:
        """A frame with its right number and checksum, whatever it says."""
        tensors = tensors or {}
        self.sent.append(f"{Kind(kind).name if kind in list(Kind) else kind} {short(control, tensors)}")
        self.number += 1
        data = message(kind, control, tensors, self.number - 1)
        self.longest = max(self.longest, len(data))
        return data

    def send(self, kind: int, control: dict[str, Any], tensors: Tensors | None = None) -> None:
        """Send a frame as `message` makes it."""
        self.connection.send(self.message(kind, control, tensors))

    def burst(self, messages: list[bytes]) -> None:
        """Several messages in one piece of the stream."""
        self.sent.append("(the last ones at once)")
        data = b"".join(WebSocketFrame(Opcode.BINARY, message).serialize(mask=True) for message in messages)
        with suppress(OSError):
            self.connection.socket.sendall(data)

    def receive(self) -> Frame:
        """Return the next frame. Raises ConnectionClosed, Silence, and ProtocolError for what a cloud must not send."""
        try:
            return self.take(self.connection.recv(timeout=SILENCE_S))
        except TimeoutError as error:
            raise Silence from error

    def take(self, data: bytes | str) -> Frame:
        """Return the frame of a message from the cloud, and note what it says. Raises ProtocolError."""
        assert isinstance(data, bytes)
        frame = wire.decode(data)
        if isinstance(frame, Error):
            self.errors.append(frame.code)
        if isinstance(frame, Opened):
            self.granted, self.most = frame.granted, frame.limits.message_bytes
        if isinstance(frame, Ask):
            self.ask = frame
        if isinstance(frame, Context) and "context" not in self.granted:
            raise ProtocolError("rows without a question, for a session without that capability")
        return frame

    def open(self, **changes: Any) -> None:
        """OPEN as it must be, but for these."""
        tensors = {"gate": changes.pop("weights", NO_GATE)}
        self.send(Kind.OPEN, {**OPEN, **changes}, tensors)
        self.until(Kind.OPENED)

    def until(self, *kinds: Kind) -> Frame:
        """The next frame of these kinds, or an ERROR."""
        while (frame := self.receive()).kind not in (*kinds, Kind.ERROR):
            pass
        return frame

    def answer(self) -> tuple[dict[str, Any], Tensors]:
        """A good answer to the last ASK."""
        assert self.ask is not None
        ask = self.ask
        control = {"turn": ask.turn, "run": ask.run, "at": ask.at}
        draft = np.full((1, 2), 5, np.int32)
        if ask.z is not None:
            return control, {"ids": np.array([9], np.int32), "draft": draft}
        return control, {"delta": np.ones((1, WIDTH), np.int8), "scales": np.ones(1, np.float32), "draft": draft}

    def drive(self) -> None:
        """Behave well until the reply is over, or refused."""
        while (frame := self.receive()).kind not in (Kind.DONE, Kind.ERROR):
            if frame.kind is Kind.ASK:
                self.send(Kind.ANSWER, *self.answer())

    def goes_on(self) -> bool:
        """Is the session still of use? Asks for a row of the head."""
        self.send(Kind.ROWS, {"part": SECRET}, {"ids": np.array([0], np.int32)})
        while True:
            frame = self.receive()
            if isinstance(frame, Head) and frame.part == SECRET:
                return True
            if isinstance(frame, Ask):
                self.send(Kind.ANSWER, *self.answer())


Play = Callable[[Raw, random.Random], None]


@dataclass
class Input:
    """A session to play. `ends`: it may end without an ERROR (it is the WebSocket's, or the device leaves)."""

    name: str
    play: Play
    ends: bool = False


@dataclass
class Outcome:
    """What a session came to."""

    name: str
    sent: list[str]
    errors: list[str]
    end: str  # a close code, "goes on", "silence", …
    bug: str = ""


def play(cloud: Cloud, case: Input, seed: int) -> Outcome:
    """Play a session to its end, and return what it came to."""
    with ExitStack() as stack:
        raw = Raw(cloud, stack)
        try:
            case.play(raw, random.Random(f"{seed}/{case.name}"))
            end = "goes on" if raw.goes_on() else ""
        except Silence:
            end = "silence"
        except (ConnectionClosed, OSError) as error:
            closed: Exception = error
            try:
                while True:  # what it said last
                    raw.receive()
            except (ConnectionClosed, Silence, OSError) as last:
                closed = last
            code = closed.rcvd.code if isinstance(closed, ConnectionClosed) and closed.rcvd else None
            end = f"closed {code}" if code else "closed without a word"
        except ProtocolError as error:
            end = f"the cloud sent what it must not: {error}"
    too_big = end == "closed 1009" and raw.longest > raw.most  # the WebSocket says so, before there is a frame
    bug = ""
    if "internal" in raw.errors or end == "closed 1011":
        bug = "internal"
    elif end == "silence" or end.startswith("the cloud"):
        bug = end
    elif end.startswith("closed") and not (raw.errors or case.ends or too_big):
        bug = f"{end}, and no ERROR said why"
    return Outcome(case.name, raw.sent, raw.errors, end, bug)
