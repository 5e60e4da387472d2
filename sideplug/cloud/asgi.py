"""A Service as an ASGI app with the same paths, for web servers that own their sockets (Ray Serve, uvicorn).

It does not know which server runs it, nor keys: `Service.respond` checks them. Behind a proxy with flow control
(flow_control), it sends only as much as the proxy has room for. Test: pytest tests/cloud/test_flow_control.py
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
from sideplug.cloud.access import SUBPROTOCOL, Caller
from sideplug.cloud.keys import Holder
from sideplug.cloud.service import Response, Service
from sideplug.cloud.session import Gone

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

DISCONNECT = "websocket.disconnect"
log = logging.getLogger("sideplug.cloud")


class AsgiConnection:
    """An ASGI WebSocket as a session's Connection; it works inside an `async with` block."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._has_flow_control = flow_control.NAME in scope.get("extensions", {})
        self._inbox: asyncio.Queue[Message] = asyncio.Queue()
        self._up, self._down = flow_control.Received(), flow_control.Window()
        self._ended = False

    async def __aenter__(self) -> AsgiConnection:
        self._pumping = asyncio.create_task(self._pump())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._pumping.cancel()
        await asyncio.gather(self._pumping, return_exceptions=True)

    async def _pump(self) -> None:
        """Queue incoming messages for `recv`; acknowledgements take effect at once, because `send` waits for them."""
        try:
            while True:
                message = await self._receive()
                if message["type"] == flow_control.NAME:
                    self._down.acknowledge(message["taken"])
                elif message["type"] == DISCONNECT:
                    return
                else:
                    self._inbox.put_nowait(message)
        finally:  # Ray's `receive` raises when its proxy is gone
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._down.open()
        self._inbox.put_nowait({"type": DISCONNECT})

    async def recv(self) -> bytes | str:
        """Return the next message. Raises Gone."""
        message = await self._inbox.get()
        if message["type"] == DISCONNECT:
            self._inbox.put_nowait(message)  # for the next call
            raise Gone
        acknowledgement = self._up.add(flow_control.size(message))
        if acknowledgement is not None and self._has_flow_control:
            await self._pass(acknowledgement)
        data = message.get("bytes")
        content: bytes | str = message.get("text") or "" if data is None else data
        return content

    async def send(self, message: bytes) -> None:
        """Send a message when the proxy has room for it. Raises Gone."""
        await self._down.room()
        await self._pass({"type": "websocket.send", "bytes": message})
        if self._has_flow_control:
            self._down.send(len(message))

    async def close(self, code: int, reason: str) -> None:
        """Close the connection with a WebSocket close code and a reason."""
        if not self._ended:
            try:
                await self._pass({"type": "websocket.close", "code": code, "reason": reason})
            finally:
                self._end()

    def abort(self) -> None:
        """End the session: the web server closes the connection when its app returns."""
        self._end()

    async def _pass(self, message: Message) -> None:
        if self._ended:
            raise Gone
        try:
            await self._send(message)
        except (OSError, RuntimeError) as error:  # what uvicorn and Ray raise for a closed connection
            self._end()
            raise Gone from error


class WebSocketApp:
    """The ASGI app for WebSockets: those of PATH with a key become sessions, others get an HTTP response."""

    def __init__(self, service: Service, queued: bool) -> None:
        """`queued`: there are queues between the proxy and this app, so the proxy should have flow control."""
        self._service = service
        self._expects_flow_control = queued

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        answer = _respond(self._service, scope)
        if isinstance(answer, Response):
            await _deny(scope, send, answer)
            return
        if self._expects_flow_control and flow_control.NAME not in scope.get("extensions", {}):
            self._expects_flow_control = False
            log.warning(
                "the proxy has no flow control (%s): what a device does not read fills its memory", flow_control.NAME
            )
        is_page = SUBPROTOCOL in (scope.get("subprotocols") or ())
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if is_page else None})
        async with AsgiConnection(scope, receive, send) as connection:
            await self._service.attend(connection, answer)


async def _deny(scope: Scope, send: Send, response: Response) -> None:
    """Answer a WebSocket's request with an HTTP response, where the web server can; else with HTTP 403."""
    kind = "websocket.http.response"
    if kind not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": ""})  # the web server turns this into HTTP 403
        return
    body = response.body.encode()
    headers = {**response.headers, "Content-Length": str(len(body))}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": f"{kind}.start", "status": response.status, "headers": raw})
    await send({"type": f"{kind}.body", "body": body, "more_body": False})


def _respond(service: Service, scope: Scope) -> Response | Holder | None:
    """Return what Service.respond returns for the request of an ASGI scope."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    headers = Headers(scope=scope)
    address = str((scope.get("client") or ("",))[0])
    origin = ",".join(headers.getlist("origin"))
    caller = Caller(headers.getlist("authorization"), origin, scope.get("subprotocols") or (), address)
    return service.respond(path, caller)


def app(service: Service, queued: bool = False) -> Starlette:
    """Return the app; its service starts and stops with the web server. queued: see WebSocketApp."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.begin()
        try:
            yield
        finally:
            await service.end()
            await asyncio.to_thread(service.thread.stop)
            service.shared.aside.stop()

    async def http(request: Request) -> HttpResponse:
        answer = _respond(service, request.scope)
        if not isinstance(answer, Response):
            answer = Response.json(426, {"error": "this path is for WebSockets"}, Upgrade="websocket")
        return HttpResponse(answer.body, answer.status, answer.headers)

    any_path = "/{path:path}"
    return Starlette(
        routes=[Route(any_path, http), WebSocketRoute(any_path, WebSocketApp(service, queued))], lifespan=lifespan
    )
