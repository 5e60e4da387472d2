"""Prompt-lookup drafts: the next tokens of a reply, predicted from the person's own phrases by n-gram lookup.

The lookup finds the longest suffix of the reply so far (8 tokens at most) in the person's phrases and in the reply
itself. The draft continues as most of those matches continue. The cloud verifies each token of a draft, so a wrong
draft costs time and never changes the text.

A draft continues the *settled* text only. Where the cloud has decoded ahead of it, the device drafts from the end of
the settled text, and sends what lies behind the speculative tokens if the draft agrees with them. So a cloud that
proposes texts of its own choice learns nothing of the phrases by it. And one that settles texts of its own choice, for
the person to see, learns them no faster than it writes: a reply may draft CREDIT tokens, and one more for each that is
settled (docs/SECURITY.md has the figures). This module knows neither a model nor the wire.
Test: pytest tests/device/test_drafts.py
"""

from __future__ import annotations

import numpy as np

MAX_MATCH = 8  # tokens of the reply's suffix that are matched, at most
MIN_MATCH = 2  # … and at least; the start of a reply counts as one token, and is enough
MIN_AGREEMENT = 0.6  # share of the matches that must continue with the same token
MIN_DRAFT, MAX_DRAFT = 2, 24  # tokens
CREDIT = 64  # tokens that a reply may draft beyond those that it has settled
MAX_AHEAD = 24  # tokens that a draft is drafted on, to reach behind the speculative text
BREAK = -1  # separates phrases; it also stands before the first and after the last one


class Text:
    """A reply as the device knows it: settled tokens, then speculative ones, as asks told them."""

    def __init__(self) -> None:
        self.start = 0  # the position of the reply's first token
        self.settled_end = 0
        self._ids: list[int] = []

    def begin(self, prompt: int) -> None:
        """The prompt has so many tokens."""
        self.start, self.settled_end = prompt, max(prompt, self.settled_end)

    def hear(self, at: int, ids: list[int]) -> None:
        """Replace the text from position `at` on by `ids`, which may end with speculative tokens."""
        before = max(0, self.settled_end - at)  # what is settled stays, and so does what lies before the reply
        self._ids[max(at, self.settled_end) - self.start :] = ids[before:]

    def settle(self, at: int, ids: list[int]) -> None:
        """The tokens from position `at` on are final."""
        start, self.settled_end = at - self.start, at + len(ids)
        if self._ids[start : start + len(ids)] != ids:
            self._ids[start:] = ids

    @property
    def settled(self) -> list[int]:
        """The settled tokens of the reply."""
        return self._ids[: self.settled_end - self.start]

    def ahead(self, at: int) -> list[int]:
        """The speculative tokens before position `at`."""
        return self._ids[self.settled_end - self.start : at - self.start]

    def behind(self, at: int, expected: list[int]) -> list[int]:
        """What is expected from position `at` on, if this is expected behind the settled text; [] if the text that was
        decoded ahead is another one."""
        ahead = self.ahead(at)
        return expected[len(ahead) :] if expected[: len(ahead)] == ahead else []


class PromptLookup:
    """The drafts of one reply. phrases: int32 ids, with BREAK between phrases. text: the reply, which somebody else
    keeps up to date."""

    def __init__(self, phrases: np.ndarray, text: Text) -> None:
        self._phrases = np.concatenate([[BREAK], phrases, [BREAK]]).astype(np.int32)
        self._text = text
        self._length = MIN_DRAFT * 4
        self._expected: dict[int, int] = {}
        self._sent: set[tuple[int, int]] = set()  # (position, token) of all drafts
        self._credit = CREDIT
        self._drafted: tuple[int, list[int]] = (-1, [])  # the end of the settled text, and what was drafted there

    def settled(self, at: int, ids: list[int]) -> None:
        """Compare the final tokens `ids`, from position `at` on, with the drafts.

        Each right token makes later drafts one token longer; a wrong one halves their length.
        """
        self._credit = min(CREDIT, self._credit + len(ids))
        for position, token in enumerate(ids, at):
            expected = self._expected.pop(position, None)
            if expected == token:
                self._length = min(self._length + 1, MAX_DRAFT)
            elif expected is not None:
                self._length = max(self._length // 2, MIN_DRAFT)
                self._expected = {}

    def draft(self, at: int) -> list[int]:
        """Return a draft of the tokens from position `at` on; it may be empty, and is where it is none of the settled
        text."""
        end = self._text.settled_end
        if self._drafted[0] != end:
            reply = [BREAK, *self._text.settled]
            text = np.concatenate([self._phrases, reply]).astype(np.int32)
            self._drafted = end, continuation(text, reply, self._length + MAX_AHEAD)
        drafted = self._afforded(at, self._text.behind(at, self._drafted[1])[: self._length])
        for position, token in enumerate(drafted, at):
            self._expected.setdefault(position, token)
        return drafted

    def _afforded(self, at: int, drafted: list[int]) -> list[int]:
        """As much of a draft as the credit pays for; what was sent before is free."""
        for count, each in enumerate(enumerate(drafted, at)):
            if each not in self._sent:
                if not self._credit:
                    return drafted[:count]
                self._credit -= 1
                self._sent.add(each)
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
