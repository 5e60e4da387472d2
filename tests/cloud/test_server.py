"""What a device may not do, and what the cloud does with one that leaves."""

import gc
import socket
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.frames import Frame as Written
from websockets.frames import Opcode

from sideplug.contract.errors import (
    Busy,
    CloudError,
    InputError,
    ProtocolError,
    SideplugError,
    TooLong,
    WrongBase,
)
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.contract.wire import Frame, Kind, encode
from sideplug.device.link import WebSocketLink
from tests.conftest import Cloud, a_cloud, a_link, a_plugin, a_session, eventually

OPEN = {"base": "", "tap": "l0.1.2-r16-s0-int8", "merge": "add", "gate": {"kind": "open"}, "client": "test"}
PROMPT = {"turn": 1, "ids": [5, 6, 7], "max_tokens": 4, "sampling": {}}


def exchange(cloud: Cloud, *frames: Frame) -> Exception:
    """Send these frames and read until the cloud refuses."""
    link = a_link(cloud.url)
    try:
        for frame in frames:
            link.send(frame)
        while True:
            link.receive(10)
    except SideplugError as error:
        return error
    finally:
        link.close()


def opening(control: dict[str, Any] = OPEN, weights: int = 0) -> Frame:
    return Frame(Kind.OPEN, control, {"gate": np.zeros(weights, np.float32)})


def corrections(delta: Any = None, scales: Any = None) -> dict[str, np.ndarray]:
    delta = np.zeros((1, 64), np.int8) if delta is None else delta
    scales = np.zeros(1, np.float32) if scales is None else scales
    return {"delta": delta, "scales": scales}


def answer(turn: int = 1, at: Any = 3, run: int = 0, draft: Any = None, **tensors: Any) -> Frame:
    draft = np.zeros((1, 0), np.int32) if draft is None else np.array([draft], np.int32)
    return Frame(Kind.ANSWER, {"turn": turn, "run": run, "at": [at]}, {**corrections(**tensors), "draft": draft})


BREACHES: dict[str, tuple[list[Frame], type[Exception]]] = {
    "prompt before open": ([Frame(Kind.PROMPT, PROMPT)], ProtocolError),
    "opened twice": ([opening()] * 2, ProtocolError),
    "a frame of the cloud's": (
        [opening(), Frame(Kind.DONE, {"turn": 1, "why": "", "prompt": 0, "reply": 0, "counts": {}})],
        ProtocolError,
    ),
    "wrong base": ([opening({**OPEN, "base": "f" * 64})], WrongBase),
    "bad tap": ([opening({**OPEN, "tap": "x"})], InputError),
    "tap past the model": ([opening({**OPEN, "tap": "l0.9-r16-s0-int8"})], InputError),
    "bad gate": ([opening({**OPEN, "gate": {"kind": "x"}})], InputError),
    "bad merge": ([opening({**OPEN, "merge": "x"})], InputError),
    "a gate of another width": ([opening({**OPEN, "gate": {"kind": "linear"}}, 63)], InputError),
    "an open gate with weights": ([opening(OPEN, 64)], InputError),
    "a gate that is not finite": (
        [opening({**OPEN, "gate": {"kind": "linear", "bias": float("nan")}}, 64)],
        InputError,
    ),
    "a gate's threshold is text": (
        [opening({**OPEN, "gate": {"kind": "linear", "threshold": "1"}}, 64)],
        InputError,
    ),
    "too far ahead": ([opening(), Frame(Kind.PROMPT, {**PROMPT, "ahead": 33})], InputError),
    "a deadline below none": ([opening(), Frame(Kind.PROMPT, {**PROMPT, "deadline_ms": -1})], InputError),
    "two prompts at once": (
        [opening(), Frame(Kind.PROMPT, PROMPT), Frame(Kind.PROMPT, PROMPT)],
        ProtocolError,
    ),
    "answer for another position": ([opening(), Frame(Kind.PROMPT, PROMPT), answer(at=4)], ProtocolError),
    "answer for a run to come": ([opening(), Frame(Kind.PROMPT, PROMPT), answer(run=1)], ProtocolError),
    "a position that is no number": ([opening(), Frame(Kind.PROMPT, PROMPT), answer(at=[3])], ProtocolError),
    "a draft past the vocabulary": ([opening(), Frame(Kind.PROMPT, PROMPT), answer(draft=[10**6])], ProtocolError),
    "a draft too long": ([opening(), Frame(Kind.PROMPT, PROMPT), answer(draft=[1] * 33)], ProtocolError),
    "written and given": (
        [opening(), Frame(Kind.READ, {"number": 1, "text": "Anna", "reply": "wrote", "score": False, "write": 4})],
        InputError,
    ),
    "answer for another turn": ([opening(), Frame(Kind.PROMPT, PROMPT), answer(turn=2)], ProtocolError),
    "score without read": (
        [opening(), Frame(Kind.SCORE, {"number": 1}, corrections())],
        ProtocolError,
    ),
    "rows past the vocabulary": (
        [opening(), Frame(Kind.ROWS, {"part": 0}, {"ids": np.array([10**6], np.int32)})],
        ProtocolError,
    ),
    "scored before it is read": (
        [
            opening(),
            Frame(Kind.READ, {"number": 1, "text": "", "reply": "Anna wrote to her brother", "score": True}),
            Frame(Kind.SCORE, {"number": 1}, corrections()),
        ],
        ProtocolError,
    ),
    "too many examples at once": (
        [
            opening(),
            *[
                Frame(Kind.READ, {"number": i, "text": "", "reply": "Anna wrote to her brother", "score": True})
                for i in range(9)
            ],
        ],
        ProtocolError,
    ),
    "a tap that costs too much": (
        [opening({**OPEN, "tap": "l0-r300-s0-int8"})],
        InputError,
    ),
    "no rows": ([opening(), Frame(Kind.ROWS, {"part": 0}, {"ids": np.zeros(0, np.int32)})], ProtocolError),
}


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES.keys())
def test_breaches(cloud: Cloud, breach: tuple[list[Frame], type[Exception]]) -> None:
    frames, error = breach
    got = exchange(cloud, *frames)
    assert type(got) is error, got
    assert "\n" not in str(got)
    eventually(lambda: not cloud.engine._works)


