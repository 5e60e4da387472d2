"""What is kept of texts, whose, for how long, and that a text is the same with it as without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sideplug.cloud.admission import AdmissionLimits
from sideplug.cloud.engine import Engine
from sideplug.cloud.engines import EngineOptions, open_model
from sideplug.cloud.model.base import Model
from sideplug.cloud.model.memory import KVMemory
from sideplug.cloud.prefix_cache import PrefixCache, Text, common_length
from sideplug.cloud.reply import Reply, SessionSpec
from sideplug.cloud.scheduler import Budget
from sideplug.cloud.store import find
from sideplug.cloud.tokenizer import TextStream, Tokenizer
from sideplug.contract.errors import Busy, TooLong
from sideplug.contract.frames import Ask, Begun, Done, Error, Frame, Kind, Tokens
from sideplug.contract.gate import Gate
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from tests.conftest import UNQUANTISED

TAP = Tap((0, 1, 2), 16)
short = st.lists(st.integers(0, 2), max_size=12)


@given(short, short)
def test_common(a: list[int], b: list[int]) -> None:
    naive = 0
    while naive < min(len(a), len(b)) and a[naive] == b[naive]:
        naive += 1
    assert common_length(np.array(a), np.array(b)) == naive


# ── what may be taken over ────────────────────────────────────────────────────────────────────────────────────────────

CONVERSATION: Any = list(range(40))


def test_a_prompt_takes_over_what_was_run_as_a_prompt() -> None:
    first = Text("anna", CONVERSATION, 30)
    assert first.shared(Text("anna", [*range(40), 90, 91], 42)) == 30  # a reply's tokens were run one by one
    assert first.shared(Text("anna", [*range(20), 90, 91, 92], 23)) == 20
    assert first.shared(Text("anna", list(range(20)), 20)) == 18  # two are left: a chunk is never of one
    assert first.shared(Text("anna", [90], 1)) == 0


def test_a_reply_goes_on_from_its_own_tokens_only() -> None:
    scores = dict.fromkeys(range(30, 41), (0.1,))
    first = Text("anna", CONVERSATION, 30, b"gate", scores)
    assert first.shared(Text("anna", [*range(40), 90], 30, b"gate")) == 40
    assert first.shared(Text("anna", list(range(36)), 30, b"gate")) == 35  # one is left, for what follows it
    assert first.shared(Text("anna", [*range(35), 90], 30, b"gate")) == 35
    assert first.shared(Text("anna", list(range(36)), 30, b"another")) == 28  # whose scores these are not
    assert first.shared(Text("anna", list(range(36)), 29, b"gate")) == 27  # the reply began elsewhere


def test_nothing_is_shared_between_scopes_but_what_is_declared() -> None:
    assert Text("anna", CONVERSATION, 30).shared(Text("bo", CONVERSATION, 40)) == 0
    assert Text(None, CONVERSATION, 40).shared(Text("bo", [*CONVERSATION, 5, 6], 42)) == 40


def test_it_is_let_go_the_least_lately_used_first() -> None:
    kept = PrefixCache(KVMemory(100 * 10, 10), 60)
    for at in range(4):
        kept.put(Text("", [at] * 30, 30), at)
    assert (len(kept), kept.evicted) == (3, 1)
    entry, length = kept.best(Text("", [1] * 20, 20))
    assert entry is not None
    assert (entry.states, length) == (1, 18)
    kept.use(entry, Text("", [1] * 20, 20))
    kept.put(Text("", [5] * 30, 30), 5)
    assert kept.best(Text("", [2] * 20, 20)) == (None, 0)
    assert kept.best(Text("", [1] * 20, 20))[1] == 18
    kept.put(Text("", [9] * 200, 200), 9)  # more than there is: nothing is kept of it
    assert len(kept) == 0


def test_a_newer_state_of_a_text_takes_the_olders_place() -> None:
    kept = PrefixCache(KVMemory(1000 * 10, 10), 60)
    kept.put(Text("", CONVERSATION[:30], 25), 1)
    kept.put(Text("", CONVERSATION, 35), 2)
    assert len(kept) == 1
    kept.put(Text("", [*CONVERSATION[:30], 90], 30), 3)  # asked otherwise
    assert len(kept) == 2
    kept.put(Text("bo", CONVERSATION, 35), 4)
    assert len(kept) == 3


def test_it_is_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = KVMemory(1000 * 10, 10)
    kept, now = PrefixCache(memory, 60), 100.0
    monkeypatch.setattr("sideplug.cloud.prefix_cache.time.monotonic", lambda: now)
    kept.put(Text("", CONVERSATION, 40), 1)
    kept.declare(Text(None, CONVERSATION, 40), 2)
    now += 59
    kept.expire()
    assert len(kept) == 2
    now += 2
    kept.expire()
    assert (len(kept), memory.reserved_bytes) == (1, 400)
    forgetful = PrefixCache(memory, 0)
    forgetful.put(Text("", CONVERSATION, 40), 1)
    assert len(forgetful) == 0


# ── in the engine ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def parts(tiny: Path) -> tuple[Model, Tokenizer]:
    return open_model(find(str(tiny)), UNQUANTISED).model, Tokenizer(tiny)


class Heard:
    """A reply in an engine, and what it said."""

    def __init__(self, engine: Engine, ids: list[int], tokens: int = 12, user: str = "", **more: Any) -> None:
        self.frames: list[Frame] = []
        self.reply = Reply(
            ids=list(ids),
            send=self.frames.append,
            turn=1,
            spec=more.pop("spec", SessionSpec(TAP, (Gate("shut"),))),
            text=TextStream(engine.tokenizer),
            sampling=more.pop("sampling", Sampling()),
            max_tokens=tokens,
            context=256,
            stop_ids=(),
            user=user,
            scope=user,
            **more,
        )
        self.engine = engine
        engine.add(self.reply)

    def run(self, steps: int = 10_000) -> Heard:
        while steps and self.engine.step():
            steps -= 1
        return self

    @property
    def ids(self) -> list[int]:
        return [token for frame in self.frames if isinstance(frame, Tokens) for token in frame.ids]

    @property
    def asked_at(self) -> int:
        """The position of the ASK that it waits for."""
        ask = self.frames[-1]
        assert isinstance(ask, Ask)
        return ask.at[0]

    @property
    def begun(self) -> Begun:
        (begun,) = (frame for frame in self.frames if isinstance(frame, Begun))
        return begun


def an_engine(parts: tuple[Model, Tokenizer], **limits: Any) -> Engine:
    return Engine(*parts, Budget(64, 8), AdmissionLimits(**limits))


def some(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(2, 300, count).tolist()


def test_the_next_turn_runs_only_what_is_new(parts: tuple[Model, Tokenizer]) -> None:
    engine, forgetful = an_engine(parts), an_engine(parts, keep_s=0)
    first = Heard(engine, some(60)).run()
    assert (first.begun.prompt, first.begun.cached) == (60, 0)
    assert first.begun.hash == running_hash(some(60))
    next_turn = [*some(60), *first.ids, *some(10, 1)]
    before = engine.counters.tokens["prompt"]
    second = Heard(engine, next_turn).run()
    assert second.begun.cached == 60
    assert engine.counters.tokens["prompt"] - before == len(next_turn) - 60
    assert second.ids == Heard(forgetful, next_turn).run().ids
    assert len(engine.prefix_cache) == 1  # the conversation, as it is now


def test_a_beginning_that_many_share_is_run_once(parts: tuple[Model, Tokenizer]) -> None:
    """All come at once: the first runs it, the others wait for it and copy; each text is what it is alone."""
    engine = an_engine(parts)
    system = some(100)
    prompts = [[*system, *some(5 + n, n + 1)] for n in range(6)]
    replies = [Heard(engine, prompt, user="anna") for prompt in prompts]
    replies[0].run()
    assert [reply.begun.cached for reply in replies] == [0] + [100] * 5
    assert engine.counters.tokens["prompt"] == 100 + sum(len(prompt) - 100 for prompt in prompts)
    for prompt, reply in zip(prompts, replies, strict=True):
        assert reply.ids == Heard(an_engine(parts, keep_s=0), prompt).run().ids


def test_another_keys_text_is_run_anew(parts: tuple[Model, Tokenizer]) -> None:
    engine = an_engine(parts)
    Heard(engine, some(60), user="anna").run()
    assert Heard(engine, some(60), user="bo").run().begun.cached == 0
    assert Heard(engine, some(60), user="bo").run().begun.cached == 58
    engine.declare(some(50, 3))
    assert Heard(engine, [*some(50, 3), 9, 8, 7], user="cy").run().begun.cached == 50


def test_who_leaves_before_the_others_copied_leaves_nobody_waiting(parts: tuple[Model, Tokenizer]) -> None:
    engine = an_engine(parts)
    first, second = Heard(engine, some(200)), Heard(engine, some(200))
    engine.step()
    assert (engine.working, engine.waiting) == (1, 1)
    engine.drop(first.reply)
    second.run()
    assert second.begun.cached == 0
    assert len(second.ids) == 12


LINEAR = Gate("linear", np.random.default_rng(0).normal(0, 0.1, 64).astype(np.float32), 0.0, threshold=0.0, memory=0.5)


@pytest.mark.parametrize("keep_s", [600.0, 0.0])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.5, seed=3)])
def test_a_reply_that_was_cut_off_goes_on(parts: tuple[Model, Tokenizer], keep_s: float, sampling: Sampling) -> None:
    """At every position, with what was kept of it or with nothing, and the gate opens where it would have."""
    spec = SessionSpec(TAP, (LINEAR,))

    def until_ask(engine: Engine, **more: Any) -> tuple[list[int], list[int]]:
        """The ids of a reply and where the device was asked; nobody answers, so the base's token is used."""
        heard = Heard(engine, some(40), sampling=sampling, spec=spec, **more)
        asked = []
        while heard.frames[-1:] == [] or heard.frames[-1].kind is not Kind.DONE:
            if not engine.step():
                at = heard.asked_at
                asked.append(at)
                engine.expire(heard.reply, 0, at)
        return heard.ids, asked

    whole, asked = until_ask(an_engine(parts))
    assert 0 < len(asked) < len(whole) == 12
    for cut in range(1, 12):
        engine = an_engine(parts, keep_s=keep_s)
        broken = Heard(engine, some(40), sampling=sampling, spec=spec)
        while len(broken.ids) < cut:
            if not engine.step():
                engine.expire(broken.reply, 0, broken.asked_at)
        engine.leave(broken.reply)
        rest, asked_then = until_ask(engine, done=whole[:cut])
        assert whole[:cut] + rest == whole
        assert asked_then == [at for at in asked if at >= 40 + cut]


