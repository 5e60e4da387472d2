"""The memory's dial: what each certainty answers of a set of questions, and how much of it is right.

Test: pytest tests/memory/test_curve.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sideplug.memory.part import Memory
from sideplug.memory.words import words
from sideplug.picture import drawn

CERTAINTIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Point:
    """What is answered where the memory speaks above a certainty: the shares of all questions, right and wrong."""

    certain: float
    right: float
    wrong: float


@dataclass(frozen=True)
class Wrong:
    """What would be said to a question, and is not right. is_said: as the memory is set."""

    question: str
    text: str
    entry: int
    certainty: float
    is_said: bool


def holds(text: str, answer: str) -> bool:
    """Return whether a reply holds the words of an answer, in their order, one behind the other."""
    squeezed = (" ".join(words(each)) for each in (text, answer))
    said, wanted = (f" {re.sub(r'  +', ' ', each)} " for each in squeezed)
    return wanted in said


def curve(
    memory: Memory, asked: Sequence[tuple[str, str]], progress: Callable[[int], None] = lambda done: None
) -> tuple[list[Point], Point, list[Wrong]]:
    """Return a point for each certainty, the one at which the memory speaks, and each question that counts as wrong at
    one of these, the most certain first.

    asked: questions, each with the words that a right reply holds; one that the memory was never told is answered
    wrongly if at all. progress receives how many were asked.
    """
    found: list[tuple[float, bool, bool]] = []  # certainty, right, said as the memory is set
    wrong = list[Wrong]()
    for number, (question, answer) in enumerate(asked, 1):
        recall = memory.recall(question)
        if recall is not None:
            said = memory.says(question, recall)
            right = bool(answer) and holds(recall.text, answer)
            found.append((recall.certainty, right, said))
            if not right and (said or recall.certainty > CERTAINTIES[0]):
                wrong.append(Wrong(question, recall.text, recall.entry.number, recall.certainty, said))
        progress(number)

    def share(some: list[bool]) -> float:
        return sum(some) / max(len(asked), 1)

    points = []
    for certain in CERTAINTIES:
        spoken = [right for p, right, _ in found if p > certain]
        points.append(Point(certain, share(spoken), share([not right for right in spoken])))
    spoken = [right for _, right, said in found if said]
    certain = memory.certain(asked[0][0]) if asked else 0.0
    default = Point(certain, share(spoken), share([not right for right in spoken]))
    return points, default, sorted(wrong, key=lambda each: -each.certainty)


def to_json(rows: Sequence[Point] | Sequence[Wrong]) -> list[dict[str, Any]]:
    """Return points, or what is wrong, as plain values."""
    return [
        {name: round(value, 5) if isinstance(value, float) else value for name, value in asdict(row).items()}
        for row in rows
    ]


def draw(points: Sequence[Point], default: Point, title: str, path: Path) -> None:
    """Draw the curve to the file `path`. Raises Stopped."""
    wrong, right = ([100 * getattr(each, name) for each in points] for name in ("wrong", "right"))
    with drawn(path, title, "answered wrongly, %", "answered rightly, %") as axes:
        axes.plot(wrong, right, "o-", color="#1a6faf", label="a certainty each")
        for point in points:
            at = 100 * point.wrong, 100 * point.right
            axes.annotate(f"{point.certain:g}", at, (5, -10), textcoords="offset points")
        axes.plot(100 * default.wrong, 100 * default.right, "*", markersize=14, color="#c8421b", label="as it is set")
