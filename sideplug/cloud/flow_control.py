"""Flow control between a proxy and the process behind it: a bound on the bytes under way, in either direction.

Ray Serve passes WebSocket messages between its proxy and a replica through unbounded queues: a device that does not
read would fill the memory of both. So each end counts the bytes that it has taken, and acknowledges them from time to
time in a message of its own, besides the WebSocket's. An end that has sent WINDOW bytes more than were acknowledged
waits. `FlowControl` is the proxy's end (an ASGI middleware, see `middlewares`), `asgi.AsgiConnection` the replica's.
It does not know what is sent. Test: pytest tests/cloud/test_flow_control.py
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAME = "sideplug.flow"  # the type of the messages, and the name of the extension in the scope
WINDOW = 1 << 20  # bytes under way; a longer message is sent alone
STALL_S = 60.0  # a device that reads nothing for this long is cut off


def size(message: Message) -> int:
    """Return the length of a WebSocket message's content: bytes, or characters of a text."""
    return len(message.get("bytes") or message.get("text") or b"")


class Window:
    """The sender's account: bytes sent, and bytes that the receiver has acknowledged."""

    def __init__(self, limit: int = WINDOW) -> None:
        self._limit = limit
        self._sent = self._taken = 0
        self._room = asyncio.Event()
        self._room.set()

    def send(self, count: int) -> None:
        """Count bytes that were sent."""
        self._sent += count
        if self._sent - self._taken >= self._limit:
            self._room.clear()

    def acknowledge(self, taken: int) -> None:
        """Note that the receiver has taken `taken` bytes in all."""
        self._taken = taken
        if self._sent - self._taken < self._limit:
            self._room.set()

    def open(self) -> None:
        """Let `room` return from now on: the receiver is gone."""
        self._limit = self._sent + (1 << 62)
        self._room.set()

    async def room(self) -> None:
        """Wait until there is room for another message."""
        await self._room.wait()


class Received:
    """The receiver's account: bytes taken, and how many of them were acknowledged."""

    def __init__(self) -> None:
        self._total = self._acknowledged = 0

    def add(self, count: int) -> Message | None:
        """Count bytes that were taken; return the acknowledgement to send now, if one is due."""
        self._total += count
        if self._total - self._acknowledged < WINDOW // 4:
            return None
        self._acknowledged = self._total
        return {"type": NAME, "taken": self._total}


class FlowControl:
    """The proxy's end: an ASGI middleware between its web server and the queues to the replica."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        up, down, inbox = Window(), Received(), asyncio.Queue[Any]()
        gone = False

        async def pump() -> None:
            while True:
                await up.room()
                message = await receive()
                up.send(size(message))
                inbox.put_nowait(message)
                if message["type"] == "websocket.disconnect":
                    return

        async def send_on(message: Message) -> None:
            nonlocal gone
            if message["type"] == NAME:
                up.acknowledge(message["taken"])
                return
            if gone:
                return
            try:
                async with asyncio.timeout(STALL_S):
                    await send(message)
            except (OSError, TimeoutError):  # the device has left, or does not read
                gone = True
                _cut(send)
                inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
            acknowledgement = down.add(size(message))
            if acknowledgement is not None:
                inbox.put_nowait(acknowledgement)

        pumping = asyncio.create_task(pump())
        try:
            await self._app({**scope, "extensions": {**scope.get("extensions", {}), NAME: {}}}, inbox.get, send_on)
        finally:
            pumping.cancel()
            await asyncio.gather(pumping, return_exceptions=True)


def _cut(send: Any) -> None:
    """Cut a connection whose device does not read: a closing handshake would wait for it."""
    with contextlib.suppress(AttributeError):
        send.__self__.transport.abort()  # uvicorn's


def middlewares() -> list[Middleware]:
    """For Ray's proxies: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=sideplug.cloud.flow_control.middlewares."""
    from starlette.middleware import Middleware

    return [Middleware(FlowControl)]
