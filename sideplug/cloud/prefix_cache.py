"""Keys and values of texts that nobody is working on: a conversation between its turns, a reply that was cut off.

A prompt that begins as a kept text does takes over what they share. What may be shared is of one scope (one key's
sessions), or was declared for everybody, so that nobody learns from a quick answer what another has asked.

The keys and values at a position depend on the text before it and on nothing else, bit for bit: what was run as a
prompt is only taken over as part of a prompt, and a reply's tokens, run one by one, only to go on with that very reply.
So a text is the same whether its beginning was kept, evicted, or is run for the first time. It does not know sessions.
Test: pytest tests/cloud/test_prefix_cache.py
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sideplug.cloud.model.memory import Memory, Reservation
from sideplug.contract.errors import Busy

LEAST = 16  # tokens: fewer are run again as quickly as they are copied


def common(a: np.ndarray, b: np.ndarray) -> int:
    """How many ids the two begin with alike."""
    most = min(len(a), len(b))
    other = a[:most] != b[:most]
    return int(other.argmax()) if other.any() else most


@dataclass(eq=False)
class Text:
    """Token ids of which `prompt_tokens` were run as a prompt and the rest one by one, with the gate's scores there.

    scope: whose it is; None: everybody's. mark: of the gate that the scores are of.
    """

    scope: str | None
    ids: np.ndarray  # int32
    prompt_tokens: int
    mark: bytes = b""
    scores: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ids = np.asarray(self.ids, np.int32)

    def shared(self, other: Text) -> int:
        """How many tokens of `other` are here, so that its rest gives just what the whole would give."""
        if self.scope is not None and self.scope != other.scope:
            return 0
        same = common(self.ids, other.ids)
        if self.prompt_tokens == other.prompt_tokens < same and self.mark == other.mark:
            going_on = min(same, len(other.ids) - 1)  # one token at least must be run, for what follows it
            if going_on in self.scores:
                return going_on
        # Nor is a prompt's last chunk ever of one token: that may be summed in another order.
        return max(0, min(same, self.prompt_tokens, other.prompt_tokens - 2))


@dataclass(eq=False)
class Entry:
    text: Text
    states: Any  # of as many tokens as it has ids
    promise: Reservation
    used_s: float


class Kept:
    """Texts with their keys and values, the least lately used first; let go after `seconds`, or for want of memory."""

    def __init__(self, memory: Memory, seconds: float) -> None:
        self.seconds = seconds
        self._memory = memory
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._declared: list[Entry] = []
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._entries) + len(self._declared)

    def put(self, text: Text, states: Any) -> None:
        """Keep it, if there is room beside what is in work."""
        if self.seconds <= 0:
            return
        for entry in [e for e in self._entries.values() if e.text.scope == text.scope]:
            older = entry.text
            if common(text.ids, older.ids) >= older.prompt_tokens <= text.prompt_tokens:  # it is in this one
                self._forget(entry)
        promise = self.reserve(len(text.ids))
        if promise is not None:
            entry = Entry(text, states, promise, time.monotonic())
            self._entries[id(entry)] = entry

    def declare(self, text: Text, states: Any) -> None:
        """Everybody's, for good. Raises Busy."""
        self._declared.append(Entry(text, states, self._memory.reserve(len(text.ids)), 0.0))

    def reserve(self, tokens: int, spare: Entry | None = None) -> Reservation | None:
        """Memory for `tokens`, for which texts are let go, but not `spare`; None where that does not do."""
        while True:
            try:
                return self._memory.reserve(tokens)
            except Busy:
                oldest = next((e for e in self._entries.values() if e is not spare), None)
                if oldest is None:
                    return None
                self._forget(oldest)
                self.evicted += 1

    def best(self, text: Text) -> tuple[Entry | None, int]:
        """The entry that has most of `text`, and how many of its tokens."""
        found, most = None, LEAST - 1
        for entry in (*self._declared, *self._entries.values()):
            shared = entry.text.shared(text)
            if shared > most:
                found, most = entry, shared
        return found, most if found else 0

    def use(self, entry: Entry, text: Text) -> None:
        """`text` begins with this entry's: it takes the entry's place where it goes on with all of it."""
        if id(entry) not in self._entries:
            return
        if common(entry.text.ids, text.ids) >= entry.text.prompt_tokens:
            self._forget(entry)
        else:
            entry.used_s = time.monotonic()
            self._entries.move_to_end(id(entry))

    def expire(self) -> None:
        """Let go of what has not been used for too long."""
        last = time.monotonic() - self.seconds
        for entry in [e for e in self._entries.values() if e.used_s < last]:
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        del self._entries[id(entry)]
        entry.promise.release()
