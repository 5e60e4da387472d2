"""How a text reads, counted: what it repeats of itself, what it copies, how varied it is; and its losses by position.

A gram is a run of words and marks, in small letters. A lower loss by loops or by heart is no gain.
Test: pytest tests/bench/test_texts.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable

REPEATED, COPIED = 3, 6  # words of a gram that is repeated, and of one that is copied
POSITIONS = (0, 10, 40, 80)  # tokens of a reply at which another stretch begins
Gram = tuple[str, ...]


def grams(text: str, size: int) -> list[Gram]:
    """Return the runs of so many words of a text, in order."""
    words = re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", text.lower())
    return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]


def repeated(text: str) -> list[float]:
    """Return [grams that stood before in this text, grams]."""
    found = grams(text, REPEATED)
    return [len(found) - len(set(found)), len(found)]


def copied(text: str, known: set[Gram]) -> list[float]:
    """Return [grams that stand in the training text, grams]; known: the grams of COPIED words of that text."""
    found = grams(text, COPIED)
    return [sum(gram in known for gram in found), len(found)]


def distinct(texts: Iterable[str]) -> list[float]:
    """Return [different grams, grams] over texts: distinct-3, which more or longer texts make smaller."""
    found = [gram for text in texts for gram in grams(text, REPEATED)]
    return [len(set(found)), len(found)]


def totals(losses: list[list[float]]) -> list[list[float]]:
    """Return [nats, tokens] of each reply, of the nats of its tokens."""
    return [[sum(nats), len(nats)] for nats in losses]


def by_position(losses: list[list[float]]) -> list[list[list[float]]]:
    """Return for each stretch between POSITIONS the [nats, tokens] that each reply has in it."""
    ends = (*POSITIONS[1:], None)
    return [totals([nats[start:end] for nats in losses]) for start, end in zip(POSITIONS, ends, strict=True)]


def known_grams(texts: Iterable[str]) -> set[Gram]:
    """Return the grams that a text can have copied from these."""
    return {gram for text in texts for gram in grams(text, COPIED)}
