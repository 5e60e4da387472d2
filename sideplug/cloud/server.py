"""The WebSocket server: a service behind a socket of its own. /v1/session is the WebSocket of docs/WIRE.md.

Sockets are here and nowhere else in the cloud. Test: pytest tests/cloud/test_server.py
"""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request
from websockets.http11 import Response as HttpResponse

from sideplug.cloud.service import Response, Service
from sideplug.cloud.session import Gone
from sideplug.listen import not_listening

PING_S, PONG_S = 10.0, 20.0  # half-open connections are found so


class Socket:
    """A connection of `websockets` as sessions want it."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    async def recv(self) -> bytes | str:
        try:
            return await self._connection.recv()
        except ConnectionClosed as error:
            raise Gone from error

    async def send(self, message: bytes) -> None:
        try:
            await self._connection.send(message)
        except ConnectionClosed as error:
            raise Gone from error

    async def close(self, code: int, reason: str) -> None:
        await self._connection.close(code, reason)

    def abort(self) -> None:
        self._connection.transport.abort()


class CloudServer(Service):
    """A base model at an address. `start`, then `serve_until_stopped`, or `close`."""

    _server: Server | None = None

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> str:
        """Listen on what `bind` gave; the URL. Raises Stopped when another process listens there by now."""
        if tls is not None:
            # A device reads and writes in two threads, which OpenSSL's state is not for: a session ticket that comes
            # while the first request is written can make it wait for ever (9 of 3,600 connections).
            tls.num_tickets = 0
        host, port = listener.getsockname()[:2]
        try:
            self._server = await serve(
                self._on_connection,
                sock=listener,
                ssl=tls,
                compression=None,  # codes don't compress, and the deflate state would cost each session 300 KB
                max_size=self.limits.message_bytes,
                process_request=self._on_request,
                server_header=None,
                ping_interval=PING_S,
                ping_timeout=PONG_S,
            )
        except OSError as error:
            raise not_listening(host, port, error) from error
        self.begin()
        return f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"

    async def serve_until_stopped(self) -> None:
        """Until SIGINT or SIGTERM; what is under way then is finished, unless the signal comes again."""
        stops: asyncio.Queue[None] = asyncio.Queue()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stops.put_nowait, None)
        await stops.get()
        drain, again = asyncio.create_task(self.drain()), asyncio.create_task(stops.get())
        await asyncio.wait((drain, again), return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, again):
            task.cancel()
        await self.close()

    async def drain(self) -> None:
        """Listen no more, so that another server may at once; take nothing new, and finish what is under way."""
        if self._server is not None:
            self._server.close(close_connections=False)
        await super().drain()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close(close_connections=False)
        await self.end()
        if self._server is not None:
            await self._server.wait_closed()
        self.thread.stop()

    async def _on_connection(self, connection: ServerConnection) -> None:
        await self.attend(Socket(connection), getattr(connection, "holder", None))

    def _on_request(self, connection: ServerConnection, request: Request) -> HttpResponse | None:
        found = self.answer(request.path.split("?")[0], request.headers.get_all("Authorization"))
        if not isinstance(found, Response):
            connection.holder = found  # type: ignore[attr-defined]  # for the session that it becomes
            return None
        response = connection.respond(HTTPStatus(found.status), found.body)
        del response.headers["Content-Type"]
        response.headers.update(found.headers)
        return response