BAD_CORRECTIONS = {
    "another width": (np.zeros((1, 63), np.int8), np.zeros(1, np.float32)),
    "two rows": (np.zeros((2, 64), np.int8), np.zeros(2, np.float32)),
    "int32": (np.zeros((1, 64), np.int32), np.zeros(1, np.float32)),
    "no scale": (np.zeros((1, 64), np.int8), np.zeros(0, np.float32)),
    "fp16 scale": (np.zeros((1, 64), np.int8), np.zeros(1, np.float16)),
    "huge": (np.ones((1, 64), np.int8), np.full(1, 1e7, np.float32)),
    "infinite scale": (np.ones((1, 64), np.int8), np.full(1, np.inf, np.float32)),
    "nan": (np.full((1, 64), np.nan, np.float16), np.zeros(0, np.float32)),
}


@pytest.mark.parametrize("tensors", BAD_CORRECTIONS.values(), ids=BAD_CORRECTIONS.keys())
def test_bad_corrections(cloud: Cloud, tensors: tuple[np.ndarray, np.ndarray]) -> None:
    link = a_link(cloud.url)
    link.send(opening())
    link.send(Frame(Kind.PROMPT, PROMPT))
    while link.receive(10).kind is not Kind.ASK:
        pass
    link.send(answer(delta=tensors[0], scales=tensors[1]))
    with pytest.raises(ProtocolError, match="a correction"):
        while True:
            link.receive(10)
    link.close()


def test_garbage_on_the_socket_ends_that_session_only(cloud: Cloud) -> None:
    link = a_link(cloud.url)
    link._connection.send(b"SP\x01garbage" * 9)
    with pytest.raises(ProtocolError):
        link.receive(10)
    link.close()
    link = a_link(cloud.url)
    link._connection.send("text")
    with pytest.raises(ProtocolError):
        link.receive(10)
    link.close()
    with a_session(cloud.url) as session:
        assert list(session.generate(Prompt(ids=(5, 6)), 2))


def test_a_users_mistake_leaves_the_session_usable(cloud: Cloud) -> None:
    with a_session(cloud.url) as session:
        for prompt, error in (
            (Prompt(ids=tuple([5] * 300)), TooLong),
            (Prompt(text="a" * 30_000), TooLong),
            (Prompt(text=""), InputError),
            (Prompt(ids=(10**6,)), InputError),
        ):
            with pytest.raises(error):
                list(session.generate(prompt, 2))
        with pytest.raises(InputError, match="max_tokens"):
            list(session.generate(Prompt(ids=(5,)), 0))
        assert list(session.generate(Prompt(ids=(5, 6)), 2))


def test_the_context_ends_a_reply(cloud: Cloud) -> None:
    with a_session(cloud.url) as session:
        pieces = list(session.generate(Prompt(ids=tuple([5] * 250)), 100, Sampling(1.0, seed=1)))
        assert sum(len(p.ids) for p in pieces) <= 6
        assert session.usage.why in ("length", "stop")


def test_cancel_frees_the_engine_and_the_session_goes_on(cloud: Cloud) -> None:
    with a_session(cloud.url, a_plugin(cloud.base.fingerprint)) as session:
        for _ in range(3):
            reply = session.generate(Prompt(ids=(5, 6)), 200, Sampling(1.0, seed=2))
            next(reply)
            reply.close()
            assert session.usage.why in ("cancelled", "stop")
        eventually(lambda: not cloud.engine._works)
        assert list(session.generate(Prompt(ids=(5, 6)), 2))


def test_a_device_that_leaves_is_forgotten(cloud: Cloud) -> None:
    link = a_link(cloud.url)
    session = a_session(link, a_plugin(cloud.base.fingerprint))
    next(session.generate(Prompt(ids=(5, 6)), 200))
    link._connection.socket.close()
    eventually(lambda: not cloud.engine._works)


