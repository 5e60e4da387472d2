"""What a memory does where it is not certain: its settings, what it then says, and that they last."""

from __future__ import annotations

import numpy as np
import pytest

from sideplug.contract.errors import InputError
from sideplug.contract.text import Prompt
from sideplug.memory import part as memory_part
from sideplug.memory import settings
from sideplug.memory.part import Memory, Recall, question_of
from sideplug.memory.settings import Settings
from sideplug.memory.store import Entry, Store

TOLD = Entry("Where is the spare key?", "Behind the clock.")
NOTE = Entry("", "Zsofia moved to Szeged. She has a green door.")
BASE = "b" * 64


def a_memory(**changes: object) -> Memory:
    """A memory with an entry and a note, of which the base has read all that it may say; a token is a character."""
    memory = Memory()
    memory.store.add([TOLD, NOTE])
    memory.behave(Settings(**changes))  # type: ignore[arg-type]
    read(memory)
    return memory


def read(memory: Memory) -> None:
    memory.meet(BASE)
    memory.take_read(BASE, {text: [ord(each) for each in text] for _, text in memory.unread(BASE)})
    assert memory.unread(BASE) == []


def certain(memory: Memory, monkeypatch: pytest.MonkeyPatch, p: float, entry: int = 1, personal: float = -9.0) -> None:
    """As if the verifier gave the first part of an entry this certainty."""
    passage = next(each for each in memory.store.passages([1, 2], BASE) if each.number == entry)
    found = Recall(passage, 0, p, memory.store.entry(entry))
    monkeypatch.setattr(memory, "judged", lambda question: [found])
    monkeypatch.setattr(memory, "personal", lambda question: personal)


def said(memory: Memory, *messages: str) -> str:
    """What it says to the last of these messages, the person's and the assistant's in turn; "" for nothing."""
    roles = ["user", "assistant"] * len(messages)
    prompt = Prompt(messages=tuple({"role": r, "content": m} for r, m in zip(roles, messages, strict=False)))
    reply = memory.begin(prompt)
    return "".join(chr(each) for each in reply.draft) if reply.gate == "open" else ""


