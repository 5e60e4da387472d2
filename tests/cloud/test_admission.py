"""No user shuts another out: of the memory, of the queue, or of the prefix cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sideplug.cloud import engine as engines
from sideplug.cloud.engines import EngineOptions, open_model
from sideplug.cloud.model.base import Model
from sideplug.cloud.model.memory import KVMemory
from sideplug.cloud.prefix_cache import MAX_TEXTS, PrefixCache, Text
from sideplug.cloud.reading import ExampleWork
from sideplug.cloud.reply import SessionSpec
from sideplug.cloud.store import find
from sideplug.cloud.tokenizer import Tokenizer
from sideplug.contract.capabilities import CONTEXT, ContextSettings
from sideplug.contract.errors import Busy
from sideplug.contract.frames import Error, Frame
from sideplug.contract.gate import Gate
from sideplug.contract.tap import ContextSlice
from tests.cloud.test_prefix_cache import TAP, Heard, an_engine, some

OPEN = SessionSpec(TAP, (Gate("open"),))
TOKENS = 300


@pytest.fixture
def small(tiny: Path) -> tuple[Model, Tokenizer]:
    """Memory for 300 tokens."""
    token = 2 * 2 * 2 * 16 * 4
    return open_model(find(str(tiny)), EngineOptions("onnx", "16", kv_bytes=TOKENS * token)).model, Tokenizer(tiny)


def code_of(heard: Heard) -> str:
    """The code of the error that a reply ended with; "" for none."""
    return next((frame.code for frame in heard.frames if isinstance(frame, Error)), "")


def test_unanswered_asks_of_one_user_let_another_in(small: tuple[Model, Tokenizer]) -> None:
    engine = an_engine(small)
    silent = [Heard(engine, some(20, n), tokens=30, user="silent", spec=OPEN) for n in range(6)]
    engine.step()
    assert engine.admission.shares.held("silent") <= TOKENS // 2
    assert (engine.working, engine.waiting) == (3, 3)
    other = Heard(engine, some(20, 9), tokens=30, user="other").run()
    assert len(other.ids) == 30
    assert not any(map(code_of, silent)), "there was room for both"


def test_one_that_has_all_the_memory_and_is_away_gives_it_back(
    small: tuple[Model, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = an_engine(small)
    silent = Heard(engine, some(20), tokens=200, user="silent", spec=OPEN)
    engine.step()
    other = Heard(engine, some(60, 9), tokens=40, user="other").run()
    engine.tick()
    assert (code_of(silent), engine.waiting) == ("", 1), "it is not away for long yet"
    monkeypatch.setattr(engines, "STALLED_S", -1.0)
    engine.tick()
    assert code_of(silent) == "cloud", "its device may connect again and go on"
    assert len(other.run().ids) == 40


def test_nobody_else_waits_so_nobody_is_ended(small: tuple[Model, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "STALLED_S", -1.0)
    engine = an_engine(small)
    replies = [Heard(engine, some(20, n), tokens=120, user="ada", spec=OPEN) for n in range(3)]
    engine.step()
    engine.tick()
    assert engine.waiting == 2, "it has its share"
    assert not any(map(code_of, replies))


def test_a_full_queue_drops_the_newest_of_who_has_most(small: tuple[Model, Tokenizer]) -> None:
    engine = an_engine(small, queue=4)
    first = Heard(engine, some(30), tokens=200, user="hog", spec=OPEN)
    engine.step()
    waiting = [Heard(engine, some(30, n), tokens=100, user="hog") for n in range(4)]
    with pytest.raises(Busy):
        Heard(engine, some(30, 8), tokens=100, user="hog")
    Heard(engine, some(30, 9), tokens=100, user="other")
    assert [code_of(each) for each in waiting] == ["", "", "", "busy"]
    assert (engine.waiting, code_of(first)) == (4, "")


def test_context_rows_count_as_memory(small: tuple[Model, Tokenizer]) -> None:
    from sideplug.cloud.context_rows import ContextRows

    engine = an_engine(small)
    settings = {CONTEXT.name: ContextSettings([0, 1, 2], 16)}
    spec = SessionSpec(TAP, (Gate("open"),), "add", ContextSlice(TAP, (0, 1, 2), 16), settings)
    plain = Heard(engine, some(20), tokens=30, user="plain", spec=OPEN)
    rows = Heard(engine, some(20), tokens=30, user="rows", spec=spec, rows=ContextRows(spec.context, 0))  # type: ignore[arg-type]
    engine.step()
    held = engine.admission.shares
    assert held.held("plain") == 50
    assert held.held("rows") > 50 + 50 * (TAP.bytes_per_token // 1024)
    engine.drop(plain.reply, rows.reply)
    assert (held.total, engine.model.memory.reserved_bytes) == (0, 0)


def an_example(engine: Any, number: int, user: str) -> ExampleWork:
    frames: list[Frame] = []
    return ExampleWork(
        ids=some(40, number),
        send=frames.append,
        user=user,
        number=number,
        spec=OPEN,
        width=64,
        prompt_tokens=10,
        score=True,
    )


def test_examples_that_nobody_takes_are_counted(
    small: tuple[Model, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = an_engine(small)
    monkeypatch.setattr("sideplug.cloud.admission.EXAMPLES_BYTES", 30_000)
    examples = [an_example(engine, number, "ada") for number in range(4)]
    assert 10_000 < examples[0].held_bytes < 30_000
    for example in examples:
        engine.add(example)
    while engine.step():
        pass
    assert engine.waiting == 3, "the first is read, and is not scored yet: what is kept of it holds the others back"
    assert engine.admission.shares.held("ada") > 0
    examples.clear()
    engine.step()
    assert engine.waiting == 2, "the first one is gone"


def test_nobodys_cached_texts_are_driven_out_by_anothers_many() -> None:
    cache = PrefixCache(KVMemory(1000 * 10, 10), 60)
    cache.put(Text("modest", list(range(100)), 100), "kept")
    for at in range(50):
        cache.put(Text("greedy", [at] * 100, 100), at)
    assert cache.best(Text("modest", list(range(100)), 100))[1] == 98
    assert (cache.shares.held("modest"), cache.shares.held("greedy")) == (100, 900)
    cache.put(Text("third", [7] * 950, 950), "too much")
    assert cache.shares.held("modest") == 100
    assert cache.shares.held("third") == 0


def test_a_scope_has_so_many_texts() -> None:
    cache = PrefixCache(KVMemory(1 << 20, 1), 60)
    for at in range(MAX_TEXTS + 20):
        cache.put(Text("ada", [at] * 20, 20), at)
    assert len(cache) == MAX_TEXTS
