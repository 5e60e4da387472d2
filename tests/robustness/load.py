"""The load test: many devices, keys, TLS, little memory, and people and lines that misbehave, for ten minutes.

    python bench/load.py                       64 sessions, 10 minutes (and about one before, for the expected texts)
    python bench/load.py --quick               16 sessions, half a minute

`sideplug serve` runs a tiny model (bench/tiny.py) in a process of its own, with memory for 30 % of what all sessions
would need. Each session is a person with a key (of 8), a plugin and conversations of their own; what each reply must be
is found beforehand, alone on the same cloud. Then all talk at once, with random paces and pauses, while lines are cut
in the middle of replies, devices read or answer late, cancel, never answer, never read, and strangers send garbage.

It fails (exit code 1, one sentence) where a text is wrong, a session gets an error other than "busy", something is left
of a session that is gone (sessions, texts, their memory, file descriptors), or the cloud's memory grows.
Results: bench/results/load.json (with --quick only where --out says).
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from sideplug.cloud.keys import Keys
from sideplug.contract import wire
from sideplug.contract.errors import Busy, CloudError, SideplugError
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.contract.wire import Frame, Kind
from sideplug.device.drafts import BREAK
from sideplug.device.link import REPLY_TIMEOUT_S, WebSocketLink
from sideplug.device.plugin import Plugin
from sideplug.device.runtime import DecodeOptions, Session
from sideplug.bench.meters import machine
from tiny import CONTEXT, KV_TOKEN_BYTES, WORDS, Cloud, Watch, a_cloud, a_plugin, make_model

HERE = Path(__file__).parent
KEYS = 8
MEMORY = 0.3  # of what all texts would need at once
KEEP_S = 15  # short, so that kept texts expire in the middle too
WARM_UP = 0.2  # of the run: what memory is compared with afterwards
GROWTH, SHORT_GROWTH = 0.10, 0.25  # of the cloud's memory since then, that is allowed; in less than five minutes
PATIENCE_S = 90.0  # for a busy cloud, and for one that was lost
TROUBLES = {"": 66, "cut": 12, "cut twice": 3, "read late": 7, "answer late": 7, "cancel": 5}  # of 100 replies
logging.getLogger("websockets").setLevel(logging.CRITICAL)  # lines that we cut ourselves
say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731


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
    kept: int


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
        return self._link.closed

    def send(self, frame: Frame) -> None:
        if frame.kind is Kind.ANSWER:
            self._happen("answer late")
        self._link.send(frame)

    def receive(self, timeout_s: float = REPLY_TIMEOUT_S) -> Frame:
        frame = self._link.receive(timeout_s)
        self._count()
        return frame

    def arrived(self) -> Frame | None:
        frame = self._link.arrived()
        if frame is not None:
            self._count()
        return frame

    def close(self) -> None:
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

    def open(self) -> Session:
        return Session.open(self._link(), self.plugin, connect=self._link)

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
                text = "".join(piece.text for piece in session.generate(prompt, most, sampling))
                script.turns.append(Turn(prompt, most, sampling, text, list(session.done)))
                messages = [*messages, {"role": "assistant", "content": text}]
        session.link.close()
        # Their own phrases, so that drafts come true now and then: they change no text.
        texts = [token for script in self.scripts for turn in script.turns for token in (*turn.ids, BREAK)]
        self.plugin.phrases = np.array(texts[: self.rng.choice([0, len(texts)])], np.int32)

    def start(self, until: float) -> None:
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
                    half = " in the middle of a reply" if session and session.done else ""
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
                session.link.close()

    def _pause(self, seconds: float) -> None:
        time.sleep(max(0.0, min(seconds, self._until - time.monotonic())))

    def _reply(self, session: Session, turn: Turn) -> None:
        rng = self.rng
        kind = rng.choices(list(TROUBLES), list(TROUBLES.values()))[0]
        at = sorted(rng.randint(1, 40) for _ in range(2 if kind == "cut twice" else 1))
        self.trouble = Trouble(kind, at, rng.uniform(1, 5))
        pace = DecodeOptions(rng.choice([0, 2, 24]), rng.random() < 0.7, top=rng.choice([0, 0, 0, 3]))
        pieces = session.generate(turn.prompt, turn.max_tokens, turn.sampling, pace)
        text = ""
        for number, piece in enumerate(pieces):
            text += piece.text
            if kind == "cancel" and number >= at[0] // 4:
                pieces.close()
                self.cancelled += 1
                break
        usage = session.usage
        self.trouble, own_s = Trouble(), self.trouble.own_s
        whole = kind != "cancel"
        if text != turn.text[: None if whole else len(text)] or (whole and session.done != turn.ids):
            self.wrong.append(f"person {self.number}, {kind or 'no trouble'}: {text!r} instead of {turn.text!r}")
            say(f"WRONG {self.wrong[-1]}")
        seen = (usage.reply_tokens, usage.first_token_s, usage.total_s - own_s, usage.resumed, usage.kept)
        self.answered.append(Answered(kind, *seen))


class Stranger(threading.Thread):
    """Does `act` again and again, with pauses, until the end; counts what each came to."""

    def __init__(self, name: str, act: Callable[[random.Random], str], pause_s: float, seed: int, end: float) -> None:
        super().__init__(name=name, daemon=True)
        self._act, self._pause_s, self._end = act, pause_s, end
        self._rng = random.Random(f"{seed}/{name}")
        self.outcomes: Counter[str] = Counter()

    def run(self) -> None:
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

    def _opening(self, tap: str = "", gate: str = "open") -> Frame:
        control = {"base": "", "tap": tap, "merge": "add", "gate": {"kind": gate}, "client": "bench/load"}
        return Frame(Kind.OPEN, control, {"gate": np.zeros(0, np.float32)})

    def _prompt(self, **more: Any) -> Frame:
        control = {"turn": 1, **self._known.to_wire(), "max_tokens": 48, "sampling": {}, **more}
        return Frame(Kind.PROMPT, control)

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
            for number, frame in enumerate([self._opening(), self._prompt(ahead=rng.choice([0, 24]))]):
                connection.send(wire.encode(frame, number))
            return _refused(connection, self._left)

    def _misses_deadlines(self, rng: random.Random) -> str:
        """Never answers, but has said that it may be late: its text is the base's."""
        link = WebSocketLink.open(self._cloud.address(self._key))
        try:
            link.send(self._opening())
            link.send(self._prompt(ahead=rng.choice([0, 8]), deadline_ms=rng.choice([1, 30])))
            text = ""
            while (frame := link.receive(self._left + 20)).kind is not Kind.DONE:
                text += frame.control.get("text", "") if frame.kind is Kind.TOKENS else ""
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
                    read = Frame(Kind.READ, {"number": number, "text": "", "reply": text, "score": False})
                    frame = read if number < 20 else Frame(Kind.CANCEL, {"turn": 1})  # then just to see if it is there
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
            if frame is not None and frame.kind is Kind.ERROR:
                code = frame["code"]
    except TimeoutError:
        return f"{code}, held open"
    except ConnectionClosed as error:
        return f"{code}, closed {error.rcvd.code if error.rcvd else 'without a word'}"
    except (WebSocketException, SideplugError) as error:
        return repr(error)


