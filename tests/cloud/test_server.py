"""What a device may not do, and what the cloud does with one that leaves."""

import gc
import socket
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
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
from sideplug.contract.frames import (
    MAX_SENTENCE,
    Answer,
    Ask,
    Context,
    Done,
    Frame,
    GateSpec,
    Kind,
    Open,
    PromptFrame,
    Read,
    Rows,
    SamplingSpec,
    Score,
    Wanted,
    control_of,
    tensors_of,
)
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling
from sideplug.contract.text import Prompt
from sideplug.contract.wire import DTYPES, decode, encode, join
from sideplug.device.link import WebSocketLink
from tests.conftest import Cloud, a_cloud, a_link, a_plugin, a_session, eventually

OPEN = Open("", "l0.1.2-r16-s0-int8", "add", [GateSpec("open")], "test", np.zeros((0, 0), np.float32))
PROMPT = PromptFrame(1, 4, SamplingSpec(), ids=[5, 6, 7])
READ = Read(1, "Anna wrote to her brother", True, text="")


@dataclass(frozen=True)
class Malformed:
    """A frame with fields that its class does not allow, as no device of ours would send it."""

    frame: Frame
    changed: dict[str, Any]

    def encode(self, number: int) -> bytes:
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors_of(self.frame).items()}
        names = {dtype: name for name, dtype in DTYPES.items()}
        listing = [(name, names[tensor.dtype], tensor.shape) for name, tensor in tensors.items()]
        packed = msgspec.msgpack.encode({**control_of(self.frame), "t": listing, **self.changed})
        return join(self.frame.kind, packed, b"".join(tensor.tobytes() for tensor in tensors.values()), number)


def test_a_frame_is_malformed_by_what_was_changed_alone() -> None:
    for frame in (OPEN, PROMPT, answer(**MIXTURE)):
        assert encode(decode(Malformed(frame, {}).encode(0))) == encode(frame)


Sent = Frame | Malformed


def exchange(cloud: Cloud, *frames: Sent) -> Exception:
    """Send these frames and read until the cloud refuses."""
    link = a_link(cloud.url)
    try:
        for frame in frames:
            if isinstance(frame, Malformed):
                link._connection.send(frame.encode(link._sent))
                link._sent += 1
            else:
                link.send(frame)
        while True:
            link.receive(10)
    except SideplugError as error:
        return error
    finally:
        link.close()


def opening(**changed: Any) -> Open:
    return replace(OPEN, **changed)


def prompt(**changed: Any) -> PromptFrame:
    return replace(PROMPT, **changed)


def rows_of(ids: Any) -> Rows:
    return Rows(0, np.array(ids, np.int32))


def score(**changed: Any) -> Score:
    return replace(Score(1, np.zeros((1, 64), np.int8), np.zeros(1, np.float32)), **changed)


def answer(turn: int = 1, at: int = 3, run: int = 0, draft: Any = None, **tensors: Any) -> Answer:
    """Corrections that change nothing, or what `tensors` say."""
    expected = np.zeros((1, 0), np.int32) if draft is None else np.array([draft], np.int32)
    return Answer(turn, run, [at], expected, **(tensors or NOTHING))


