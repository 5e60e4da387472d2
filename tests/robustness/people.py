"""People whose devices and lines misbehave: each has a key, a plugin and conversations of their own.

What each reply must be is found beforehand, alone on the same cloud. Then lines are cut in the middle of replies,
devices read or answer late, or cancel. Test: pytest -m slow tests/robustness
"""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from websockets.sync.client import ClientConnection

from sideplug.contract.errors import Busy, SideplugError
from sideplug.contract.frames import Answer, Frame
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.device.drafts import BREAK
from sideplug.device.link import REPLY_TIMEOUT_S, WebSocketLink
from sideplug.device.reconnect import RetryPolicy
from sideplug.device.reply import DecodeOptions, Reply
from sideplug.device.responders import PluginResponder
from sideplug.device.session import Session
from sideplug.plugins import Plugin
from sideplug.terminal import say
from tests.robustness.tiny_cloud import WORDS, Cloud

PATIENCE_S = 60.0  # for a line that was cut
TROUBLES = {"": 66, "cut": 12, "cut twice": 3, "read late": 7, "answer late": 7, "cancel": 5}  # of 100 replies


@dataclass
class Turn:
    """What is asked, and what must be answered."""

    prompt: Prompt
    max_tokens: int
    sampling: Sampling
    text: str = ""
    ids: list[int] = field(default_factory=list)


@dataclass
class Script:
    """A conversation: what the user says in each turn. `turns` has it with the replies, when they are known."""

    system: str
    said: list[str]
    max_tokens: list[int]
    samplings: list[Sampling]
    turns: list[Turn] = field(default_factory=list)

    @property
    def words(self) -> str:
        """All that the user says."""
        return " ".join([self.system, *self.said])


@dataclass
class Trouble:
    """What goes wrong in one reply, after so many `frames`; `own_s`: seconds that the device itself let pass."""

    kind: str = ""
    at: list[int] = field(default_factory=list)
    seconds: float = 0.0
    frames: int = 0
    own_s: float = 0.0

    def due(self, kind: str) -> bool:
        """Does it happen now? Once for each `at`."""
        if not (self.kind.startswith(kind) and self.at and self.frames >= self.at[0]):
            return False
        self.at.pop(0)
        return True


@dataclass
class Answered:
    """A reply as a person saw it."""

    trouble: str
    tokens: int
    first_s: float
    total_s: float
    resumed: int
    cached: int
    context_rows: int


def cut(connection: ClientConnection, rng: random.Random) -> None:
    """Break a connection as a network does: no close frame, no TLS goodbye; reset or ended."""
    bare = connection.socket
    if rng.random() < 0.5:
        with suppress(OSError):  # it may be gone already
            bare.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with suppress(OSError):
        socket.socket.shutdown(bare, socket.SHUT_RD if rng.random() < 0.5 else socket.SHUT_RDWR)


class RoughLink:
    """A person's link, to which the trouble of the moment happens."""

    def __init__(self, link: WebSocketLink, person: Person) -> None:
        self._link, self._person = link, person
        self.down, self.up = link.down, link.up

    @property
    def closed(self) -> bool:
        """Whether the link is closed."""
        return self._link.closed

    def send(self, frame: Frame) -> None:
        """Send a frame; an answer perhaps late."""
        if isinstance(frame, Answer):
            self._happen("answer late")
        self._link.send(frame)

    def receive(self, timeout_s: float = REPLY_TIMEOUT_S) -> Frame:
        """Return the next frame, perhaps late, or cut the line."""
        frame = self._link.receive(timeout_s)
        self._count()
        return frame

    def arrived(self) -> Frame | None:
        """Return a frame that is there already, or None."""
        frame = self._link.arrived()
        if frame is not None:
            self._count()
        return frame

    def close(self) -> None:
        """Close the link."""
        self._link.close()

    def _count(self) -> None:
        self._person.trouble.frames += 1
        self._happen("read late")
        if self._person.trouble.due("cut"):
            self._person.cuts += 1
            cut(self._link._connection, self._person.rng)

    def _happen(self, kind: str) -> None:
        trouble = self._person.trouble
        if trouble.due(kind):
            trouble.own_s += trouble.seconds
            time.sleep(trouble.seconds)


