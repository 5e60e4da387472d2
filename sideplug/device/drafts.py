"""PromptLookup: what the person's own phrases expect to be said next, by n-gram lookup. No model.

The longest end of the reply so far (8 tokens at most) is looked for in the person's phrases and in the reply itself;
while most of the places where it stands go on alike, so does the draft. The cloud takes it as a guess and nothing
more: a wrong draft costs time, never text. Test: pytest tests/device/test_drafts.py
"""

from __future__ import annotations

import numpy as np

LONGEST = 8  # tokens of context that are matched at most
LEAST = 2  # … and at least (the start of a reply counts as one, and is enough)
ALIKE = 0.6  # share of the places that must go on with the same token
SHORTEST_DRAFT, LONGEST_DRAFT = 2, 24
BREAK = -1  # stands before each phrase and behind the last


class PromptLookup:
    """One reply's. `phrases`: int32 ids, BREAK between phrases; `hear` says how the text goes."""

    def __init__(self, phrases: np.ndarray) -> None:
        self._phrases = np.concatenate([[BREAK], phrases, [BREAK]]).astype(np.int32)
        self._start = -1  # of the reply: the position of its first token
        self._ids: list[int] = []
        self._length = SHORTEST_DRAFT * 4
        self._expected: dict[int, int] = {}

    def hear(self, at: int, ids: list[int]) -> None:
        """The text from position `at` on is `ids` now, as far as the cloud has guessed."""
        if self._start < 0:
            self._start = at
        self._ids[at - self._start :] = ids

    def settled(self, at: int, ids: list[int]) -> None:
        """These are final: drafts grow as they come true, and halve when they don't."""
        for position, token in enumerate(ids, at):
            expected = self._expected.pop(position, None)
            if expected == token:
                self._length = min(self._length + 1, LONGEST_DRAFT)
            elif expected is not None:
                self._length = max(self._length // 2, SHORTEST_DRAFT)
                self._expected = {}

    def draft(self, at: int) -> list[int]:
        """The tokens that are expected at position `at` and behind it."""
        said = [BREAK, *self._ids[: max(0, at - self._start)]]
        drafted = continuation(np.concatenate([self._phrases, said]).astype(np.int32), said, self._length)
        for position, token in enumerate(drafted, at):
            self._expected.setdefault(position, token)
        return drafted


def continuation(text: np.ndarray, said: list[int], most: int) -> list[int]:
    """How `text` goes on behind the longest end of `said` that stands in it: `most` tokens at most, perhaps none."""
    places = np.arange(1, len(text))  # of the token behind a match
    depth = 0
    for token in said[: -LONGEST - 1 : -1]:
        found = places[text[places - 1 - depth] == token]
        found = found[found > depth]
        if not len(found):
            break
        places, depth = found, depth + 1
        if token == BREAK:
            break
    drafted: list[int] = []
    if depth < LEAST and not (depth and said[-depth] == BREAK):
        return drafted
    while len(drafted) < most and len(places):
        tokens, counts = np.unique(text[places], return_counts=True)
        best = int(counts.argmax())
        if tokens[best] == BREAK or counts[best] < ALIKE * len(places):
            break
        drafted.append(int(tokens[best]))
        places = places[text[places] == tokens[best]] + 1
        places = places[places < len(text)]
    return drafted