@pytest.mark.parametrize(
    ("changes", "p", "personal", "expected"),
    [
        ({}, 0.9, 3, "Behind the clock."),
        ({}, 0.7, 3, ""),
        ({"certain": 0.6}, 0.7, -1, "Behind the clock."),
        ({"certain": 0.95}, 0.9, -1, ""),
        ({"doubt": "ask"}, 0.9, -1, "Behind the clock."),
        ({"doubt": "ask"}, 0.7, -1, "Did you mean: Where is the spare key?"),
        ({"doubt": "ask"}, 0.4, -1, ""),
        ({"unknown": "say"}, 0.4, 3, "You haven't told me that."),
        ({"unknown": "say"}, 0.4, 1.5, ""),
        ({"unknown": "say"}, 0.4, -1, ""),
        ({"unknown": "say", "doubt": "ask"}, 0.7, 3, "Did you mean: Where is the spare key?"),
    ],
)
def test_what_it_says(
    changes: dict[str, object], p: float, personal: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = a_memory(**changes)
    certain(memory, monkeypatch, p, personal=personal)
    assert said(memory, "the key?") == expected


@pytest.mark.parametrize(("p", "expected"), [(0.88, ""), (0.92, "Zsofia moved to Szeged.")])
def test_of_a_note_it_must_be_more_certain(p: float, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = a_memory(certain=0.75)
    monkeypatch.setattr(memory, "_reads", lambda question: True)
    certain(memory, monkeypatch, p, entry=2)
    assert said(memory, "Zsofia?") == expected


def test_it_asks_about_a_note_with_the_note(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = a_memory(doubt="ask")
    certain(memory, monkeypatch, 0.7, entry=2)
    assert said(memory, "Zsofia?") == "I am not sure, but you noted: Zsofia moved to Szeged."


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("yes", TOLD.question),
        ("Yes!", TOLD.question),
        ("yes, please", TOLD.question),
        ("Yes, that one.", TOLD.question),
        ("no", "no"),
        ("yes and no", "yes and no"),
        ("right?", "right?"),
    ],
)
def test_a_yes_stands_for_what_was_asked(answer: str, expected: str) -> None:
    memory = a_memory(doubt="ask")
    asked = f"{settings.MEANT}{TOLD.question}"
    messages = ({"role": "user", "content": "key"}, {"role": "assistant", "content": asked})
    assert question_of(Prompt(messages=(*messages, {"role": "user", "content": answer}))) == expected
    if expected == TOLD.question:
        assert said(memory, "key", asked, answer) == "Behind the clock."


MEANT, NEAR = f"{settings.MEANT}{TOLD.question}", f"{settings.NEAR}She has a green door."
WHOLE = f"{settings.NEAR}{NOTE.reply}"


@pytest.mark.parametrize(
    ("asked", "answer", "expected"),
    [
        *[(asked, no, "Then I was not told.") for asked in (MEANT, NEAR) for no in ("no", "No.", "no, thanks")],
        (MEANT, "No, I didn’t!", "Then I was not told."),
        (NEAR, "that's wrong", "Then I was not told."),
        (NEAR, "yes", "She has a green door."),
        (WHOLE, "Yes, please.", NOTE.reply),
        (f"{settings.NEAR}The mill burnt.", "yes", ""),  # it was forgotten since
        (MEANT, "no idea where it is", ""),
        (MEANT, "no?", ""),
        ("Shall I go on?", "no", ""),
    ],
)
def test_what_it_says_to_an_answer(asked: str, answer: str, expected: str) -> None:
    assert said(a_memory(doubt="ask"), "key", asked, answer) == expected


def test_a_no_is_left_to_the_base_where_it_asks_nothing() -> None:
    assert said(a_memory(unknown="say"), "key", MEANT, "no") == ""


def test_its_own_sentences_are_read_and_merged() -> None:
    memory, stored = a_memory(doubt="ask", unknown="say"), Memory()
    stored.store.add([TOLD, NOTE])
    stored.behave(memory.settings)
    assert [text for _, text in stored.unread(BASE)][-2:] == ["You haven't told me that.", "Then I was not told."]
    assert memory.merged_with(stored).unread(BASE) == []


def test_a_yes_to_something_else_is_a_yes() -> None:
    messages = ({"role": "assistant", "content": "Shall I go on?"}, {"role": "user", "content": "yes"})
    assert question_of(Prompt(messages=messages)) == "yes"


def test_settings_last_and_another_doubt_is_read_anew() -> None:
    memory = a_memory(certain=0.7, unknown="say")
    again = Memory(Store(memory.store.to_bytes()))
    assert again.settings == Settings(0.7, "base", "say")
    assert again.unread(BASE) == []
    again.behave(Settings(0.7, "ask", "say"))
    texts = [text for _, text in again.unread(BASE)]
    assert texts[:2] == ["Behind the clock.", "Did you mean: Where is the spare key?"]
    assert settings.UNTOLD not in texts
    assert settings.UNTOLD in [text for _, text in again.unread("c" * 64)]


def test_what_was_read_elsewhere_is_merged() -> None:
    memory = a_memory(unknown="say")
    stored = Memory()
    stored.store.add([TOLD, NOTE])
    stored.behave(Settings(unknown="say"))
    merged = memory.merged_with(stored)
    assert merged.unread(BASE) == []


def test_tokens_of_other_settings_are_not_merged() -> None:
    memory, stored = a_memory(), a_memory(doubt="ask")
    stored.store.forget_ids()
    assert memory.merged_with(stored).unread(BASE)


def test_a_doubt_that_was_not_read_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = a_memory()
    memory._settings = Settings(doubt="ask")
    certain(memory, monkeypatch, 0.7)
    assert said(memory, "key?") == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"certain": 0.1}, "a memory's certainty must be from 0.3 to 0.99, got 0.1"),
        ({"certain": float("nan")}, "got nan"),
        ({"doubt": "maybe"}, "doubt must be base or ask, got 'maybe'"),
        ({"unknown": "ask"}, "unknown must be base or say, got 'ask'"),
    ],
)
def test_settings_that_can_t_be(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Settings(**changes)  # type: ignore[arg-type]


def test_damaged_settings_are_the_shipped_ones() -> None:
    store = Store()
    for name, value in (("certain", "x"), ("doubt", "perhaps")):
        store.set_setting(name, value)
        assert Settings.of(store) == Settings()


@pytest.mark.parametrize(("p", "personal", "hushes"), [(0.4, 1.5, True), (0.4, 0.5, False), (0.9, 3, False)])
def test_what_silences_the_other_parts(
    p: float, personal: float, hushes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = a_memory()
    certain(memory, monkeypatch, p, personal=personal)
    assert memory.begin(Prompt.user("the key?")).hushes is hushes


def test_without_the_encoder_no_question_is_held_for_personal() -> None:
    assert a_memory().personal("What is my name?") == -np.inf


def test_personal_is_a_side_of_a_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"personal": np.array([1.0, -1.0, 0.5], np.float32)}
    verifier = memory_part.Verifier(None, weights)
    assert verifier.personal(np.array([2.0, 0.0], np.float32)) == 2.5
    assert verifier.personal(np.array([0.0, 1.0], np.float32)) == -0.5
