"""The engine without sockets: what shares a step, what is parked, and whose fault ends whose work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from sideplug.cloud.engine import Engine
from sideplug.cloud.engines import open_model
from sideplug.cloud.model.base import Model
from sideplug.cloud.reading import HEAD_ROWS, ExampleWork
from sideplug.cloud.reply import Reply, SessionSpec
from sideplug.cloud.scheduler import Budget
from sideplug.cloud.store import find
from sideplug.cloud.tokenizer import TextStream, Tokenizer
from sideplug.contract.errors import ProtocolError
from sideplug.contract.frames import Answer, Ask, Done, Error, Example, Frame, Kind, Score, Scored, Tokens
from sideplug.contract.gate import Gate
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from tests.conftest import UNQUANTISED

TAP = Tap((0, 1, 2), 16)


@pytest.fixture(scope="module")
def parts(tiny: Path) -> tuple[Model, Tokenizer]:
    return open_model(find(str(tiny)), UNQUANTISED).model, Tokenizer(tiny)


@pytest.fixture
def engine(parts: tuple[Model, Tokenizer]) -> Engine:
    return Engine(*parts, Budget(64, 8))


def a_reply(
    engine: Engine, ids: list[int], gate: str = "shut", tokens: int = 5, window: int = 0, **sampling: Any
) -> tuple[Reply, list[Frame]]:
    """A reply of its own that was added, and what it says after BEGUN."""
    heard: list[Frame] = []

    def hear(frame: Frame) -> None:
        if frame.kind is not Kind.BEGUN:
            heard.append(frame)

    reply = Reply(
        ids=ids,
        send=hear,
        turn=1,
        spec=SessionSpec(TAP, (Gate(gate),)),
        text=TextStream(engine.tokenizer),
        sampling=Sampling(**sampling),
        max_tokens=tokens,
        context=256,
        stop_ids=engine.tokenizer.stop_ids,
        window=window,
    )
    engine.add(reply)
    return reply, heard


def an_example(engine: Engine, ids: list[int], number: int = 7, **more: Any) -> tuple[ExampleWork, list[Frame]]:
    heard: list[Frame] = []
    spec = SessionSpec(TAP, (Gate("open"),))
    example = ExampleWork(ids=ids, send=heard.append, number=number, spec=spec, prompt_tokens=3, **more)
    engine.add(example)
    return example, heard


def a_reading(engine: Engine, count: int, score: bool = False) -> tuple[ExampleWork, list[Frame]]:
    ids = np.random.default_rng(count).integers(2, 300, count).tolist()
    return an_example(engine, ids, score=score)


def answer(*at: int, turn: int = 1, run: int = 0, delta: float = 0.0) -> Answer:
    """Corrections that change nothing, or much."""
    codes = np.random.default_rng(0).integers(-127, 127, 64).astype(np.int8)
    delta_TD, scales = np.tile(codes, (len(at), 1)), np.full(len(at), delta, np.float32)
    return Answer(turn, run, list(at), np.zeros((len(at), 0), np.int32), delta_TD, scales)


F = TypeVar("F", bound=Frame)


def of(kind: type[F], frames: Sequence[Frame]) -> list[F]:
    """Those frames that are of one kind."""
    return [frame for frame in frames if isinstance(frame, kind)]


def said(frames: Sequence[Frame]) -> list[int]:
    """The token ids of all TOKENS."""
    return [token for frame in of(Tokens, frames) for token in frame.ids]


def kinds(frames: Sequence[Frame]) -> list[str]:
    return [frame.kind.name for frame in frames]


def drain(engine: Engine) -> int:
    count = 0
    while engine.step():
        count += 1
        assert count < 10_000
    return count


def test_sessions_share_their_steps(engine: Engine) -> None:
    replies = [a_reply(engine, [5 + i, 6, 7])[1] for i in range(6)]
    drain(engine)
    assert engine.counters.steps == 5  # one prefill for all, then a token a step (the last token needs none)
    assert all(frames[-1].kind is Kind.DONE for frames in replies)


def test_parked_until_answered_once_and_for_its_own_position(engine: Engine) -> None:
    reply, heard = a_reply(engine, [5, 6, 7], "open", 2)
    drain(engine)
    assert kinds(heard) == ["ASK"]
    assert of(Ask, heard)[0].at == [3]
    assert not engine.step()
    for wrong in (answer(4), answer(3, turn=2)):
        with pytest.raises(ProtocolError, match=r"turn 1, run 0, positions \[3\]"):
            engine.answer(reply, wrong)
    engine.answer(reply, answer(3))
    with pytest.raises(ProtocolError):
        engine.answer(reply, answer(3))
    drain(engine)
    assert kinds(heard) == ["ASK", "TOKENS", "ASK"]
    engine.answer(reply, answer(4))
    drain(engine)
    assert kinds(heard)[-2:] == ["TOKENS", "DONE"]
    engine.answer(reply, answer(5))  # late, for a reply that is over: nothing happens


def test_it_speculates_and_rolls_back(engine: Engine) -> None:
    reply, heard = a_reply(engine, [5, 6, 7], "open", 12, window=4)
    drain(engine)
    asks = of(Ask, heard)
    assert kinds(heard) == ["ASK"] * 5
    assert [ask.at for ask in asks] == [[3], [4], [5], [6], [7]], "four speculative tokens, and one that waits"
    speculated = [ask.ids for ask in asks]
    assert [ask.start for ask in asks] == [3, 3, 4, 5, 6]
    engine.answer(reply, answer(3, 4))  # what the base says itself
    drain(engine)
    assert said(heard) == speculated[1] + speculated[2]
    assert [frame.by for frame in of(Tokens, heard)] == ["plugin"]
    assert [ask.at for ask in of(Ask, heard)][5:] == [[8], [9]], "two more"
    before = len(heard)
    engine.answer(reply, answer(5, delta=9.0))  # another token: all behind it is rolled back
    engine.answer(reply, answer(6))  # was on its way
    drain(engine)
    changed = heard[before]
    assert isinstance(changed, Tokens)
    assert changed.ids != speculated[3]
    asks = of(Ask, heard[before:])
    assert {ask.run for ask in asks} == {1}
    assert (asks[0].at, asks[0].start, asks[0].ids) == ([6], 5, changed.ids)
    assert (reply.counts.rolled_back, reply.counts.wasted) == (1, 4)
    with pytest.raises(ProtocolError, match="run 1"):
        engine.answer(reply, answer(7, run=1))


def test_a_full_batch_leaves_no_room_for_speculation(engine: Engine) -> None:
    _, heard = a_reply(engine, [5, 6, 7], "open", 8, window=4)
    others = [a_reply(engine, [i, 6, 7], tokens=30)[0] for i in range(16)]
    for _ in range(10):
        engine.step()
    assert len(of(Ask, heard)) == 1
    engine.drop(*others)


def test_a_late_answer_is_dropped_and_the_base_goes_on(engine: Engine) -> None:
    for window in (0, 3):
        _, want = a_reply(engine, [5, 6, 7], tokens=2)
        drain(engine)
        reply, heard = a_reply(engine, [5, 6, 7], "open", 2, window)
        drain(engine)
        engine.expire(reply, 0, 4)  # not the first that is open: somebody's clock is wrong
        engine.expire(reply, 0, 3)
        drain(engine)
        engine.answer(reply, answer(3, delta=9.0))  # late
        engine.answer(reply, answer(4))
        drain(engine)
        tokens = of(Tokens, heard)
        assert [frame.by for frame in tokens] == ["fallback", "plugin"]
        assert [frame.ids for frame in tokens] == [frame.ids for frame in of(Tokens, want)]
        assert kinds(heard)[-1] == "DONE"
        assert of(Done, heard)[0].counts["fallback"] == 1


def test_the_base_writes_for_the_tape_what_it_says(engine: Engine) -> None:
    _, want = a_reply(engine, [5, 6, 7], tokens=9)
    drain(engine)
    _, first = an_example(engine, [5, 6, 7], 7, score=False, greedy_tokens=9)
    _, second = an_example(engine, [9, 6, 7], 8, score=False, greedy_tokens=4)
    drain(engine)
    heard = of(Example, first + second)
    assert len(heard) == len(first) + len(second)
    assert sorted(frame.number for frame in heard) == [7, 8]
    (written,) = of(Example, first)
    ids = [token for token in written.ids.tolist() if token not in engine.tokenizer.stop_ids]
    assert ids == said(want)
    assert len(written.z) == len(written.ids) == len(written.codes)
    np.testing.assert_array_equal(written.top[:, 0], written.ids)


def test_a_long_prompt_is_prefilled_in_chunks_beside_others(engine: Engine) -> None:
    _, heard = a_reply(engine, [5, 6], tokens=12)
    engine.step()
    a_reply(engine, [9] * 60, tokens=1)
    before = len(heard)
    for _ in range(4):
        engine.step()
    assert len(heard) == before + 4, "a token a step, whoever is prefilled beside it"
    drain(engine)


def test_one_works_fault_ends_that_work_only(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from sideplug.cloud import engine as module

    good = module.choose

    def choose(logits: np.ndarray, sampling: Sampling, position: int, context: Any) -> int:
        if sampling.seed == 666:
            raise IndexError("a fault of ours")
        return good(logits, sampling, position, context)

    monkeypatch.setattr(module, "choose", choose)
    _, bad = a_reply(engine, [5, 6, 7], seed=666)
    _, fine = a_reply(engine, [5, 6, 7])
    drain(engine)
    assert kinds(bad) == ["ERROR"]
    assert of(Error, bad)[0].code == "internal"
    assert fine[-1].kind is Kind.DONE


def test_a_step_that_fails_ends_its_batch_and_the_engine_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(chunks: Any, layers: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(engine.model, "forward", fail)
        _, bad = a_reply(engine, [5, 6, 7])
        drain(engine)
        assert kinds(bad) == ["ERROR"]
    _, fine = a_reply(engine, [5, 6, 7])
    drain(engine)
    assert fine[-1].kind is Kind.DONE


def test_a_reading_is_the_same_in_one_chunk_and_in_many(parts: tuple[Model, Tokenizer]) -> None:
    got: list[Example] = []
    for budget in (Budget(512), Budget(7)):
        engine = Engine(*parts, budget)
        _, heard = a_reading(engine, 3 + 2 * HEAD_ROWS + 5)
        drain(engine)
        assert kinds(heard) == ["EXAMPLE"]
        got += of(Example, heard)
    np.testing.assert_array_equal(got[0].ids, got[1].ids)
    np.testing.assert_allclose(got[0].lse, got[1].lse, atol=1e-4)
    np.testing.assert_allclose(got[0].z.astype(np.float32), got[1].z.astype(np.float32), atol=5e-3)
    assert len(got[0].ids) == 2 * HEAD_ROWS + 5


def test_a_score_shares_its_steps_and_comes_once(engine: Engine) -> None:
    reading, heard = a_reading(engine, 3 + 2 * HEAD_ROWS + 5, score=True)
    count = 2 * HEAD_ROWS + 5
    frame = Score(7, np.zeros((count, 64), np.int8), np.zeros(count, np.float32))
    with pytest.raises(ProtocolError, match="read before"):
        engine.score(reading, frame)
    drain(engine)
    engine.score(reading, frame)
    with pytest.raises(ProtocolError, match="scored once"):
        engine.score(reading, frame)
    _, other = a_reply(engine, [5, 6, 7])
    engine.step()
    engine.step()
    assert kinds(other) == ["TOKENS"]
    assert kinds(heard) == ["EXAMPLE"]
    drain(engine)
    assert kinds(heard) == ["EXAMPLE", "SCORED"]
    (scored,) = of(Scored, heard)
    np.testing.assert_allclose(scored.base, scored.plugin, atol=1e-5)


def test_what_is_dropped_leaves_nothing(engine: Engine) -> None:
    reply, _ = a_reply(engine, [5, 6, 7], "open")
    reading, _ = a_reading(engine, 20, score=True)
    drain(engine)
    engine.score(reading, Score(7, np.zeros((17, 64), np.int8), np.zeros(17, np.float32)))
    engine.answer(reply, answer(3))
    engine.drop(reply, reading)
    assert not engine._works
    assert not engine.reader.scoring_users
    drain(engine)
    assert not engine._answered
    assert not engine._rows