def scripts_of(rng: random.Random, count: int, systems: list[str]) -> list[Script]:
    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))

    found = []
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
        found.append(Script(system, said, [rng.choice([4, 16, 32, 64]) for _ in range(turns)], samplings))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--conversations", type=int, default=2, help="of each session, said again and again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="16 sessions, half a minute, one conversation each")
    parser.add_argument("--out", type=Path, help="the results' file")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.sessions, options.conversations = 0.5, 16, 1
    out = options.out or (None if options.quick else HERE / "results" / "load.json")
    with tempfile.TemporaryDirectory(prefix="sideplug-load-") as scratch:
        found, failures = run(options, Path(scratch))
    if out:
        out.write_text(json.dumps(found, indent=2) + "\n")
    else:
        print(json.dumps(found, indent=2))
    if failures:
        print("; ".join(failures))
        sys.exit(1)
    rss = found["server_rss_mb"]
    print(
        f"{found['replies']} replies, {found['tokens_s']} tokens/s, no wrong text, nothing leaked: "
        f"{found['cuts']} lines cut, {found['busy']} times busy, first token p50 {found['first_token_s']['p50']} s, "
        f"memory {rss['at_20']} → {rss['at_100']} MB"
    )


def run(options: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], list[str]]:
    rng = random.Random(options.seed)
    folder = make_model(scratch / "tiny")
    systems = [" ".join(rng.choices(WORDS, k=60)) for _ in range(2)]
    plans = [scripts_of(rng, options.conversations, systems) for _ in range(options.sessions)]
    keys = Keys(scratch / "keys.json")
    # More than a key's sessions: those that were cut off may still be there for a moment, and strangers have one too.
    texts = [keys.add(f"person-{n}", sessions=2 * (options.sessions // KEYS + 1) + 8) for n in range(KEYS)]
    stranger = keys.add("stranger", sessions=200)
    need = sum(max(map(_tokens_of(folder), plan)) for plan in plans)
    memory_bytes = max(int(MEMORY * need), CONTEXT) * KV_TOKEN_BYTES
    say(f"all texts would need {need} tokens at once; there is memory for {memory_bytes // KV_TOKEN_BYTES}")
    queue = max(4, options.sessions // 2)  # so that some are sent away
    settings = [
        "--queue",
        str(queue),
        "--kv-memory",
        str(memory_bytes / 2**30),
        "--keep-seconds",
        str(KEEP_S),
        "--drain-seconds",
        "10",
    ]
    with a_cloud(folder, *settings, keys=keys.path, key=stranger) as cloud:
        people = [
            Person(n, options.seed, cloud, texts[n % KEYS], _plugin(rng, cloud, n), plan)
            for n, plan in enumerate(plans)
        ]
        began = time.monotonic()
        for person in people:
            person.learn()
            if person.number % 8 == 7:
                say(f"alone: {person.number + 1} of {len(people)} sessions ({time.monotonic() - began:.0f} s)")
        known = people[0].scripts[0].turns[0].prompt
        alone = Session.open(WebSocketLink.open(cloud.address()), gate=Gate("shut"))
        base_text = "".join(piece.text for piece in alone.generate(known, 48))
        alone.link.close()
        cloud.settled(10, "sideplug_sessions", "sideplug_working")
        descriptors = cloud.process.num_fds()
        start = cloud.metrics()
        watch = Watch(cloud.process)
        watch.start()
        began, end = time.monotonic(), time.monotonic() + 60 * options.minutes
        strangers = Strangers(cloud, stranger, known, base_text, options.seed, end)
        for person in people:
            person.start(end)
        strangers.start()
        peak: Counter[str] = Counter()
        while time.monotonic() < end and cloud.process.is_running():
            for _ in range(10):
                time.sleep(max(0.0, min(1.0, end - time.monotonic())))
                with suppress(OSError):
                    seen = cloud.metrics()
                    peak |= Counter(
                        {name: int(seen[f"sideplug_{name}"]) for name in ("sessions", "working", "waiting")}
                    )
            replies, wrong = sum(len(p.answered) for p in people), sum(len(p.wrong) for p in people)
            say(f"{time.monotonic() - began:4.0f} s: {replies} replies, {wrong} wrong, {watch.rss_mb[-1]:.0f} MB")
        for person in people:
            person.thread.join(PATIENCE_S)
        seconds = time.monotonic() - began
        watch.stop()
        outcomes = strangers.gone()
        stuck = sum(person.thread.is_alive() for person in people)
        died = not cloud.process.is_running() or cloud.process.status() == "zombie"
        left: dict[str, float] = {}
        after = 0
        if not died:
            gauges = ("sessions", "working", "waiting", "kept_texts", "kv_reserved_bytes")
            names = [f"sideplug_{name}" for name in gauges]
            final = cloud.settled(KEEP_S + 20, *names)
            left = {name: final[f"sideplug_{name}"] for name in gauges}
            after = cloud.process.num_fds()
            counted = {name: final[name] - start.get(name, 0) for name in final if "_bucket" not in name}
        complaints = cloud.complaints
    if died:
        sys.exit(f"the cloud died: {complaints[-1:] or 'without a word'}")
    wrong_texts = [line for person in people for line in person.wrong] + strangers.wrong
    errors: Counter[str] = sum((person.errors for person in people), Counter())
    busy = sum(count for name, count in errors.items() if name.startswith("busy"))
    answered = [reply for person in people for reply in person.answered]
    rss = memory(watch.rss_mb)
    found = {
        "machine": machine(),
        "minutes": options.minutes,
        "sessions": options.sessions,
        "keys": KEYS,
        "memory_tokens": memory_bytes // KV_TOKEN_BYTES,
        "tokens_all_would_need": need,
        "replies": len(answered),
        "tokens": sum(reply.tokens for reply in answered),
        "tokens_s": round(sum(reply.tokens for reply in answered) / seconds, 1),
        "wrong_texts": len(wrong_texts),
        "wrong": wrong_texts[:20],
        "busy": busy,
        "busy_by_kind": {name: count for name, count in errors.items() if name.startswith("busy")},
        "busy_wait_s": round(sum(wait for person in people for wait in person.waits), 1),
        "errors": {name: count for name, count in errors.items() if not name.startswith("busy")},
        "troubles": dict(Counter(reply.trouble or "none" for reply in answered)),
        "cuts": sum(person.cuts for person in people),
        "cancelled": sum(person.cancelled for person in people),
        "resumed": sum(reply.resumed for reply in answered),
        "kept_share_of_replies": round(sum(reply.kept > 0 for reply in answered) / max(1, len(answered)), 3),
        "first_token_s": percentiles([r.first_s for r in answered if not r.trouble]),
        "fairness": fairness(people),
        "at_most": dict(peak),
        "server_rss_mb": rss,
        "file_descriptors": {"start": descriptors, "end": after},
        "left": left,
        "strangers": outcomes,
        "complaints": complaints[:20],
        "cloud": {name: round(counted[name], 3) for name in sorted(counted) if _of_interest(name) and counted[name]},
    }
    failures = []
    if wrong_texts:
        failures.append(f"{len(wrong_texts)} texts are wrong, the first: {wrong_texts[0][:300]}")
    if stuck:
        failures.append(f"{stuck} sessions hang")
    if any(left.values()):
        failures.append(f"something is left of sessions that are gone: {left}")
    if after > descriptors + 2:
        failures.append(f"file descriptors leak: {descriptors} at the start, {after} at the end")
    if rss["grown"] > (GROWTH if options.minutes >= 5 else SHORT_GROWTH):
        failures.append(f"the cloud's memory grew by {rss['grown']:.1%} after the warm-up ({rss})")
    if found["errors"]:
        failures.append(f"sessions met errors: {found['errors']}")
    if complaints:
        failures.append(f"the cloud met faults of its own: {complaints[:3]}")
    if "LET IN" in outcomes["wrong key"]:
        failures.append("a wrong key was let in")
    return found, failures


def _tokens_of(folder: Path) -> Callable[[Script], int]:
    """What a conversation comes to at most, with its replies and the template's tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def count(script: Script) -> int:
        return len(tokenizer.encode(script.words).ids) + sum(script.max_tokens) + 24 * len(script.said)

    return count


def _plugin(rng: random.Random, cloud: Cloud, number: int) -> Plugin:
    kind = "paper" if rng.random() < 0.1 else "ladder"
    gate = rng.choices(["open", "linear"], [1, 2])[0]
    return a_plugin(cloud.fingerprint, number, gate, rng.choice(["int8", "int8", "fp16"]), kind)


def _of_interest(name: str) -> bool:
    return name.startswith("sideplug_") and not any(part in name for part in ("_created", "_bytes", "_frames", "_info"))


def percentiles(values: list[float]) -> dict[str, float]:
    values = values or [0.0]
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 99)}


def fairness(people: list[Person]) -> dict[str, float]:
    """The slowest session beside the median one: in replies, and in how long it waits for a first token (of replies
    without trouble, in the median; a text's speed depends on how long it is)."""
    replies = [len(person.answered) for person in people]
    calm = [[reply.first_s for reply in person.answered if not reply.trouble] for person in people]
    waits = [statistics.median(own) for own in calm if own] or [0.0]
    return {
        "replies_median": statistics.median(replies),
        "replies_slowest": min(replies),
        "replies_slowest_to_median": round(min(replies) / max(1, statistics.median(replies)), 3),
        "first_token_s_median": round(statistics.median(waits), 3),
        "first_token_s_slowest": round(max(waits), 3),
    }


def memory(rss_mb: list[float]) -> dict[str, float]:
    """At some points of the run (medians of a tenth of it), and how it grew after the warm-up."""

    def at(share: float) -> float:
        tenth = max(1, len(rss_mb) // 10)
        first = min(int(share * len(rss_mb)), len(rss_mb) - tenth)
        return round(statistics.median(rss_mb[max(0, first) : first + tenth]), 1)

    after = rss_mb[int(WARM_UP * len(rss_mb)) :]
    slope = float(np.polyfit(np.arange(len(after)), after, 1)[0]) * 60 if len(after) > 2 else 0.0
    points = {f"at_{int(100 * share)}": at(share) for share in (0, 0.1, WARM_UP, 0.5, 1)}
    grown = round(points["at_100"] / points[f"at_{int(100 * WARM_UP)}"] - 1, 4)
    return {**points, "peak": round(max(rss_mb), 1), "mb_a_minute": round(slope, 3), "grown": grown}


if __name__ == "__main__":
    main()
