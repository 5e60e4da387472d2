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


def holds(text: str, answer: str) -> bool:
    """Return whether a reply holds the words of an answer, in their order, one behind the other."""
    squeezed = (" ".join(words(each)) for each in (text, answer))
    said, wanted = (f" {re.sub(r'  +', ' ', each)} " for each in squeezed)
    return wanted in said


def curve(
    memory: Memory, asked: Sequence[tuple[str, str]], progress: Callable[[int], None] = lambda done: None
) -> tuple[list[Point], Point]:
    """Return a point for each certainty, and the one at which the memory speaks.

    asked: questions, each with the words that a right reply holds; one that the memory was never told is answered
    wrongly if at all. progress receives how many were asked.
    """
    found: list[tuple[float, bool, bool]] = []  # certainty, right, said as the memory is set
    for number, (question, answer) in enumerate(asked, 1):
        recall = memory.recall(question)
        if recall is not None:
            said = memory.says(question, recall)
            found.append((recall.certainty, bool(answer) and holds(recall.text, answer), said))
        progress(number)

    def share(some: list[bool]) -> float:
        return sum(some) / max(len(asked), 1)

    points = []
    for certain in CERTAINTIES:
        spoken = [right for p, right, _ in found if p > certain]
        points.append(Point(certain, share(spoken), share([not right for right in spoken])))
    spoken = [right for _, right, said in found if said]
    certain = memory.certain(asked[0][0]) if asked else 0.0
    return points, Point(certain, share(spoken), share([not right for right in spoken]))


def to_json(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return the points as plain values."""
    return [{name: round(value, 5) for name, value in asdict(point).items()} for point in points]


def draw(points: Sequence[Point], default: Point, title: str, path: Path) -> None:
    """Draw the curve to the file `path`. Raises Stopped."""
    wrong, right = ([100 * getattr(each, name) for each in points] for name in ("wrong", "right"))
    with drawn(path, title, "answered wrongly, %", "answered rightly, %") as axes:
        axes.plot(wrong, right, "o-", color="#1a6faf", label="a certainty each")
        for point in points:
            at = 100 * point.wrong, 100 * point.right
            axes.annotate(f"{point.certain:g}", at, (5, -10), textcoords="offset points")
        axes.plot(100 * default.wrong, 100 * default.right, "*", markersize=14, color="#c8421b", label="as it is set")
