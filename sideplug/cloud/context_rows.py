"""The rows of one text for a device that needs the context: what was computed, and what was sent.

A row is the context slice of the tap's codes at one position. Every row is computed by itself, so that its bits do not
depend on which rows were run with it. Rows travel in bundles, never in a round trip of their own: those of the prompt
as they are computed, those of positions without an ASK before the next one. They are kept with a cached text (under two
per cent of what its keys and values take), so that a reused prefix has them too.

Letters: C rows, K layers, R code width, D the model's width. Test: pytest tests/cloud/test_context_rows.py
"""

from __future__ import annotations

import numpy as np

from sideplug.contract.frames import Context
from sideplug.contract.tap import ContextSlice, Encoder

ROW_OVERHEAD = 300  # bytes of the two arrays of a row beside their numbers
BUNDLE = 256  # rows in one CONTEXT frame


class ContextRows:
    """The rows of one text from position `start` on; the device has those before `sent`."""

    def __init__(self, context: ContextSlice, start: int, encoder: Encoder | None = None) -> None:
        """`start`: rows that the device has already; they are not computed again. encoder: the tap's, if it is made."""
        self.context = context
        self._encoder = encoder
        self.start = self.sent = start
        self._codes: list[np.ndarray] = []  # (K, R) of each row
        self._scales: list[np.ndarray] = []  # (K,), or empty for codecs without scales

    @property
    def bytes_per_row(self) -> int:
        """The bytes that a row takes in memory."""
        return self.context.bytes_per_token + ROW_OVERHEAD

    @property
    def held_bytes(self) -> int:
        """The bytes that its rows take in memory."""
        return len(self._codes) * self.bytes_per_row

    @property
    def end(self) -> int:
        """The position behind the last row."""
        return self.start + len(self._codes)

    def add(self, row: int, hidden_CKD: np.ndarray) -> None:
        """Rows from position `row` on, from the tapped states. Those before `start` are not needed."""
        for position, hidden_KD in enumerate(hidden_CKD, row):
            if position >= self.start:
                codes, scales = (self._encoder or self.context.tap).encode(hidden_KD[None])
                self.put(position, codes, scales)

    def put(self, row: int, codes: np.ndarray, scales: np.ndarray) -> None:
        """One row, as an ASK carries it: codes (1, K, R) of the whole tap, scales (1, K)."""
        if row < self.start:
            return
        assert row == self.end, "rows are added in their order"
        cut_codes, cut_scales = self.context.cut(codes, scales)
        self._codes.append(cut_codes[0].copy())  # a view would hold all of the tap's codes
        self._scales.append(cut_scales[0].copy())

    def mark_sent(self, row: int) -> None:
        """The device has been sent the rows before this one."""
        self.sent = max(self.sent, row)

    def trim(self, length: int) -> None:
        """The text was rolled back: the rows from `length` on are void."""
        keep = max(0, length - self.start)
        del self._codes[keep:], self._scales[keep:]
        self.sent = min(self.sent, max(self.start, length))

    def unsent(self, turn: int, run: int, stop: int) -> list[Context]:
        """CONTEXT frames of the rows before `stop` that have not been sent; from now on they count as sent."""
        frames = []
        while self.sent < min(stop, self.end):
            last = min(stop, self.end, self.sent + BUNDLE)
            part = slice(self.sent - self.start, last - self.start)
            codes, scales = np.stack(self._codes[part]), np.stack(self._scales[part])
            frames.append(Context(turn, run, self.sent, codes, scales))
            self.sent = last
        return frames

    def copy(self, length: int) -> ContextRows:
        """The rows before `length`, for a cached text."""
        other = ContextRows(self.context, self.start)
        count = max(0, length - self.start)
        other._codes, other._scales = self._codes[:count], self._scales[:count]
        return other

    def usable(self, cached: ContextRows | None, length: int) -> int:
        """How many of `length` cached tokens may be reused without leaving out a row that is needed."""
        if length <= self.start:
            return length
        if cached is None or cached.context != self.context or cached.start > self.start:
            return self.start
        return min(length, max(self.start, cached.end))

    def take(self, cached: ContextRows | None, length: int) -> None:
        """Begin with the rows of a cached text, of which `length` tokens are reused."""
        if cached is not None and length > self.start:
            part = slice(self.start - cached.start, length - cached.start)
            self._codes, self._scales = cached._codes[part], cached._scales[part]
