"""What a connection may have on its way in: bounds that the WebSocket library does not set.

    messages        that wait to be taken: QUEUED_BYTES, and one message more
    fragments       of a message that is not complete: gone after UNFINISHED_S
    frames          FRAMES at once and so many a second, with pings and fragments; beyond, it is not read for a while

It does not know frames of ours. Test: pytest tests/cloud/test_inbound.py
"""

from __future__ import annotations

import asyncio
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame, Opcode

QUEUED_BYTES = 1 << 20
PIECE_BYTES = 8 << 10
UNFINISHED_S = 60.0
FRAMES = 1000  # a device sends one or two for each token …
PING_COSTS = 10  # … and hardly any ping, which counts as so many frames
MAX_PAUSE_S = 5.0  # the library takes a device that answers no ping for 20 s to be gone


class BoundedConnection(ServerConnection):
    """A server's end of a WebSocket that keeps these bounds."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._queued = 0  # bytes of data that `recv` has not returned
        self._is_held = False  # whether nothing is read because of them
        self._debt, self._debt_s = 0.0, 0.0  # frames beyond those that the time allowed, and when that was right
        self._pause: asyncio.TimerHandle | None = None  # until when nothing is read because of them
        self._unfinished: asyncio.TimerHandle | None = None
        self._pending = bytearray()  # what has come in and is not looked at yet

    def data_received(self, data: bytes) -> None:
        """Take what has come in, a piece at a time: a pause takes effect in the middle of thousands of pings."""
        self._pending += data
        self._take_pending()

    def _take_pending(self) -> None:
        while self._pending and self._pause is None:
            piece = bytes(self._pending[:PIECE_BYTES])
            del self._pending[:PIECE_BYTES]
            super().data_received(piece)

    def eof_received(self) -> None:
        """The other side has closed: what was not looked at is of no use any more."""
        self._pending.clear()
        super().eof_received()

    def process_event(self, event: Any) -> None:
        """Note an incoming frame, then treat it as any connection does."""
        if isinstance(event, Frame):
            self._count_frame(PING_COSTS if event.opcode is Opcode.PING else 1)
            if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self._queued += len(event.data)
                self._watch_fragments(event.fin)
                # Never in the middle of a message: `recv` would wait for its rest.
                self._is_held |= event.fin and self._queued > QUEUED_BYTES
        super().process_event(event)
        if self._is_held or self._pause is not None:
            self.transport.pause_reading()

    async def recv(self, decode: bool | None = None) -> Any:
        """Return the next message, and read on if few enough are left."""
        message = await super().recv(decode)
        self._queued -= len(message.encode()) if isinstance(message, str) else len(message)
        if self._is_held and self._queued <= QUEUED_BYTES:
            self._is_held = False
            self._read_on()
        return message

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers, then end as any connection does."""
        self._watch_fragments(fin=True)
        if self._pause is not None:
            self._pause.cancel()
        super().connection_lost(exc)

    def _read_on(self) -> None:
        if not self._is_held and self._pause is None:
            self.transport.resume_reading()

    def _watch_fragments(self, fin: bool) -> None:
        if fin and self._unfinished is not None:
            self._unfinished.cancel()
            self._unfinished = None
        elif not fin and self._unfinished is None:
            self._unfinished = self.loop.call_later(UNFINISHED_S, self.transport.abort)

    def _count_frame(self, cost: int) -> None:
        now_s = self.loop.time()
        self._debt = max(0.0, self._debt - FRAMES * (now_s - self._debt_s)) + cost
        self._debt_s = now_s
        if self._debt > FRAMES and self._pause is None:
            self._pause = self.loop.call_later(min(self._debt / FRAMES, MAX_PAUSE_S), self._end_pause)

    def _end_pause(self) -> None:
        self._pause = None
        self._take_pending()
        self._read_on()