class Person:
    """A device: its key, its plugin, its conversations; and what came of them."""

    def __init__(self, number: int, seed: int, cloud: Cloud, key: str, plugin: Plugin, scripts: list[Script]) -> None:
        self.number, self.key, self.plugin, self.scripts = number, key, plugin, scripts
        self.rng = random.Random(f"{seed}/{number}")
        self.trouble = Trouble()
        self.answered: list[Answered] = []
        self.wrong: list[str] = []
        self.errors: Counter[str] = Counter()
        self.waits: list[float] = []  # seconds that a busy cloud had us wait
        self.cuts = self.cancelled = 0
        self.thread = threading.Thread(target=self._live, name=f"person {number}", daemon=True)
        self._cloud = cloud
        self._until = 0.0
        self._begun: Reply | None = None

    def open(self) -> Session:
        """Return a session that comes back where its line is cut."""
        return Session(self._link(), PluginResponder(self.plugin), self._link, RetryPolicy(PATIENCE_S))

    def _link(self) -> RoughLink:
        return RoughLink(WebSocketLink.open(self._cloud.address(self.key)), self)

    def learn(self) -> None:
        """Alone: what every reply must be."""
        session = self.open()
        for script in self.scripts:
            messages = [{"role": "system", "content": script.system}] if script.system else []
            for said, most, sampling in zip(script.said, script.max_tokens, script.samplings, strict=True):
                messages = [*messages, {"role": "user", "content": said}]
                prompt = Prompt(messages=tuple(messages))
                reply = session.generate(prompt, most, sampling)
                script.turns.append(Turn(prompt, most, sampling, reply.text, list(reply.ids)))
                messages = [*messages, {"role": "assistant", "content": reply.text}]
        session.close()
        # Their own phrases, so that drafts come true now and then: they change no text.
        texts = [token for script in self.scripts for turn in script.turns for token in (*turn.ids, BREAK)]
        self.plugin.trained.phrases = np.array(texts[: self.rng.choice([0, len(texts)])], np.int32)

    def start(self, until: float) -> None:
        """Talk until that time of the monotonic clock, in a thread."""
        self._until = until
        self.thread.start()

    def _live(self) -> None:
        session: Session | None = None
        while time.monotonic() < self._until:
            for turn in self.rng.choice(self.scripts).turns:
                self._pause(self.rng.uniform(0, 3))
                if time.monotonic() > self._until:
                    break
                try:
                    session = session or self.open()
                    self._reply(session, turn)
                except Busy as error:
                    half = " in the middle of a reply" if self._begun and self._begun.ids else ""
                    self.errors[f"busy{half}" if session else "busy at the door"] += 1
                    self.waits.append((error.retry_s or 1) * self.rng.uniform(0.7, 1.3))
                    self._pause(self.waits[-1])
                except SideplugError as error:
                    self.errors[f"{error.code}: {error}"] += 1
                    say(f"person {self.number}: {error.code}: {error}")
                    session = self._ended(session)
                except Exception as error:  # of our own, or the device's code: it must not go unseen
                    self.errors[f"{type(error).__name__}: {error}"] += 1
                    say(f"person {self.number}: {error!r}")
                    session = self._ended(session)
            if self.rng.random() < 0.1:  # some hang up between two conversations
                session = self._ended(session)
        self._ended(session)

    def _ended(self, session: Session | None) -> None:
        if session is not None:
            with suppress(Exception):
                session.close()

    def _pause(self, seconds: float) -> None:
        time.sleep(max(0.0, min(seconds, self._until - time.monotonic())))

    def _reply(self, session: Session, turn: Turn) -> None:
        rng = self.rng
        kind = rng.choices(list(TROUBLES), list(TROUBLES.values()))[0]
        at = sorted(rng.randint(1, 40) for _ in range(2 if kind == "cut twice" else 1))
        self.trouble = Trouble(kind, at, rng.uniform(1, 5))
        options = DecodeOptions(rng.choice([0, 2, 24]), rng.random() < 0.7, top=rng.choice([0, 0, 0, 3]))
        self._begun = reply = session.generate(turn.prompt, turn.max_tokens, turn.sampling, options)
        text = ""
        for number, piece in enumerate(reply):
            text += piece.text
            if kind == "cancel" and number >= at[0] // 4:
                reply.close()
                self.cancelled += 1
                break
        usage = reply.usage
        self.trouble, own_s = Trouble(), self.trouble.own_s
        whole = kind != "cancel"
        if text != turn.text[: None if whole else len(text)] or (whole and reply.ids != turn.ids):
            self.wrong.append(f"person {self.number}, {kind or 'no trouble'}: {text!r} instead of {turn.text!r}")
            say(f"WRONG {self.wrong[-1]}")
        seen = (usage.reply_tokens, usage.first_token_s, usage.total_s - own_s, usage.resumed)
        self.answered.append(Answered(kind, *seen, usage.cached, usage.context_rows))


def scripts_of(rng: random.Random, count: int, systems: list[str]) -> list[Script]:
    """Return so many conversations of random words."""

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))

    scripts = []
    for _ in range(count):
        turns = rng.randint(1, 4)
        system = rng.choice([*systems, text(3, 8), ""])
        samplings = [
            Sampling(
                rng.choice([0.0, 0.7, 1.0]),
                rng.choice([0, 0, 20]),
                rng.choice([1.0, 1.0, 0.9]),
                rng.choice([1.0, 1.0, 1.2]),
                rng.randrange(1 << 62),
            )
            for _ in range(turns)
        ]
        said = [text(2, rng.choice([6, 36])) for _ in range(turns)]
        scripts.append(Script(system, said, [rng.choice([4, 16, 32, 64]) for _ in range(turns)], samplings))
    return scripts