NOTHING = {"delta": np.zeros((1, 64), np.int8), "scales": np.zeros(1, np.float32)}
MIXTURE = {
    "mix": np.ones(1, np.float32),
    "mix_ids": np.full((1, 1), 7, np.int32),
    "mix_weights": np.ones((1, 1), np.float32),
}
ROW = np.zeros((1, 64), np.float32)
RAW = msgspec.Raw(msgspec.msgpack.encode({"pairs": 4}))
BREACHES: dict[str, tuple[list[Sent], type[Exception]]] = {
    "prompt before open": ([PROMPT], ProtocolError),
    "opened twice": ([opening()] * 2, ProtocolError),
    "a frame of the cloud's": ([opening(), Done(1, "", 0, 0, {})], ProtocolError),
    "context rows, which are the cloud's": (
        [opening(), Context(1, 0, 0, np.zeros((1, 3, 16), np.int8), np.zeros((1, 3), np.float32))],
        ProtocolError,
    ),
    "wrong base": ([opening(base="f" * 64)], WrongBase),
    "bad tap": ([opening(tap="x")], InputError),
    "tap past the model": ([opening(tap="l0.9-r16-s0-int8")], InputError),
    "bad gate": ([opening(gates=[GateSpec("x")])], InputError),
    "no gate": ([opening(gates=[])], InputError),
    "too many gates": ([Malformed(OPEN, {"gates": [{"kind": "open"}] * 9})], ProtocolError),
    "bad merge": ([opening(merge="x")], InputError),
    "a gate of another width": (
        [opening(gates=[GateSpec("linear")], gate=np.zeros((1, 63), np.float32))],
        InputError,
    ),
    "an open gate with weights": ([opening(gate=ROW)], InputError),
    "a gate that is not finite": ([opening(gates=[GateSpec("linear", float("nan"))], gate=ROW)], InputError),
    "a gate's threshold is text": (
        [Malformed(opening(gate=ROW), {"gates": [{"kind": "linear", "threshold": "1"}]})],
        ProtocolError,
    ),
    "a capability that is needed and not here": (
        [opening(capabilities={"flight": Wanted(RAW, required=True)})],
        InputError,
    ),
    "a capability's settings are another's": ([opening(capabilities={"context": Wanted(RAW)})], ProtocolError),
    "an unknown field": ([opening(), Malformed(PROMPT, {"wings": 2})], ProtocolError),
    "a window too wide": ([opening(), prompt(window=33)], InputError),
    "a deadline below none": ([opening(), prompt(deadline_ms=-1)], InputError),
    "an id that is none": ([opening(), Malformed(PROMPT, {"ids": [5, -1]})], ProtocolError),
    "ids that are no numbers": ([opening(), Malformed(PROMPT, {"done": [True]})], ProtocolError),
    "no sampling": ([opening(), Malformed(PROMPT, {"sampling": {"heat": 1}})], ProtocolError),
    "a context that was not granted": ([opening(), prompt(context=0)], InputError),
    "gates of parts that there are not": ([opening(), prompt(gates=["open", "open"])], InputError),
    "a first draft past the vocabulary": ([opening(), prompt(draft=[10**6])], InputError),
    "a first draft too long": ([opening(), Malformed(PROMPT, {"draft": [1] * 513})], ProtocolError),
    "an extension that was not granted": ([opening(), prompt(extensions={"mixture": RAW})], ProtocolError),
    "an extension that nobody knows": ([opening(), prompt(extensions={"flight": RAW})], ProtocolError),
    "two prompts at once": ([opening(), PROMPT, PROMPT], ProtocolError),
    "answer for another position": ([opening(), PROMPT, answer(at=4)], ProtocolError),
    "answer for a run to come": ([opening(), PROMPT, answer(run=1)], ProtocolError),
    "a position that is no number": ([opening(), PROMPT, Malformed(answer(), {"at": [[3]]})], ProtocolError),
    "a position that is text": ([opening(), PROMPT, Malformed(answer(), {"at": ["3"]})], ProtocolError),
    "a draft past the vocabulary": ([opening(), PROMPT, answer(draft=[10**6])], ProtocolError),
    "a draft too long": ([opening(), PROMPT, answer(draft=[1] * 33)], ProtocolError),
    "a mixture that was not granted": ([opening(), PROMPT, answer(**MIXTURE)], ProtocolError),
    "written and given": (
        [opening(), Read(1, "wrote", False, text="Anna", greedy_tokens=4)],
        InputError,
    ),
    "an example's context that was not granted": ([opening(), replace(READ, context=True)], InputError),
    "answer for another turn": ([opening(), PROMPT, answer(turn=2)], ProtocolError),
    "score without read": ([opening(), score()], ProtocolError),
    "rows past the vocabulary": ([opening(), rows_of([10**6])], ProtocolError),
    "scored before it is read": ([opening(), READ, score()], ProtocolError),
    "too many examples at once": ([opening(), *(replace(READ, number=i) for i in range(9))], ProtocolError),
    "a tap that costs too much": ([opening(tap="l0-r300-s0-int8")], InputError),
    "no rows": ([opening(), rows_of([])], ProtocolError),
}


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES.keys())
def test_breaches(cloud: Cloud, breach: tuple[list[Sent], type[Exception]]) -> None:
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
    link.send(PROMPT)
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
        eventually(lambda: session() is None, 30)
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
    burst(link, prompt(max_tokens=0), prompt(turn=2))
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
    whole = running_hash(done, running_hash([5, 6, 7]))
    error = exchange(cloud, opening(), prompt(max_tokens=10**9, done=done, hash=whole))
    assert type(error) is InputError, error
    assert "fit the context (253)" in str(error)


def test_an_error_that_repeats_much_is_sent(cloud: Cloud) -> None:
    error = exchange(cloud, Malformed(OPEN, {"x\0" * (1 << 14): 1}))
    assert type(error) is ProtocolError, error
    assert "x\\x00x\\x00" in str(error), "or this test shows nothing"
    assert len(str(error)) <= 4 * MAX_SENTENCE  # a control character is written out in four
    error = exchange(cloud, opening(tap="\0" * 2000))
    assert type(error) is InputError, error


def test_a_deadline_that_never_comes_holds_nothing(cloud: Cloud) -> None:
    link = a_link(cloud.url)
    link.send(opening())
    link.receive(10)
    (session,) = cloud.server.sessions
    loop, before = session._loop, len(session._loop._scheduled)  # type: ignore[attr-defined]
    link.send(prompt(max_tokens=100, deadline_ms=1 << 31))
    while not isinstance(frame := link.receive(10), Done):
        if isinstance(frame, Ask):
            link.send(answer(at=frame.at[0]))
    link.close()
    assert len(loop._scheduled) < before + 20  # type: ignore[attr-defined]


def test_a_device_that_never_answers_holds_nobody_up(cloud: Cloud) -> None:
    silent = a_link(cloud.url)
    silent.send(opening())
    silent.send(PROMPT)
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
    rows = rows_of(range(300))
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
