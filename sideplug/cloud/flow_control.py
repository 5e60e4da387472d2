"""So much may be on its way between a proxy and the process behind it, and no more, in either direction.

Ray Serve hands WebSocket messages from its proxy to a replica, and back, through queues that have no bounds: a device
that does not read would fill the memory of both. So each end counts what it has taken, and tells the other every now
and then, in a message of its own beside the WebSocket's; who has sent WINDOW bytes more than were taken waits. `Flow`
is the proxy's end (an ASGI middleware, see `middlewares`), `asgi.Socket` the other. It does not know what is sent.
Test: pytest tests/cloud/test_flow_control.py
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAME = "sideplug.flow"  # of the messages, and in the scope's extensions, where there is such a proxy
WINDOW = 1 << 20  # bytes on their way; a message that is longer goes alone
STALL_S = 60.0  # a device that reads nothing for so long is cut off


def size(message: Message) -> int:
    return len(message.get("bytes") or message.get("text") or b"")


class Window:
    """The sender's account: what it has sent, and what was taken of it."""

    def __init__(self, limit: int = WINDOW) -> None:
        self._limit = limit
        self._sent = self._taken = 0
        self._room = asyncio.Event()
        self._room.set()

    def send(self, count: int) -> None:
        self._sent += count
        if self._sent - self._taken >= self._limit:
            self._room.clear()

    def hear(self, taken: int) -> None:
        """So much was taken in all."""
        self._taken = taken
        if self._sent - self._taken < self._limit:
            self._room.set()

    def open(self) -> None:
        """There is nothing to wait for any more."""
        self._limit = self._sent + (1 << 62)
        self._room.set()

    async def room(self) -> None:
        await self._room.wait()


class Received:
    """The receiver's account: `add` gives the message to tell the sender, now and then."""

    def __init__(self) -> None:
        self._total = self._told = 0

    def add(self, count: int) -> Message | None:
        self._total += count
        if self._total - self._told < WINDOW // 4:
            return None
        self._told = self._total
        return {"type": NAME, "taken": self._total}


class FlowControl:
    """The proxy's end, between its web server and what carries messages to the replica."""

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
                up.hear(message["taken"])
                return
            if gone:
                return
            try:
                async with asyncio.timeout(STALL_S):
                    await send(message)
            except (OSError, TimeoutError):  # the device has left, or does not read: said once, and as ASGI says it
                gone = True
                _cut(send)
                inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})
            told = down.add(size(message))
            if told is not None:
                inbox.put_nowait(told)

        pumping = asyncio.create_task(pump())
        try:
            await self._app({**scope, "extensions": {**scope.get("extensions", {}), NAME: {}}}, inbox.get, send_on)
        finally:
            pumping.cancel()
            await asyncio.gather(pumping, return_exceptions=True)


def _cut(send: Any) -> None:
    """Drop a connection that nobody reads from: closing it would wait for them."""
    with contextlib.suppress(AttributeError):
        send.__self__.transport.abort()  # uvicorn's


def middlewares() -> list[Middleware]:
    """For Ray's proxies: RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=sideplug.cloud.flow_control.middlewares."""
    from starlette.middleware import Middleware

    return [Middleware(FlowControl)]
