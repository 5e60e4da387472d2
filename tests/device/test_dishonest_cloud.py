"""A device and a cloud that means harm, over a real socket: nothing is written, nothing is answered, one sentence."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from sideplug.contract.errors import CloudError, ProtocolError, SideplugError, Untrusted
from sideplug.contract.frames import (
    Answer,
    Ask,
    Begun,
    Done,
    Error,
    Example,
    Frame,
    Head,
    Kind,
    ModelInfo,
    PromptFrame,
    Read,
    Rows,
    SessionLimits,
    Tokens,
)
from sideplug.contract.progress import running_hash
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.contract.wire import decode, encode, join
from sideplug.device.head import DeviceHead
from sideplug.device.responders import PluginResponder, Silent
from sideplug.device.session import Session
from sideplug.readers import Example as Text
from sideplug.training.recorder import record
from tests.conftest import Run, a_link, a_plugin

BASE = "f" * 64
MODEL = ModelInfo("tiny", BASE, 2, 64, 300, 4096, True)
TAP = Tap((0, 1, 2), 16)
OSC = "\x1b]0;owned\x07\x9b2J\u202e"
Says = Callable[["Liar", Frame], None]


class Liar:
    """One connection of a cloud that says what a test wants it to say."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket, self.sent = socket, 0
        self.heard: list[Frame] = []

    def say(self, *frames: Frame) -> None:
        for frame in frames:
            self.socket.send(encode(frame, self.sent))
            self.sent += 1

    def say_raw(self, kind: Kind, control: dict[str, Any]) -> None:
        self.socket.send(join(kind, msgspec.msgpack.encode(control), b"", self.sent))
        self.sent += 1

    def hear(self) -> Frame:
        self.heard.append(decode(self.socket.recv(20)))  # type: ignore[arg-type]
        return self.heard[-1]


@contextmanager
def lying(says: Says, opened: dict[str, Any] | None = None) -> Iterator[tuple[str, list[Liar]]]:
    """(its URL, its connections). It opens sessions, then answers each frame by `says`. opened: fields of OPENED."""
    liars: list[Liar] = []

    def handle(socket: ServerConnection) -> None:
        liar = Liar(socket)
        liars.append(liar)
        try:
            liar.hear()
            control = msgspec.to_builtins({"session": "s", "model": MODEL, "limits": SessionLimits(8, 1 << 20)})
            control["model"] |= (opened or {}).get("model", {})
            control |= {name: value for name, value in (opened or {}).items() if name != "model"}
            liar.say_raw(Kind.OPENED, control)
            while True:
                says(liar, liar.hear())
        except Exception:
            socket.close()

    with serve(handle, "127.0.0.1", 0, compression=None, max_size=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}", liars
        server.shutdown()


def begun(liar: Liar, frame: Frame) -> None:
    assert isinstance(frame, PromptFrame)
    liar.say(Begun(frame.turn, 10, 0, running_hash(range(10))))


def codes() -> tuple[np.ndarray, np.ndarray]:
    return np.ones((1, 3, 16), np.int8), np.ones((1, 3), np.float32)


# ── OPENED ────────────────────────────────────────────────────────────────────────────────────────────────────────────

OPENED: dict[str, dict[str, Any]] = {
    "a path as a fingerprint": {"model": {"fingerprint": "../../../../tmp/evil"}},
    "an absolute path": {"model": {"fingerprint": "/etc/cron.d/evil"}},
    "no fingerprint": {"model": {"fingerprint": ""}},
    "a fingerprint in bytes": {"model": {"fingerprint": b"f" * 64}},
    "a name that steers the terminal": {"model": {"name": OSC}},
    "a long name": {"model": {"name": "x" * 257}},
    "a vocabulary without end": {"model": {"vocab": 1 << 40}},
    "a negative width": {"model": {"width": -1}},
    "no blocks": {"model": {"blocks": 0}},
    "a context of text": {"model": {"context": "long"}},
    "more fields": {"model": {"evil": 1}},
    "readings without end": {"limits": {"readings": 1 << 30, "message_bytes": 1 << 20}},
    "a session that steers the terminal": {"session": OSC},
    "what nobody asked for": {"granted": ["mixture"]},
    "a capability that steers the terminal": {"offers": [OSC]},
}


