"""The WebSocket server: a Service that listens on a socket of its own. /v1/session is the WebSocket of docs/WIRE.md.

The cloud uses sockets here and nowhere else. It does not know frames. Test: pytest tests/cloud/test_server.py
"""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import Sequence
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request
from websockets.http11 import Response as HttpResponse
from websockets.typing import Subprotocol

from sideplug.cloud.access import SUBPROTOCOL, Caller
from sideplug.cloud.inbound import BoundedConnection
from sideplug.cloud.service import Response, Service
from sideplug.cloud.session import Gone
from sideplug.sockets import not_listening

NO_ROOM_S = 0.5  # until a key that has no room is told so
PING_S, PONG_S = 10.0, 20.0  # a device that does not answer a ping within PONG_S is taken to be gone


class WebSocketConnection:
    """A connection of the `websockets` library as a session's Connection."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection

    async def recv(self) -> bytes | str:
        """Return the next message. Raises Gone."""
        try:
            return await self._connection.recv()
        except ConnectionClosed as error:
            raise Gone from error

    async def send(self, message: bytes) -> None:
        """Send a message, and wait while the device does not read. Raises Gone."""
        try:
            await self._connection.send(message)
        except ConnectionClosed as error:
            raise Gone from error

    async def close(self, code: int, reason: str) -> None:
        """Close the connection with a WebSocket close code and a reason."""
        await self._connection.close(code, reason)

    def abort(self) -> None:
        """Cut the connection at once."""
        self._connection.transport.abort()


class CloudServer(Service):
    """A base model served at an address: call `start`, then `serve_until_stopped` or `close`."""

    _server: Server | None = None

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> str:
        """Listen on the socket of `bind`; return the URL. Raises Stopped if another process listens there already."""
        if tls is not None:
            # A device reads and writes in two threads, which OpenSSL's state does not allow: a session ticket that
            # arrives while the first request is written can make the device wait for ever (9 of 3,600 connections).
            tls.num_tickets = 0
        host, port = listener.getsockname()[:2]
        try:
            self._server = await serve(
                self._on_connection,
                sock=listener,
                ssl=tls,
                compression=None,  # codes do not compress, and the deflate state would cost each session 300 KB
                max_size=self.limits.message_bytes,
                create_connection=BoundedConnection,
                process_request=self._on_request,
                select_subprotocol=_our_protocol,
                server_header=None,
                ping_interval=PING_S,
                ping_timeout=PONG_S,
            )
        except OSError as error:
            raise not_listening(host, port, error) from error
        self.begin()
        return f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"

    async def serve_until_stopped(self) -> None:
        """Serve until SIGINT or SIGTERM, then finish the running work and close; a second signal closes at once."""
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
        """Finish the running work, then stop listening; until then /ready and new sessions are answered with 503."""
        await super().drain()
        if self._server is not None:
            self._server.close(close_connections=False)

    async def close(self) -> None:
        """Stop listening, end all sessions, and stop the engine's thread."""
        if self._server is not None:
            self._server.close(close_connections=False)
        await self.end()
        if self._server is not None:
            await self._server.wait_closed()
        self.thread.stop()
        self.shared.aside.stop()

    async def _on_connection(self, connection: ServerConnection) -> None:
        await self.attend(WebSocketConnection(connection), getattr(connection, "holder", None))

    async def _on_request(self, connection: ServerConnection, request: Request) -> HttpResponse | None:
        """Return the response to an HTTP request, or None to accept it as a WebSocket.

        A key that has no room is answered after a pause, so that who asks again at once is no work.
        """
        peer = connection.remote_address
        headers = request.headers
        caller = Caller(
            headers.get_all("Authorization"),
            ",".join(headers.get_all("Origin")),
            [each.strip() for line in headers.get_all("Sec-WebSocket-Protocol") for each in line.split(",")],
            str(peer[0]) if isinstance(peer, tuple) and peer else "",
        )
        answer = self.respond(request.path.split("?")[0], caller)
        if not isinstance(answer, Response):
            connection.holder = answer  # type: ignore[attr-defined]  # for the session
            return None
        if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
            await asyncio.sleep(NO_ROOM_S)
        response = connection.respond(HTTPStatus(answer.status), answer.body)
        del response.headers["Content-Type"]
        response.headers.update(answer.headers)
        return response


def _our_protocol(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Ours, where a web page offers it; never the one that is its key."""
    return Subprotocol(SUBPROTOCOL) if SUBPROTOCOL in offered else None
