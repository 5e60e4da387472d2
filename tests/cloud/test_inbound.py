"""What a device may have on its way in, on real sockets."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame as Written
from websockets.frames import Opcode
from websockets.sync.client import connect

from sideplug.cloud import inbound, tap_store
from sideplug.cloud import session as sessions
from sideplug.contract import wire
from sideplug.contract.errors import ProtocolError
from sideplug.contract.frames import FROM_CLOUD, FROM_DEVICE, Cancel, Error, Kind, Opened
from sideplug.contract.text import Prompt
from sideplug.contract.wire import decode, encode
from tests.cloud.test_server import answer, exchange, opening, prompt
from tests.conftest import Cloud, a_cloud, a_link, a_session, eventually
from tests.robustness.huge import HUGE, huge_map


def test_a_device_of_many_pings_is_not_read_from_for_a_while(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """And goes on then: everything that it sent is answered."""
    monkeypatch.setattr(inbound, "FRAMES", 50)
    monkeypatch.setattr(inbound, "MAX_PAUSE_S", 0.2)
    pauses: list[float] = []
    end = inbound.BoundedConnection._end_pause

    def noted(self: inbound.BoundedConnection) -> None:
        pauses.append(self._debt)
        end(self)

    monkeypatch.setattr(inbound.BoundedConnection, "_end_pause", noted)
    with connect(cloud.url + wire.PATH, compression=None, ping_interval=None) as device:
        device.send(encode(opening()))
        assert isinstance(decode(device.recv(10)), Opened)  # type: ignore[arg-type]
        pongs = [device.ping(str(number)) for number in range(400)]
        assert all(pong.wait(20) for pong in pongs)
    assert pauses
    eventually(lambda: not cloud.server.sessions)


def test_a_message_that_is_never_complete_is_given_up(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbound, "UNFINISHED_S", 0.2)
    with connect(cloud.url + wire.PATH, compression=None) as device:
        device.send(encode(opening()))
        device.recv(10)
        device.socket.sendall(Written(Opcode.BINARY, b"SP" * 50_000, fin=False).serialize(mask=True))
        with pytest.raises(ConnectionClosed):
            device.recv(10)
    eventually(lambda: not cloud.server.sessions)


def test_fragments_that_come_to_an_end_are_a_message(cloud: Cloud) -> None:
    """Also where more than a connection's share waits: it is read on in the middle of a message."""
    with connect(cloud.url + wire.PATH, compression=None) as device:
        device.send(encode(opening()))
        device.recv(10)
        whole = encode(prompt(text="a b " * 500_000, ids=None), 1)
        assert len(whole) > inbound.QUEUED_BYTES
        for piece in range(3):  # two more wait behind the first, which is refused for its length
            cuts = [whole[at : at + 60_000] for at in range(0, len(whole), 60_000)]
            if piece:
                cuts = [encode(Cancel(9), piece + 1)]
            for n, cut in enumerate(cuts):
                kind = Opcode.BINARY if n == 0 else Opcode.CONT
                device.socket.sendall(Written(kind, cut, fin=n == len(cuts) - 1).serialize(mask=True))
        error = decode(device.recv(30))  # type: ignore[arg-type]
        assert isinstance(error, Error)
        assert error.code == "too-long"
        eventually(lambda: [session._received for session in cloud.server.sessions] == [4])


@pytest.mark.parametrize("kind", HUGE)
def test_a_frame_of_millions_of_elements_is_refused_before_it_is_decoded(cloud: Cloud, kind: str) -> None:
    link = a_link(cloud.url)
    link.send(opening())
    link.receive(10)
    link._connection.send(wire.join(*huge_map(kind), b"", 1))
    with pytest.raises(ProtocolError):
        link.receive(30)
    link.close()
    eventually(lambda: not cloud.server.sessions)


def test_the_kinds_of_each_side_come_from_that_side_only() -> None:
    assert frozenset(Kind) == FROM_DEVICE | FROM_CLOUD
    message = wire.join(Kind.TOKENS, msgspec.msgpack.encode({"anything": 1}))
    with pytest.raises(ProtocolError, match="TOKENS must not come from this side"):
        decode(message, kinds=FROM_DEVICE)


@pytest.mark.parametrize(("field", "count"), [("ids", 101), ("done", 101), ("ids", 70_000)])
def test_ids_are_counted_before_they_are_decoded(field: str, count: int) -> None:
    fields = {"turn": 1, "max_tokens": 1, "sampling": {}, field: [300] * count}
    message = wire.join(Kind.PROMPT, msgspec.msgpack.encode(fields))
    with pytest.raises(ProtocolError, match="PROMPT must have at most 100 token ids"):
        decode(message, most_ids=100)
    assert decode(message, most_ids=count).kind is Kind.PROMPT


@pytest.mark.parametrize("kind", [Kind.OPEN, Kind.ANSWER, Kind.CANCEL, Kind.SCORE, Kind.ROWS])
def test_a_kind_without_text_is_short(kind: Kind) -> None:
    header = wire.join(kind, b"x" * (wire.SHORT_CONTROL_BYTES + 1))
    with pytest.raises(ProtocolError, match=f"the control map of {kind.name} must have at most 262144 bytes"):
        decode(header)


def test_an_idle_session_keeps_nothing_of_its_last_frame(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a refused text of megabytes."""
    taken: list[weakref.ref[object]] = []
    handle = sessions.Session._handle

    def noted(self: sessions.Session, frame: object) -> object:
        taken.append(weakref.ref(frame))
        return handle(self, frame)  # type: ignore[arg-type]

    monkeypatch.setattr(sessions.Session, "_handle", noted)
    link = a_link(cloud.url)
    link.send(opening())
    link.receive(10)
    link.send(prompt(text="a b " * 500_000, ids=None))
    with suppress(Exception):
        link.receive(30)
    gc.collect()
    eventually(lambda: len(taken) == 1 and taken[0]() is None)
    link.close()


def test_a_question_is_answered_once(cloud: Cloud) -> None:
    """However old the run is that the answer names: so answers are no more than questions."""
    error = exchange(cloud, opening(), prompt(max_tokens=3), answer(at=3), answer(at=3))
    assert type(error) is ProtocolError
    assert "answer each question once" in str(error)


def test_a_big_text_holds_nobody_up(tiny: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read beside the event loop, and a session goes on meanwhile."""
    monkeypatch.setattr(tap_store, "SMALL_BYTES", 0)
    with a_cloud(tiny) as cloud:  # type: ignore[arg-type]
        aside = cloud.server.shared.aside
        seen: list[int] = []
        run = aside.run

        async def counted(user: str, function: object) -> object:
            seen.append(1)
            return await run(user, function)  # type: ignore[arg-type]

        aside.run = counted  # type: ignore[method-assign, assignment]
        link = a_link(cloud.url)
        session = a_session(link)
        opened = len(seen)
        list(session.generate(Prompt.user("Is it far?"), 3))
        assert len(seen) == opened == 1, "a tap's projection is made aside, a short text is read at once"
        with pytest.raises(Exception, match="characters|tokens"):
            list(session.generate(Prompt(text="a b " * 20_000), 3))
        assert len(seen) == 3, "the frame is decoded aside, and the text is tokenized there"
        link.close()