def test_what_was_told_but_for_its_end_is_not_run_again(parts: tuple[Model, Tokenizer]) -> None:
    whole = Heard(an_engine(parts), some(40)).run().ids
    engine = an_engine(parts)
    again = Heard(engine, some(40), done=whole)
    assert [frame.kind.name for frame in again.frames] == ["BEGUN", "DONE"]
    done = again.frames[-1]
    assert isinstance(done, Done)
    assert (done.why, done.reply, engine.counters.steps) == ("length", 12, 0)


# ── the door ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def narrow(tiny: Path) -> tuple[Model, Tokenizer]:
    """Memory for 100 tokens."""
    token = 2 * 2 * 2 * 16 * 4
    return open_model(find(str(tiny)), EngineOptions("onnx", "16", kv_bytes=100 * token)).model, Tokenizer(tiny)


def test_who_finds_no_room_waits(narrow: tuple[Model, Tokenizer]) -> None:
    engine = an_engine(narrow)
    replies = [Heard(engine, some(30, n), tokens=10, user=f"{n}") for n in range(5)]
    engine.step()
    assert (engine.working, engine.waiting) == (2, 3)
    replies[0].run()
    assert all(len(reply.ids) == 10 for reply in replies)
    assert engine.model.memory.reserved_bytes <= engine.model.memory.limit_bytes