@pytest.mark.parametrize("what", OPENED)
def test_an_opening_that_lies(what: str, tmp_path: Path) -> None:
    def ask_for_the_head(url: str) -> None:
        with Session(a_link(url), Silent(TAP)) as session:
            DeviceHead.fetch(session.link, tmp_path / "heads", session.model.fingerprint, session.model.vocab)

    with lying(lambda liar, frame: None, OPENED[what]) as (url, _), pytest.raises(ProtocolError) as caught:
        ask_for_the_head(url)
    assert "\x1b" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# ── the head ──────────────────────────────────────────────────────────────────────────────────────────────────────────

HEADS: dict[str, Callable[[int, int], Head]] = {
    "another width": lambda part, n: Head(part, 1.0, 0.0, np.ones((n, 63), np.float16), np.zeros(n, np.float32)),
    "fewer rows": lambda part, n: Head(part, 1.0, 0.0, np.ones((n - 1, 64), np.float16), np.zeros(n - 1, np.float32)),
    "another part": lambda part, n: Head(9, 1.0, 0.0, np.ones((n, 64), np.float16), np.zeros(n, np.float32)),
    "numbers that are none": lambda part, n: Head(
        part, 1.0, 0.0, np.full((n, 64), np.nan, np.float16), np.zeros(n, np.float32)
    ),
}


@pytest.mark.parametrize("what", HEADS)
def test_a_head_that_is_none_is_not_kept(what: str, tmp_path: Path) -> None:
    def says(liar: Liar, frame: Frame) -> None:
        assert isinstance(frame, Rows)
        liar.say(HEADS[what](frame.part, len(frame.ids)))

    with lying(says) as (url, _), Session(a_link(url), Silent(TAP)) as session, pytest.raises(ProtocolError):
        DeviceHead.fetch(session.link, tmp_path, BASE, session.model.vocab)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".part"] == []


# ── a reply ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def many_asks(liar: Liar, frame: Frame) -> None:
    """3,000 codes of its own choice in a reply of one token."""
    if isinstance(frame, PromptFrame):
        begun(liar, frame)
        for n in range(3000):
            liar.say(Ask(frame.turn, n, [10 + n], 10, [7] * n, *codes()))


def proposed_texts(liar: Liar, frame: Frame) -> None:
    """It asks what the device expects behind texts that it only proposes."""
    if isinstance(frame, PromptFrame):
        begun(liar, frame)
        for n, text in enumerate(([5, 6], [70, 71], [72, 73], [74, 75])):
            liar.say(Ask(frame.turn, 0, [12 + n], 10, [*text, *[7] * n], *codes()))
        liar.say(Ask(frame.turn, 0, [9], 9, [], *codes()))


def answers(liars: list[Liar]) -> list[Answer]:
    return [frame for liar in liars for frame in liar.heard if isinstance(frame, Answer)]


def test_3000_questions_in_a_reply_of_one_token() -> None:
    with lying(many_asks) as (url, liars):
        session = Session(a_link(url), PluginResponder(a_plugin(BASE)))
        with pytest.raises(Untrusted, match="a text that it gave up"):
            list(session.generate(Prompt(text="x"), 1))
        assert session.link.closed, "the session is over"
    assert sum(len(answer.at) for answer in answers(liars)) <= 1


def test_texts_that_are_only_proposed_draw_no_phrases() -> None:
    plugin = a_plugin(BASE)
    plugin.trained.phrases = np.arange(60, 200, dtype=np.int32)
    with lying(proposed_texts) as (url, liars), Session(a_link(url), PluginResponder(plugin)) as session:
        reply = session.generate(Prompt(text="x"), 20)
        with pytest.raises(Untrusted):
            list(reply)
    assert not any((answer.draft >= 0).any() for answer in answers(liars))


REPLIES: dict[str, Says] = {
    "more tokens": lambda liar, frame: liar.say(
        Begun(1, 10, 0, "0" * 16), Tokens(1, 10, [7] * 50, "x", "cloud"), Done(1, "length", 10, 50, {})
    ),
    "text without end": lambda liar, frame: liar.say(
        Begun(1, 10, 0, "0" * 16), Tokens(1, 10, [7], "x" * 100_000, "cloud")
    ),
    "an account of its own": lambda liar, frame: liar.say(
        Begun(1, 10, 0, "0" * 16), Tokens(1, 10, [7], "x", "cloud"), Done(1, "stop", 10, 1, {"why": 3})
    ),
    "begun again and again": lambda liar, frame: liar.say(*[Begun(1, 10, 0, "0" * 16)] * 2),
    "an example": lambda liar, frame: liar.say(an_example(0)),
}


