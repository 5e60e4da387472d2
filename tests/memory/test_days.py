"""Days in questions, and notes that are asked for by their day."""

from __future__ import annotations

import pytest

from sideplug.memory import days
from sideplug.memory.part import Memory
from sideplug.memory.store import Entry


@pytest.mark.parametrize(
    ("question", "day"),
    [
        ("what did I do on 3 March?", "-03-03"),
        ("What happened on the 3rd of March 2026", "2026-03-03"),
        ("my notes of March 3rd, 2026", "2026-03-03"),
        ("2026-04-09", "2026-04-09"),
        ("what was on Apr 9?", "-04-09"),
        ("9 may", "-05-09"),
        ("Who had lunch on 3 March?", ""),
        ("what did I do in March?", ""),
        ("may 9 people come?", ""),
        ("what did I do?", ""),
        ("", ""),
    ],
)
def test_a_question_for_a_day(question: str, day: str) -> None:
    assert days.asked_for(question) == day


def test_a_day_in_words() -> None:
    assert (days.in_words("2026-01-04"), days.in_words("")) == ("4 January 2026 2026-01-04", "")


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("what did I do on 3 March?", "Lunch with Petra. She wants the ladder back."),
        ("What happened on 2026-04-09?", "Lunch with Olu."),
        ("9 April 2026", "Lunch with Olu."),
    ],
)
def test_a_note_is_asked_for_by_its_day(question: str, text: str) -> None:
    memory = Memory()
    memory.store.add(
        [
            Entry("", "Lunch with Petra. She wants the ladder back.", date="2026-03-03"),
            Entry("", "Lunch with Olu.", date="2026-04-09"),
            Entry("", "The shed leaks."),
        ]
    )
    recall = memory.recall(question)
    assert recall is not None
    assert recall.text == text
    assert recall.certainty > memory.certain(question)
    other = memory.recall("what did I do on 5 March?")
    assert other is None or other.certainty < memory.certain("")


def test_a_day_is_forgotten_with_its_note() -> None:
    memory = Memory()
    (number,) = memory.store.add([Entry("", "Lunch with Petra.", date="2026-03-03")])
    memory.store.forget([number])
    assert memory.recall("what did I do on 3 March?") is None
    assert memory.store.frequency(["march", "2026"]) == {}


@pytest.mark.parametrize(
    ("day", "then", "numbers", "found"),
    [  # of an entry that is told again: which entries there are then, and what the second day finds
        ("", "2026-03-03", [1], ["Lunch with Petra."]),
        ("2026-03-03", "", [1], ["Lunch with Petra."]),
        ("2026-04-09", "2026-03-03", [1, 2], ["Lunch with Petra."]),
    ],
)
def test_the_same_words_about_a_day(day: str, then: str, numbers: list[int], found: list[str]) -> None:
    memory = Memory()
    for date in (day, then):
        memory.store.add([Entry("", "Lunch with Petra.", date=date)])
    assert [each.number for each in memory.store.entries()] == numbers
    recall = memory.recall("What happened on 3 March 2026?")
    assert ([recall.text] if recall and recall.certainty > 0.9 else []) == found
