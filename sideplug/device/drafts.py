"""Prompt-lookup drafts: the next tokens of a reply, predicted from the person's own phrases by n-gram lookup.

The lookup finds the longest suffix of the reply so far (8 tokens at most) in the person's phrases and in the reply
itself. The draft continues as most of those matches continue. The cloud verifies each token of a draft, so a wrong
draft costs time and never changes the text. It knows neither a model nor the wire.
Test: pytest tests/device/test_drafts.py
"""

from __future__ import annotations

import numpy as np

MAX_MATCH = 8  # tokens of the reply's suffix that are matched, at most
MIN_MATCH = 2  # … and at least; the start of a reply counts as one token, and is enough
MIN_AGREEMENT = 0.6  # share of the matches that must continue with the same token
MIN_DRAFT, MAX_DRAFT = 2, 24  # tokens
BREAK = -1  # separates phrases; it also stands before the first and after the last one


class PromptLookup:
    """The drafts of one reply. phrases: int32 ids, with BREAK between phrases."""

    def __init__(self, phrases: np.ndarray) -> None:
        self._phrases = np.concatenate([[BREAK], phrases, [BREAK]]).astype(np.int32)
        self._start = -1  # the position of the reply's first token
        self._ids: list[int] = []
        self._length = MIN_DRAFT * 4
        self._expected: dict[int, int] = {}

    def hear(self, at: int, ids: list[int]) -> None:
        """Replace the text from position `at` on by `ids`, which may end with speculative tokens."""
        if self._start < 0:
            self._start = at
        self._ids[at - self._start :] = ids

    def settled(self, at: int, ids: list[int]) -> None:
        """Compare the final tokens `ids`, from position `at` on, with the drafts.

        Each right token makes later drafts one token longer; a wrong one halves their length.
        """
        for position, token in enumerate(ids, at):
            expected = self._expected.pop(position, None)
            if expected == token:
                self._length = min(self._length + 1, MAX_DRAFT)
            elif expected is not None:
                self._length = max(self._length // 2, MIN_DRAFT)
                self._expected = {}

    def draft(self, at: int) -> list[int]:
        """Return a draft of the tokens from position `at` on; it may be empty."""
        reply = [BREAK, *self._ids[: max(0, at - self._start)]]
        drafted = continuation(np.concatenate([self._phrases, reply]).astype(np.int32), reply, self._length)
        for position, token in enumerate(drafted, at):
            self._expected.setdefault(position, token)
        return drafted


def continuation(text: np.ndarray, reply: list[int], max_tokens: int) -> list[int]:
    """Return how `text` (int32 ids) continues after the longest suffix of `reply` that occurs in it.

    Returns at most `max_tokens` tokens, and none where the suffix is too short or its matches continue differently.
    """
    places = np.arange(1, len(text))  # of the token after each match
    depth = 0
    for token in reply[: -MAX_MATCH - 1 : -1]:
        longer = places[text[places - 1 - depth] == token]
        longer = longer[longer > depth]
        if not len(longer):
            break
        places, depth = longer, depth + 1
        if token == BREAK:
            break
    drafted: list[int] = []
    if depth < MIN_MATCH and not (depth and reply[-depth] == BREAK):
        return drafted
    while len(drafted) < max_tokens and len(places):
        tokens, counts = np.unique(text[places], return_counts=True)
        best = int(counts.argmax())
        if tokens[best] == BREAK or counts[best] < MIN_AGREEMENT * len(places):
            break
        drafted.append(int(tokens[best]))
        places = places[text[places] == tokens[best]] + 1
        places = places[places < len(text)]
    return drafted
