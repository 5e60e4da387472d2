"""What a cloud's frames must be like in one session. Every frame is checked here before anything uses it.

The types in contract/frames say what a frame may hold in any session. Here it is held against this one: the model that
OPENED described, the tap and the context rows that the device asked for, the capabilities that it was granted. So every
array has the shape, the type and the finite numbers that the rest of the device counts on, and no memory is taken for a
number that a cloud says. Whether a frame may come now is checked in guard. Test: pytest tests/device/test_terms.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sideplug.contract.capabilities import CONTEXT, TOKENS, ContextSettings, check_extensions, grant, settings_of
from sideplug.contract.errors import Untrusted
from sideplug.contract.frames import (
    BEST_IDS,
    MAX_BUNDLE,
    ROWS_PER_FRAME,
    Ask,
    Begun,
    Context,
    Done,
    Example,
    Frame,
    Head,
    ModelInfo,
    Opened,
    Scored,
    Tokens,
)
from sideplug.contract.tap import ContextSlice, Tap
from sideplug.device.responders import Opening


@dataclass(frozen=True)
class Terms:
    """What one session agreed on. tap: of its asks and examples. context: what rows without a question carry."""

    model: ModelInfo
    tap: Tap
    context: ContextSlice | None
    granted: tuple[str, ...]

    @classmethod
    def of(cls, opened: Opened, opening: Opening) -> Terms:
        """The terms of a session that was opened so. Raises Untrusted, InputError for a tap that the model lacks."""
        model = opened.model
        if not set(opened.granted) <= set(opening.capabilities):
            raise Untrusted("the cloud grants what this session did not ask for")
        tap = opening.tap or Tap.spread(model.blocks, model.width)
        tap.check(model.blocks, model.width)
        wanted = {name: each for name, each in opening.capabilities.items() if name in opened.granted}
        rows = settings_of(grant(wanted), CONTEXT, ContextSettings)
        context = ContextSlice(tap, tuple(rows.layers), rows.rank) if rows else None
        return cls(model, tap, context, tuple(opened.granted))

    def check(self, frame: Frame) -> None:
        """Raises Untrusted for a frame that this session can't have, ProtocolError for an extension that it can't."""
        check_extensions(frame, self.granted)
        check = _CHECKS.get(type(frame))
        if check is not None:
            check(self, frame)

    def _begun(self, frame: Begun) -> None:
        _must(1 <= frame.prompt <= self.model.context, "how long the prompt is")
        _must(frame.cached <= self.model.context and bool(frame.hash), "how much of the text it had")

    def _tokens(self, frame: Tokens) -> None:
        self._check_ids(frame.ids)
        _must(len(frame.top) in (0, len(frame.ids)), "the alternatives of its tokens")

    def _ask(self, frame: Ask) -> None:
        rows = len(frame.at)
        self._check_ids(frame.ids)
        _must(rows > 0 and len(frame.gates) in (0, rows), "what it asks about")
        self._check_codes(frame.codes, frame.scales, rows, len(self.tap.layers), self.tap.rank)
        if frame.z is not None:
            self._check_z(frame.z, rows)

    def _context(self, frame: Context) -> None:
        _must(1 <= len(frame.codes) <= MAX_BUNDLE, "rows that nobody asked about")
        self._check_rows(frame.codes, frame.scales)

    def _example(self, frame: Example) -> None:
        rows = len(frame.ids)
        _must(frame.ids.dtype == np.int32 and 1 <= rows <= self.model.context, "an example's tokens")
        self._check_ids(frame.ids)
        if TOKENS.name in self.granted and not len(frame.codes):  # who asked knows whether it was for tokens alone
            rows = 0
        self._check_codes(frame.codes, frame.scales, rows, len(self.tap.layers), self.tap.rank)
        self._check_z(frame.z, rows)
        _must(_is(frame.z_scales, np.float32, (0,)), "an example's states")
        _must(_is(frame.top, np.int32, (rows, BEST_IDS)), "an example's best tokens")
        self._check_ids(frame.top)
        _must(_is(frame.lse, np.float32, (rows,)), "an example's probabilities")
        _must((frame.context is None) == (frame.context_scales is None), "an example's rows")
        if frame.context is not None and frame.context_scales is not None:
            _must(len(frame.context) < self.model.context, "an example's rows")
            self._check_rows(frame.context, frame.context_scales)

    def _scored(self, frame: Scored) -> None:
        rows = len(frame.base)
        for logps in (frame.base, frame.plugin):
            _must(_is(logps, np.float32, (rows,)) and bool((logps <= 1e-3).all()), "an example's probabilities")

    def _head(self, frame: Head) -> None:
        count = len(frame.rows)
        _must(count <= ROWS_PER_FRAME and _is(frame.rows, np.float16, (count, self.model.width)), "the base's head")
        _must(_is(frame.bias, np.float32, (count,)), "the base's head")

    def _done(self, frame: Done) -> None:
        _must(frame.prompt <= self.model.context and frame.reply <= self.model.context, "how long the reply is")

    def _check_ids(self, ids: list[int] | np.ndarray) -> None:
        if len(ids):
            least, most = (min(ids), max(ids)) if isinstance(ids, list) else (int(ids.min()), int(ids.max()))
            _must(0 <= least <= most < self.model.vocab, "tokens that its model has")

    def _check_rows(self, codes: np.ndarray, scales: np.ndarray) -> None:
        if self.context is None:
            raise Untrusted("the cloud sends rows of the text that this session did not ask for")
        self._check_codes(codes, scales, len(codes), len(self.context.layers), self.context.rank)

    def _check_codes(self, codes: np.ndarray, scales: np.ndarray, rows: int, layers: int, rank: int) -> None:
        int8 = self.tap.codec == "int8"
        _must(_is(codes, np.int8 if int8 else np.float16, (rows, layers, rank)), "its states")
        _must(_is(scales, np.float32, (rows, layers if int8 else 0)) and bool((scales >= 0).all()), "its states")

    def _check_z(self, z: np.ndarray, rows: int) -> None:
        _must(_is(z, np.float16, (rows, self.model.width)), "its states")


_CHECKS: dict[type[Frame], Callable[[Terms, Any], None]] = {
    Begun: Terms._begun,
    Tokens: Terms._tokens,
    Ask: Terms._ask,
    Context: Terms._context,
    Example: Terms._example,
    Scored: Terms._scored,
    Head: Terms._head,
    Done: Terms._done,
}


def _is(tensor: np.ndarray, dtype: type, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is of this type and shape, and all its numbers are finite."""
    return tensor.dtype == dtype and tensor.shape == shape and bool(np.isfinite(tensor).all())


def _must(right: bool, what: str) -> None:
    if not right:
        raise Untrusted(f"the cloud does not keep to what this session agreed on: it sent something else for {what}")
