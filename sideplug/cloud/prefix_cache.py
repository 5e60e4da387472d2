"""The prefix cache: keys and values of texts that are not being worked on, for the next text that begins alike.

It holds conversations between two turns and replies whose device was cut off. A text is only shared within one scope
(the sessions of one key) or when it was declared for everybody, so that nobody learns from a quick answer what another
user has asked.

The keys and values at a position depend on the text before it and, bit for bit, on how it was run: as a prompt (many
tokens at once) or one by one (a reply). So tokens that were run as a prompt are only reused as part of a prompt, and
tokens of a reply only to continue that same reply. A text is therefore the same whether its beginning was cached,
evicted, or is run for the first time.

Where memory is needed, the scope that has the most cached gives its oldest text first, so that nobody's texts are
driven out by another's many. This module does not know sessions. Test: pytest tests/cloud/test_prefix_cache.py
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sideplug.cloud.context_rows import ContextRows
from sideplug.cloud.model.memory import Memory, Reservation, tokens_for
from sideplug.cloud.shares import Shares
from sideplug.contract.errors import Busy

MIN_PREFIX = 16  # tokens: running fewer is as quick as copying them
MAX_TEXTS = 256  # of one scope: each is looked at when a text of that scope begins


def common_length(a: np.ndarray, b: np.ndarray) -> int:
    """The number of ids with which both arrays begin."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


@dataclass(eq=False)
class Text:
    """Token ids; the first `prompt_tokens` were (or will be) run as a prompt, the others one by one.

    scope: who may reuse it; None: everybody. gate_id: identifies the gates that gave `scores`, position → scores.
    rows: the context rows of a text whose device wanted them.
    """

    scope: str | None
    ids: np.ndarray  # int32
    prompt_tokens: int
    gate_id: bytes = b""
    scores: dict[int, tuple[float, ...]] = field(default_factory=dict)
    rows: ContextRows | None = None

    def __post_init__(self) -> None:
        self.ids = np.asarray(self.ids, np.int32)

    def shared(self, other: Text) -> int:
        """How many tokens of `other` may come from this text, so that its rest gives what running all of it gives."""
        if self.scope is not None and self.scope != other.scope:
            return 0
        same = common_length(self.ids, other.ids)
        if other.rows is not None:
            same = other.rows.usable(self.rows, same)
        if self.prompt_tokens == other.prompt_tokens < same and self.gate_id == other.gate_id:
            length = min(same, len(other.ids) - 1)  # at least one token must be run, to predict the next one
            if length in self.scores:
                return length
        # A prompt's last chunk must have two tokens or more: a single token may be summed in another order.
        return max(0, min(same, self.prompt_tokens, other.prompt_tokens - 2))


@dataclass(eq=False)
class CachedPrefix:
    """One text of the cache with its keys and values (`states`, of all its tokens) and the memory that they take."""

    text: Text
    states: Any
    reservation: Reservation
    used_s: float


class PrefixCache:
    """Cached texts, the least recently used first; evicted after `seconds` without use, or when memory is needed."""

    def __init__(self, memory: Memory, seconds: float) -> None:
        """`seconds` 0 caches nothing but what is declared."""
        self.seconds = seconds
        self._memory = memory
        self._entries: OrderedDict[int, CachedPrefix] = OrderedDict()
        self._declared: list[CachedPrefix] = []
        self.shares = Shares(memory.tokens)  # of the tokens that are cached, by scope
        self.evicted = 0  # entries that were evicted because memory was needed

    def __len__(self) -> int:
        return len(self._entries) + len(self._declared)

    def put(self, text: Text, states: Any) -> None:
        """Cache a text, if there is memory for it beside the running work. It replaces older states of itself."""
        if self.seconds <= 0:
            return
        for entry in [e for e in self._entries.values() if e.text.scope == text.scope]:
            older = entry.text
            if common_length(text.ids, older.ids) >= older.prompt_tokens <= text.prompt_tokens:
                self._remove(entry)
        size = len(text.ids) + (tokens_for(self._memory, text.rows.held_bytes) if text.rows else 0)
        owner = text.scope or ""
        own = [entry for entry in self._entries.values() if entry.text.scope == text.scope]
        for entry in own[: max(0, len(own) - MAX_TEXTS + 1)]:
            self._remove(entry)
        reservation = self.reserve(size, owner=owner)
        if reservation is not None:
            reservation.join(self.shares.take(owner, size))
            entry = CachedPrefix(text, states, reservation, time.monotonic())
            self._entries[id(entry)] = entry

    def declare(self, text: Text, states: Any) -> None:
        """Cache a text for everybody and for good. Raises Busy when there is no memory for it."""
        self._declared.append(CachedPrefix(text, states, self._memory.reserve(len(text.ids)), 0.0))

    def reserve(self, tokens: int, spare: CachedPrefix | None = None, owner: str | None = None) -> Reservation | None:
        """Memory for `tokens`, evicting entries for it (but never `spare`); None if that is not enough.

        `owner`: the scope of a text that is to be cached; it takes no place from scopes that have less than it will.
        """
        least = 0 if owner is None else self.shares.held(owner) + tokens
        while True:
            try:
                return self._memory.reserve(tokens)
            except Busy:
                held = {id(entry): self.shares.held(entry.text.scope or "") for entry in self._entries.values()}
                entries = [
                    entry
                    for entry in self._entries.values()
                    if entry is not spare and ((entry.text.scope or "") == owner or held[id(entry)] >= least)
                ]
                if not entries:
                    return None
                # max takes the first of the largest: the oldest text of the scope that has the most
                self._remove(max(entries, key=lambda entry: held[id(entry)]))
                self.evicted += 1

    def best(self, text: Text) -> tuple[CachedPrefix | None, int]:
        """The entry that shares the most tokens with `text`, and how many; (None, 0) below MIN_PREFIX."""
        found, length = None, MIN_PREFIX - 1
        for entry in (*self._declared, *self._entries.values()):
            shared = entry.text.shared(text)
            if shared > length:
                found, length = entry, shared
        return found, length if found else 0

    def use(self, entry: CachedPrefix, text: Text) -> None:
        """Note that `text` was begun with this entry. A text that continues all of it will replace it: remove it."""
        if id(entry) not in self._entries:
            return
        if common_length(entry.text.ids, text.ids) >= entry.text.prompt_tokens:
            self._remove(entry)
        else:
            entry.used_s = time.monotonic()
            self._entries.move_to_end(id(entry))

    def expire(self) -> None:
        """Evict the entries that were not used for `seconds`."""
        oldest_s = time.monotonic() - self.seconds
        for entry in [e for e in self._entries.values() if e.used_s < oldest_s]:
            self._remove(entry)

    def _remove(self, entry: CachedPrefix) -> None:
        del self._entries[id(entry)]
        entry.reservation.release()