def an_example(number: int, tokens: int = 2) -> Example:
    code, scale = np.ones((tokens, 3, 16), np.int8), np.ones((tokens, 3), np.float32)
    z, top = np.ones((tokens, 64), np.float16), np.ones((tokens, 16), np.int32)
    ids, lse = np.ones(tokens, np.int32), np.ones(tokens, np.float32)
    return Example(number, ids, code, scale, z, np.zeros(0, np.float32), top, lse)


@pytest.mark.parametrize("what", REPLIES)
def test_a_reply_that_lies(what: str) -> None:
    with lying(REPLIES[what]) as (url, _), Session(a_link(url), Silent(TAP)) as session:
        reply = session.generate(Prompt(text="x"), 5)
        with pytest.raises(ProtocolError):
            list(reply)


# ── examples ──────────────────────────────────────────────────────────────────────────────────────────────────────────

EXAMPLES: dict[str, Says] = {
    "another number": lambda liar, frame: liar.say(an_example(77)),
    "one twice": lambda liar, frame: liar.say(an_example(0), an_example(0)),
    "longer than it may write": lambda liar, frame: liar.say(an_example(0, 9)),
    "rows that nobody wants": lambda liar, frame: liar.say(
        replace(an_example(0), context=np.ones((1, 3, 16), np.int8), context_scales=np.ones((1, 3), np.float32))
    ),
    "an error that waits for ever": lambda liar, frame: liar.say_raw(
        Kind.ERROR, {"code": "busy", "message": "later", "number": 0, "retry_s": float("nan")}
    ),
    "an error of another example": lambda liar, frame: liar.say(Error("busy", "later", 5, 0.1)),
}


@pytest.mark.parametrize("what", EXAMPLES)
def test_an_example_that_lies_is_not_on_the_tape(what: str, tmp_path: Path) -> None:
    texts = [Text(Prompt.user("x"), "", "x:1", 4), Text(Prompt.user("y"), "", "x:2", 4)]

    def says(liar: Liar, frame: Frame) -> None:
        if isinstance(frame, Read) and frame.number == 0:
            EXAMPLES[what](liar, frame)

    with lying(says) as (url, _), Session(a_link(url), Silent(TAP)) as session, pytest.raises(SideplugError) as caught:
        record(session, TAP, texts, tmp_path / "t.tape")
    assert not isinstance(caught.value, AssertionError)
    size = (tmp_path / "t.tape").stat().st_size
    assert size == (len(encode(an_example(0))) if what == "one twice" else 0)


# ── the terminal ──────────────────────────────────────────────────────────────────────────────────────────────────────


def steering_reply(liar: Liar, frame: Frame) -> None:
    if isinstance(frame, PromptFrame):
        begun(liar, frame)
        liar.say(Tokens(1, 10, [7], f"a{OSC}b\n\tc", "cloud"), Done(1, "stop", 10, 1, {}))


def steering_error(liar: Liar, frame: Frame) -> None:
    liar.say(Error("bad-input", f"no{OSC}"))


def steering_goodbye(liar: Liar, frame: Frame) -> None:
    liar.socket.close(1008, f"bye{OSC}")


@pytest.mark.parametrize(("says", "where", "shown"), [
    (steering_reply, "stdout", "a\\x1b]0;owned\\x07\\x9b2J\\u202eb\n\tc\n"),
    (steering_error, "stderr", "sideplug: no\\x1b]0;owned\\x07\\x9b2J\\u202e\n"),
    (steering_goodbye, "stderr", "bye\\x1b]0;owned\\x07\\x9b2J\\u202e\n"),
])  # fmt: skip
def test_nothing_steers_the_terminal(run: Run, says: Says, where: str, shown: str) -> None:
    with lying(says) as (url, _):
        for more in ([], ["--json"]):
            done = run("generate", "x", "--cloud", url, "--retry", 0, *more)
            for text in (done.stdout, done.stderr):
                assert not set(text) & set(OSC.replace("]0;owned", "").replace("2J", ""))
            if not more:
                assert getattr(done, where).endswith(shown)
        chatted = run("chat", "--cloud", url, "--retry", 0, stdin="x\n")
        assert "\x1b]" not in chatted.stdout + chatted.stderr
        assert "\u202e" not in chatted.stdout + chatted.stderr


def test_a_model_s_description_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from sideplug.device import client

    for body in ("{}", "[", '{"fingerprint": "../x"}', "null", '"' + "x" * 100 + '"'):
        monkeypatch.setattr(client, "get", lambda address, path, body=body: body)
        with pytest.raises(CloudError, match="does not describe its model"):
            client.Client.at("ws://127.0.0.1:1").model()
