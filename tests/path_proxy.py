"""A reverse proxy that gives a server a path, as nginx does with `location /llm/ { proxy_pass http://…/; }`."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _serve(client: socket.socket, port: int, prefix: bytes, asked: list[str]) -> None:
    with client, contextlib.suppress(OSError):
        data = b""
        while b"\r\n\r\n" not in data:
            data += client.recv(1 << 16)
        line, _, rest = data.partition(b"\r\n")
        method, path, version = line.split(b" ")
        asked.append(path.decode())
        if path == prefix:  # as nginx: the folder, with a slash
            client.sendall(b"HTTP/1.1 301 Moved\r\nLocation: " + prefix + b"/\r\nContent-Length: 0\r\n\r\n")
            return
        if not path.startswith(prefix + b"/"):
            client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        upgrade = b"upgrade: websocket" in data.lower()
        close = b"" if upgrade else b"Connection: close\r\n"
        kept = b"\r\n".join(each for each in rest.split(b"\r\n") if upgrade or b"connection:" not in each.lower())
        with socket.create_connection(("127.0.0.1", port)) as server:
            server.sendall(b" ".join((method, path[len(prefix) :], version)) + b"\r\n" + close + kept)
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            _pump(client, server)
            back.join(30)


@contextlib.contextmanager
def a_path_proxy(url: str, prefix: str) -> Iterator[tuple[str, list[str]]]:
    """(host:port of the proxy, the paths that it was asked for) before the server at this URL."""
    port, asked = int(url.rstrip("/").rsplit(":", 1)[1]), list[str]()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    arguments = (listener.accept()[0], port, prefix.encode(), asked)
                    threading.Thread(target=_serve, args=arguments, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", asked
