"""A service as an ASGI app, for web servers that have sockets of their own (Ray Serve's, uvicorn): the same doors.

It does not know which server carries it, nor keys: `service.answer` says who may come in. Where a proxy stands between
that counts what is on its way (flow), it waits for it. Test: pytest tests/cloud/test_flow_control.py
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response as HttpResponse
from starlette.routing import Route, WebSocketRoute

from sideplug.cloud import flow_control
from sideplug.cloud.access import RETRY_S
from sideplug.cloud.keys import Holder
from sideplug.cloud.service import Response, Service
from sideplug.cloud.session import Gone

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

DISCONNECT = "websocket.disconnect"
log = logging.getLogger("sideplug.cloud")


class Socket:
    """A WebSocket of ASGI as sessions want it, while it is entered."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._counts = flow_control.NAME in scope.get("extensions", {})
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._up, self._down = flow_control.Received(), flow_control.Window()
        self._over = False

    async def __aenter__(self) -> Socket:
        self._pumping = asyncio.create_task(self._pump())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._pumping.cancel()
        await asyncio.gather(self._pumping, return_exceptions=True)

    async def _pump(self) -> None:
        """What comes, for `recv`; what it says of the flow is heard at once, even while `send` waits for it."""
        try:
            while True:
                message = await self._receive()
                if message["type"] == flow_control.NAME:
                    self._down.hear(message["taken"])
                elif message["type"] == DISCONNECT:
                    return
                else:
                    self._inbox.put_nowait(message)
        finally:  # Ray's may raise, too, when its proxy is gone
            self._end()

    def _end(self) -> None:
        self._over = True
        self._down.open()
        self._inbox.put_nowait({"type": DISCONNECT})

    async def recv(self) -> bytes | str:
        message = await self._inbox.get()
        if message["type"] == DISCONNECT:
            self._inbox.put_nowait(message)  # for who asks again
            raise Gone
        told = self._up.add(flow_control.size(message))
        if told is not None and self._counts:
            await self._pass(told)
        data = message.get("bytes")
        found: bytes | str = message.get("text") or "" if data is None else data
        return found

    async def send(self, message: bytes) -> None:
        await self._down.room()
        await self._pass({"type": "websocket.send", "bytes": message})
        if self._counts:
            self._down.send(len(message))

    async def close(self, code: int, reason: str) -> None:
        if not self._over:
            try:
                await self._pass({"type": "websocket.close", "code": code, "reason": reason})
            finally:
                self._end()

    def abort(self) -> None:
        """The server closes it when the session has ended, as it now does."""
        self._end()

    async def _pass(self, message: Message) -> None:
        if self._over:
            raise Gone
        try:
            await self._send(message)
        except (OSError, RuntimeError) as error:  # as uvicorn and Ray say it
            self._end()
            raise Gone from error


class Door:
    """Takes WebSockets: of PATH and with a key they become sessions, others get their answer in HTTP."""

    def __init__(self, service: Service, queued: bool) -> None:
        self._service = service
        self._expects_count = queued

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        found = answer(self._service, scope)
        if not isinstance(found, Response) and not self._service.ready:
            found = Response.json(503, {"error": "this part of the cloud is going down"}, Retry_After=str(RETRY_S))
        if isinstance(found, Response):
            await _deny(scope, send, found)
            return
        if self._expects_count and flow_control.NAME not in scope.get("extensions", {}):
            self._expects_count = False
            log.warning(
                "the proxy does not count what is on its way (%s): what devices don't read piles up", flow_control.NAME
            )
        await send({"type": "websocket.accept"})
        async with Socket(scope, receive, send) as socket:
            await self._service.attend(socket, found)


async def _deny(scope: Scope, send: Send, response: Response) -> None:
    kind = "websocket.http.response"
    if kind not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": ""})  # becomes HTTP 403
        return
    body = response.body.encode()
    headers = {**response.headers, "Content-Length": str(len(body))}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": f"{kind}.start", "status": response.status, "headers": raw})
    await send({"type": f"{kind}.body", "body": body, "more_body": False})


def answer(service: Service, scope: Scope) -> Response | Holder | None:
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return service.answer(path, Headers(scope=scope).getlist("authorization"))


def app(service: Service, queued: bool = False) -> Starlette:
    """It begins and ends with its server. `queued`: there are queues between, so somebody ought to count (flow)."""

    @contextlib.asynccontextmanager
    async def alive(_: Starlette) -> AsyncIterator[None]:
        service.begin()
        try:
            yield
        finally:
            await service.end()
            await asyncio.to_thread(service.thread.stop)

    async def http(request: Request) -> HttpResponse:
        found = answer(service, request.scope)
        if not isinstance(found, Response):
            found = Response.json(426, {"error": "this path is for WebSockets"}, Upgrade="websocket")
        return HttpResponse(found.body, found.status, found.headers)

    everything = "/{path:path}"
    return Starlette(
        routes=[Route(everything, http), WebSocketRoute(everything, Door(service, queued))], lifespan=alive
    )
