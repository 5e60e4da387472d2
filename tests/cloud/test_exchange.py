"""Which frame of a device may come when, and what a sent frame completes: the tables, without a socket or an engine."""

from __future__ import annotations

from dataclasses import MISSING, fields
from types import SimpleNamespace
from typing import Any

import pytest

from sideplug.cloud.exchange import MAY_COME, Exchange, State
from sideplug.cloud.reading import ExampleWork
from sideplug.cloud.reply import Reply, SessionSpec
from sideplug.cloud.tokenizer import TextStream
from sideplug.contract.errors import Busy, ProtocolError
from sideplug.contract.frames import FRAMES, Frame, Kind
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.wire import error_frame

SPEC = SessionSpec(Tap((0, 1), 2), (Gate("shut"),))
FROM_A_DEVICE = {Kind.OPEN, Kind.PROMPT, Kind.ANSWER, Kind.CANCEL, Kind.READ, Kind.SCORE, Kind.ROWS}


def a_reply() -> Reply:
    class Silent:
        def decode(self, ids: list[int]) -> str:
            return ""

    how: dict[str, Any] = {"max_tokens": 4, "context": 100, "stop_ids": (), "send": lambda frame: None}
    stream = TextStream(Silent())  # type: ignore[arg-type]
    return Reply(ids=[5, 6], turn=1, spec=SPEC, text=stream, sampling=Sampling(), **how)


def an_example(number: int, score: bool = False) -> ExampleWork:
    return ExampleWork(ids=[5, 6], send=lambda frame: None, number=number, spec=SPEC, prompt_tokens=1, score=score)


def frame(kind: Kind, number: int = 0) -> Frame:
    """A frame as far as an Exchange looks at it."""
    cls: Any = FRAMES[kind]
    needed = (each for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING)
    made: Frame = cls(**{each.name: number if each.name == "number" else None for each in needed})
    return made


def opened() -> Exchange:
    exchange = Exchange(max_examples=2)
    exchange.state = State.OPEN
    return exchange


@pytest.mark.parametrize("kind", Kind)
def test_what_may_come_in_which_state(kind: Kind) -> None:
    opening = Exchange(2)
    if kind is Kind.OPEN:
        opening.check(frame(kind))
    else:
        with pytest.raises(ProtocolError, match=f"a session must begin with OPEN, got {kind.name}"):
            opening.check(frame(kind))
    if kind in FROM_A_DEVICE - {Kind.OPEN}:
        opened().check(frame(kind))
    else:
        with pytest.raises(ProtocolError, match=f"a device must not send {kind.name} here"):
            opened().check(frame(kind))


def test_every_frame_of_a_device_has_its_handler() -> None:
    from sideplug.cloud.session import Session

    handled: list[Frame] = []
    session: Any = Session.__new__(Session)
    session._exchange, session._opened = opened(), SimpleNamespace(spec=SPEC)
    for name in ("prompt", "answer", "cancel", "read", "score", "rows"):
        setattr(session, f"_{name}", handled.append)
    frames = [frame(kind) for kind in MAY_COME[State.OPEN]]
    for each in frames:
        session._handle(each)
    assert handled == frames


@pytest.mark.parametrize("completes", [frame(Kind.DONE), error_frame(Busy("try later"))], ids=["done", "error"])
@pytest.mark.parametrize("refused", [False, True])
def test_one_reply_at_a_time(completes: Frame, refused: bool) -> None:
    exchange, reply = opened(), a_reply()
    exchange.begin(frame(Kind.PROMPT), None if refused else reply)
    assert exchange.reply is (None if refused else reply)
    assert exchange.works == ([] if refused else [reply])
    with pytest.raises(ProtocolError, match="a session must wait for DONE, or the ERROR, before its next PROMPT"):
        exchange.check(frame(Kind.PROMPT))
    exchange.complete(frame(Kind.TOKENS))
    exchange.complete(error_frame(Busy("try later"), 7))
    exchange.complete(frame(Kind.HEAD))
    assert exchange.reply is (None if refused else reply), "none of these ends it"
    exchange.complete(completes)
    exchange.check(frame(Kind.PROMPT))
    assert not exchange.works


def test_one_part_of_the_head_at_a_time() -> None:
    exchange = opened()
    exchange.begin(frame(Kind.ROWS))
    with pytest.raises(ProtocolError, match="a session must wait for HEAD before its next ROWS"):
        exchange.check(frame(Kind.ROWS))
    assert not exchange.works, "it is no work that a server waits for when it goes down"
    exchange.complete(frame(Kind.HEAD))
    exchange.check(frame(Kind.ROWS))


def test_so_many_examples_at_a_time() -> None:
    exchange, sentence = opened(), "a session must have at most 2 examples in reading, each with its own number"
    exchange.begin(frame(Kind.READ, 1), an_example(1))
    with pytest.raises(ProtocolError, match=sentence):
        exchange.check(frame(Kind.READ, 1))
    exchange.begin(frame(Kind.READ, 2))  # refused: its number is taken until the ERROR leaves
    with pytest.raises(ProtocolError, match=sentence):
        exchange.check(frame(Kind.READ, 2))
    exchange.begin(frame(Kind.READ, 3), an_example(3))
    with pytest.raises(ProtocolError, match=sentence):
        exchange.check(frame(Kind.READ, 4))
    exchange.complete(error_frame(Busy("try later"), 2))
    exchange.complete(frame(Kind.EXAMPLE, 1))
    exchange.check(frame(Kind.READ, 1))
    assert [example.number for example in exchange.examples] == [3]


def test_an_example_that_may_be_scored_stays_until_it_is() -> None:
    exchange, example = opened(), an_example(1, score=True)
    with pytest.raises(ProtocolError, match="example 1 must be read with score before it is scored"):
        exchange.example(1)
    exchange.begin(frame(Kind.READ, 1), example)
    exchange.complete(frame(Kind.EXAMPLE, 1))
    assert exchange.example(1) is example
    exchange.complete(frame(Kind.SCORED, 1))
    with pytest.raises(ProtocolError):
        exchange.example(1)


def test_its_end() -> None:
    exchange = opened()
    exchange.begin(frame(Kind.PROMPT), a_reply())
    exchange.begin(frame(Kind.READ, 1), an_example(1))
    exchange.end()
    assert (exchange.reply, exchange.works) == (None, [])
