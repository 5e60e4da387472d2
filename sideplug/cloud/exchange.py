"""The state of a session: which frame of the device may come now, and what a sent frame completes.

A request (PROMPT, READ, ROWS) takes up a slot until the frame that completes it leaves. A slot is free again when that
frame leaves, not when it is queued: so a device that does not read what it asked for gets no more of it. There is one
slot for PROMPT, one for ROWS, and one for each READ, by its number. Nothing here sends, waits, or knows the engine.
Test: pytest tests/cloud/test_exchange.py
"""

from __future__ import annotations

from enum import Enum

from sideplug.cloud.reading import ExampleWork
from sideplug.cloud.reply import Reply
from sideplug.contract.errors import ProtocolError
from sideplug.contract.frames import Error, Example, Frame, Kind, Read, Scored


class State(Enum):
    """Of the session as a whole."""

    OPENING = "opening"
    OPEN = "open"


# Which frames may come in which state …
MAY_COME = {
    State.OPENING: frozenset({Kind.OPEN}),
    State.OPEN: frozenset({Kind.PROMPT, Kind.ANSWER, Kind.CANCEL, Kind.READ, Kind.SCORE, Kind.ROWS}),
}
# … and which request a sent frame completes. (EXAMPLE does not where a score may follow; ERROR completes a PROMPT, or
# the READ whose number it has.)
COMPLETES = {Kind.DONE: Kind.PROMPT, Kind.EXAMPLE: Kind.READ, Kind.SCORED: Kind.READ, Kind.HEAD: Kind.ROWS}

Slot = tuple[Kind, int | None]
PROMPT_SLOT: Slot = (Kind.PROMPT, None)
ROWS_SLOT: Slot = (Kind.ROWS, None)
Work = Reply | ExampleWork


class Exchange:
    """What one session has under way."""

    def __init__(self, max_examples: int) -> None:
        """`max_examples`: examples that may be under way at once."""
        self.state = State.OPENING
        self._max_examples = max_examples
        self._slots: dict[Slot, Work | None] = {}  # None: a ROWS, or a request that was refused (its ERROR is queued)

    @property
    def reply(self) -> Reply | None:
        """The reply that is under way."""
        work = self._slots.get(PROMPT_SLOT)
        return work if isinstance(work, Reply) else None

    @property
    def examples(self) -> list[ExampleWork]:
        """The examples that are under way."""
        return [work for work in self._slots.values() if isinstance(work, ExampleWork)]

    @property
    def works(self) -> list[Work]:
        """The reply and the examples that are under way."""
        return [work for work in self._slots.values() if work is not None]

    def example(self, number: int) -> ExampleWork:
        """The example of this number. Raises ProtocolError if it is not under way."""
        work = self._slots.get((Kind.READ, number))
        if not isinstance(work, ExampleWork):
            raise ProtocolError(f"example {number} must be read with score before it is scored")
        return work

    def check(self, frame: Frame) -> None:
        """Raises ProtocolError if this frame must not come now."""
        if frame.kind not in MAY_COME[self.state]:
            if self.state is State.OPENING:
                raise ProtocolError(f"a session must begin with OPEN, got {frame.kind.name}")
            raise ProtocolError(f"a device must not send {frame.kind.name} here")
        if frame.kind is Kind.PROMPT and PROMPT_SLOT in self._slots:
            raise ProtocolError("a session must wait for DONE, or the ERROR, before its next PROMPT")
        if frame.kind is Kind.ROWS and ROWS_SLOT in self._slots:
            raise ProtocolError("a session must wait for HEAD before its next ROWS")
        if frame.kind is Kind.READ:
            most = self._max_examples
            if _slot(frame) in self._slots or len(self.examples) >= most:
                raise ProtocolError(f"a session must have at most {most} examples in reading, each with its own number")

    def begin(self, frame: Frame, work: Work | None = None) -> None:
        """This request is under way; without a `work` it is a ROWS, or it was refused and its ERROR is queued."""
        self._slots[_slot(frame)] = work

    def complete(self, frame: Frame) -> None:
        """This frame leaves: free the slot of the request that it completes, if it completes one."""
        if isinstance(frame, Error):
            self._slots.pop(PROMPT_SLOT if frame.number is None else (Kind.READ, frame.number), None)
        elif frame.kind in COMPLETES:
            number = frame.number if isinstance(frame, (Example, Scored)) else None
            slot = COMPLETES[frame.kind], number
            work = self._slots.get(slot)
            if frame.kind is not Kind.EXAMPLE or not isinstance(work, ExampleWork) or not work.score:
                self._slots.pop(slot, None)

    def end(self) -> None:
        """Forget all that is under way."""
        self._slots.clear()


def _slot(frame: Frame) -> Slot:
    """The slot that a request takes up."""
    return frame.kind, frame.number if isinstance(frame, Read) else None
