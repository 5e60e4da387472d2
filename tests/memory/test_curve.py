"""The memory's dial: what each certainty answers, and the picture of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sideplug.memory import curve
from sideplug.memory.curve import Point, Wrong, holds
from sideplug.memory.part import Memory, Recall
from sideplug.memory.settings import Settings
from sideplug.memory.store import Entry

ASKED = [("key?", "behind the clock"), ("dog?", "Bolt"), ("cat?", "Mia"), ("weather?", "")]


def a_memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """It finds "Behind the clock." for everything, with these certainties."""
    memory = Memory()
    memory.store.add([Entry("Where is the key?", "Behind the clock.")])
    passage, entry = memory.store.passages([1])[0], memory.store.entry(1)
    certainties = {"key?": 0.97, "dog?": 0.83, "weather?": 0.55}

    def recall(question: str) -> Recall | None:
        return Recall(passage, 0, certainties[question], entry) if question in certainties else None

    monkeypatch.setattr(memory, "recall", recall)
    return memory


def test_a_point_for_each_certainty(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, asked = a_memory(monkeypatch), list[int]()
    points, default, wrong = curve.curve(memory, ASKED, asked.append)
    found = {point.certain: (point.right, point.wrong) for point in points}
    assert found[0.5] == (0.25, 0.5)
    assert found[0.6] == found[0.8] == (0.25, 0.25)
    assert found[0.85] == found[0.95] == (0.25, 0)
    assert found[0.99] == (0, 0)
    assert default == Point(0.8, 0.25, 0.25)  # by words alone
    assert asked == [1, 2, 3, 4]
    said = "Behind the clock."
    assert wrong == [Wrong("dog?", said, 1, 0.83, True), Wrong("weather?", said, 1, 0.55, False)]


def test_the_default_is_what_the_memory_is_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = a_memory(monkeypatch)
    memory.behave(Settings(certain=0.9))
    assert curve.curve(memory, ASKED)[1] == Point(0.9, 0.25, 0)


def test_nothing_asked_is_nothing_answered() -> None:
    points, default, wrong = curve.curve(Memory(), [])
    assert wrong == []
    assert {(point.right, point.wrong) for point in [*points, default]} == {(0, 0)}


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("Behind the clock, on the left.", "the clock", True),
        ("BEHIND THE CLOCK", "behind the Clock!", True),
        ("Behind the clocks", "the clock", False),
        ("It is 1,450.50", "1,450.50", True),
        ("the left clock", "clock left", False),
    ],
)
def test_what_holds_an_answer(text: str, answer: str, expected: bool) -> None:
    assert holds(text, answer) is expected


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curve.draw([Point(0.5, 0.6, 0.1), Point(0.9, 0.4, 0)], Point(0.85, 0.45, 0), "mara", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