def test_a_session_that_was_cut_off_is_free_at_once(cloud: Cloud) -> None:
    """Not when the collector comes by: until then it holds its TLS, its connection and what its predictor knows."""
    gc.collect()
    gc.disable()
    try:
        link = a_link(cloud.url)
        reply = a_session(link, a_plugin(cloud.base.fingerprint)).generate(Prompt(ids=(5, 6)), 200)
        next(reply)
        (session,) = map(weakref.ref, cloud.server.sessions)
        socket.socket.shutdown(link._connection.socket, socket.SHUT_RDWR)
        eventually(lambda: session() is None)
    finally:
        gc.enable()
    link.close()


def burst(link: WebSocketLink, *frames: Frame) -> None:
    """Send these at once, so that the cloud has them all before it says a word."""
    messages = [encode(frame, link._sent + number) for number, frame in enumerate(frames)]
    link._sent += len(frames)
    link._connection.socket.sendall(b"".join(Written(Opcode.BINARY, m).serialize(mask=True) for m in messages))


def test_a_prompts_error_ends_no_other(cloud: Cloud) -> None:
    """The second came before the first one's ERROR had left: its reply must not be forgotten, and stay for ever."""
    link = a_link(cloud.url)
    link.send(opening())
    burst(link, Frame(Kind.PROMPT, {**PROMPT, "max_tokens": 0}), Frame(Kind.PROMPT, {**PROMPT, "turn": 2}))
    with pytest.raises((InputError, ProtocolError)):
        while True:
            link.receive(10)
    with pytest.raises((CloudError, ProtocolError)):
        while True:
            link.receive(10)
    link.close()
    eventually(lambda: not cloud.server.sessions)
    eventually(lambda: not cloud.engine._works)


def test_no_more_is_done_than_fits(cloud: Cloud) -> None:
    done = [5] * 1000  # of a context of 256
    control = {**PROMPT, "max_tokens": 10**9, "done": done, "hash": running_hash(done, running_hash(PROMPT["ids"]))}
    error = exchange(cloud, opening(), Frame(Kind.PROMPT, control))
    assert type(error) is InputError, error
    assert "fit the context (253)" in str(error)


def test_an_error_that_repeats_much_is_sent(cloud: Cloud) -> None:
    error = exchange(cloud, opening({**OPEN, "merge": "\0" * (1 << 20)}))
    assert type(error) is InputError, error


def test_a_deadline_that_never_comes_holds_nothing(cloud: Cloud) -> None:
    link = a_link(cloud.url)
    link.send(opening())
    link.receive(10)
    (session,) = cloud.server.sessions
    loop, before = session._loop, len(session._loop._scheduled)  # type: ignore[attr-defined]
    link.send(Frame(Kind.PROMPT, {**PROMPT, "max_tokens": 100, "deadline_ms": 1 << 31}))
    while (frame := link.receive(10)).kind is not Kind.DONE:
        if frame.kind is Kind.ASK:
            link.send(answer(at=frame["at"][0]))
    link.close()
    assert len(loop._scheduled) < before + 20  # type: ignore[attr-defined]


def test_a_device_that_never_answers_holds_nobody_up(cloud: Cloud) -> None:
    silent = a_link(cloud.url)
    silent.send(opening())
    silent.send(Frame(Kind.PROMPT, PROMPT))
    while silent.receive(10).kind is not Kind.ASK:
        pass
    with a_session(cloud.url) as session:
        list(session.generate(Prompt(ids=(5, 6)), 30))
        assert session.usage.why in ("length", "stop")
    silent.close()


def test_a_device_that_never_opens_is_sent_away(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sideplug.cloud import session

    monkeypatch.setattr(session, "OPEN_TIMEOUT_S", 0.2)
    with a_cloud(tiny) as cloud:
        link = a_link(cloud.url)
        with pytest.raises(CloudError, match="closed the connection"):
            link.receive(10)
        link.close()
        eventually(lambda: not cloud.server.sessions)


def test_a_device_that_reads_nothing_makes_the_cloud_hold_little(cloud: Cloud) -> None:
    """It asks for the head's rows for ever, or for replies, and never reads: the second request already waits."""
    link = a_link(cloud.url)
    link.send(opening())
    rows = Frame(Kind.ROWS, {"part": 0}, {"ids": np.arange(300, dtype=np.int32)})
    with pytest.raises((ProtocolError, CloudError)):
        for _ in range(200):
            link.send(rows)
        while True:
            link.receive(10)
    link.close()
    eventually(lambda: not cloud.engine._works)


def test_no_more_sessions_than_allowed(tiny: Path) -> None:
    with a_cloud(tiny, sessions=2) as cloud, a_session(cloud.url), a_session(cloud.url):
        link = a_link(cloud.url)
        with pytest.raises((Busy, CloudError), match="2 sessions|try later|busy"):
            a_session(link)
        link.close()


def test_a_message_past_the_limit_is_refused(tiny: Path) -> None:
    with a_cloud(tiny, message_bytes=2000) as cloud, a_session(cloud.url) as session, pytest.raises(CloudError):
        list(session.generate(Prompt(text="a" * 3000), 2))
