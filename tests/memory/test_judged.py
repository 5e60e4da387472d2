"""What would be said to a question: entries of one reply count as one, and so do the sentences of a passage."""

from __future__ import annotations

import math

import pytest

from sideplug.memory.part import Memory
from sideplug.memory.store import Entry

NOTE = "Zsofia moved to Szeged. She has a green door."


class Scores:
    """A verifier that gives these probabilities to the parts of what is found, by their text."""

    def __init__(self, **p: float) -> None:
        self._p = p

    def scores(self, question: str, candidates: list) -> list[list[float]]:  # type: ignore[type-arg]
        rest = 1 - sum(self._p.values())
        return [
            [math.log(self._p[text.split()[0]] / rest) for text in candidate.passage.parts] for candidate in candidates
        ]


def judged(monkeypatch: pytest.MonkeyPatch, entries: list[Entry], **p: float) -> list[tuple[str, float, int]]:
    memory = Memory()
    memory.store.add(entries)
    monkeypatch.setattr(memory, "_by_words", Scores(**p))
    monkeypatch.setattr("sideplug.memory.part.BEHIND", 99)
    return [(each.text, round(each.certainty, 2), each.entry.number) for each in memory.judged("Zsofia door key?")]


def test_phrasings_of_one_reply_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told in several ways a thing is more certain, not less."""
    told = [Entry(f"{how} door key?", "Behind it.") for how in ("Which", "Whose", "What")]
    memory = Memory()
    memory.store.add([*told, Entry("Zsofia key?", "Hers.")])
    shares = iter([[math.log(3)], [math.log(2)], [math.log(2)], [math.log(2)]])
    monkeypatch.setattr(memory._by_words, "scores", lambda question, candidates: [next(shares) for _ in candidates])
    monkeypatch.setattr("sideplug.memory.part.BEHIND", 99)
    found = memory.judged("Zsofia door key?")
    assert [each.text for each in found] == ["Behind it.", "Hers."]
    assert sum(each.certainty for each in found) == pytest.approx(0.9)
    assert found[0].certainty >= 0.6


@pytest.mark.parametrize(
    ("p", "text", "certainty"),
    [
        ({"Zsofia": 0.8, "She": 0.1}, "Zsofia moved to Szeged.", 0.9),
        ({"Zsofia": 0.1, "She": 0.75}, "She has a green door.", 0.85),
        ({"Zsofia": 0.5, "She": 0.4}, "Zsofia moved to Szeged. She has a green door.", 0.9),
    ],
)
def test_a_note_is_as_certain_as_all_its_sentences(
    p: dict[str, float], text: str, certainty: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is not certain which one answers, it says the passage."""
    assert judged(monkeypatch, [Entry("", NOTE)], **p) == [(text, certainty, 1)]