def test_what_never_fits_is_said_at_once(narrow: tuple[Model, Tokenizer]) -> None:
    engine = an_engine(narrow)
    with pytest.raises(TooLong, match=r"may come to 110 tokens .* memory holds 100: ask for fewer"):
        Heard(engine, some(100), tokens=10)


def test_the_queue_has_an_end_and_waiting_too(narrow: tuple[Model, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = an_engine(narrow, queue=2, queue_s=5)
    first = Heard(engine, some(80), tokens=10, spec=SessionSpec(TAP, (Gate("open"),)))
    engine.step()
    waiting = [Heard(engine, some(80, n), tokens=10) for n in (1, 2)]
    with pytest.raises(Busy, match="2 texts wait for the cloud already: try later") as caught:
        Heard(engine, some(80, 3), tokens=10)
    assert caught.value.retry_s == 5.0
    engine.tick()
    assert engine.waiting == 2
    for heard in waiting:
        heard.reply.since_s -= 6
    engine.tick()
    assert engine.waiting == 0
    errors = [heard.frames[-1] for heard in waiting]
    assert [error.code for error in errors if isinstance(error, Error)] == ["busy", "busy"]
    engine.leave(first.reply)
    assert len(Heard(engine, some(80, 4), tokens=10).run().ids) == 10  # what was kept makes room


def test_those_with_least_in_work_come_first(narrow: tuple[Model, Tokenizer]) -> None:
    engine = an_engine(narrow)
    greedy = [Heard(engine, some(30, n), tokens=10, user="greedy") for n in range(5)]
    modest = Heard(engine, some(30, 9), tokens=10, user="modest")
    order: list[str] = []
    for n, heard in enumerate([*greedy, modest]):
        heard.reply.send = lambda frame, name=("modest" if n == 5 else str(n)): (  # type: ignore[misc]
            order.append(name) if frame.kind is Kind.BEGUN else None
        )
    modest.run()
    assert order.index("modest") == 1
