"""Which examples are alike: equal texts, and near-equal ones (a comma, a typo, another case).

Copies must stand on one side of the split, or the held-out figure says how well a plugin copies. Two texts are near
copies where three quarters of their pieces (three characters of a short text, four words of a long one) are the same.
It does not know facts: two wordings of one question are no copies. Test: pytest tests/training/test_alike.py
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

from sideplug.readers import Example

NEAR = 0.75  # of two texts' pieces, that are in both
LONG_TEXT = 400  # characters, from which on pieces are words
COMMON = 24  # texts, from which on a piece says nothing


def words(text: str) -> list[str]:
    """The words of a text, in lower case, without apostrophes and accents' forms: "Dog's" is "dogs"."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold().replace("'", "").replace("’", ""))


def question_of(example: Example) -> str:
    """The last message of an example's prompt, or the text that it continues."""
    messages = example.prompt.messages
    return (messages[-1]["content"] if messages else example.prompt.text or "").strip()


def copies(examples: Sequence[Example]) -> list[int]:
    """The group of each example, numbered by its first one: all that are copies of each other are in one group.

    Where near copies would put most of the examples into one group (forms, filled in), only equal ones are grouped.
    """
    texts = [_normal(example) for example in examples]
    equal = _numbered(texts)
    near = _near(texts, equal)
    distinct = set(equal)
    largest = max(Counter(near[number] for number in distinct).values(), default=0)
    return equal if largest > max(2, len(distinct) // 2) else near


def _normal(example: Example) -> tuple[str, str]:
    """(prompt, reply), as their words alone."""
    messages = example.prompt.messages
    prompt = " | ".join(message["content"] for message in messages) if messages else example.prompt.text or ""
    return " ".join(words(prompt)), " ".join(words(example.reply)) or example.reply


def _numbered(values: Iterable[Hashable]) -> list[int]:
    first: dict[Hashable, int] = {}
    return [first.setdefault(value, number) for number, value in enumerate(values)]


def _near(texts: list[tuple[str, str]], equal: list[int]) -> list[int]:
    """The groups after near copies are joined: prompt and reply must both be nearly the same."""
    union = Union(len(texts))
    holders: dict[int, list[int]] = defaultdict(list)
    pieces: dict[int, tuple[set[int], set[int]]] = {}
    for number in sorted(set(equal)):
        prompt, reply = pieces[number] = _pieces(texts[number][0]), _pieces(texts[number][1])
        found: set[int] = set()
        for piece in reply if len(reply) > len(prompt) else prompt:
            if len(holders[piece]) < COMMON:
                found.update(holders[piece])
                holders[piece].append(number)
        for other in found:
            if all(_alike(mine, theirs) for mine, theirs in zip(pieces[number], pieces[other], strict=True)):
                union.join(number, other)
    return [union.of(number) for number in equal]


def _alike(one: set[int], other: set[int]) -> bool:
    common = len(one & other)
    return common >= NEAR * (len(one) + len(other) - common)


def _pieces(text: str) -> set[int]:
    parts: list[str] = text.split() if len(text) > LONG_TEXT else list(text)
    size, glue = (4, " ") if len(text) > LONG_TEXT else (3, "")
    runs = (glue.join(parts[i : i + size]) for i in range(max(1, len(parts) - size + 1)))
    return {zlib.crc32(run.encode()) for run in runs}  # Python's own hash is another one in each process


class Union:
    """Numbers that are joined into groups (union-find); a group is named by its least number."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))

    def of(self, number: int) -> int:
        """The group of a number."""
        while self._above[number] != number:
            self._above[number] = self._above[self._above[number]]
            number = self._above[number]
        return number

    def join(self, one: int, other: int) -> None:
        """Make one group of two numbers' groups."""
        low, high = sorted((self.of(one), self.of(other)))
        self._above[high] = low
