"""Listening sockets: a server reserves its address before it loads a model, so a taken port is an error at once.

It does not know what a server does. Test: pytest tests/test_cli.py
"""

from __future__ import annotations

import errno
import socket

from sideplug.contract.errors import Stopped

LOOPBACK = ("localhost", "127.0.0.1", "::1")  # hosts that mean this machine, for servers and clients


def bind(host: str, port: int) -> socket.socket:
    """Reserve an address; return its socket, which does not listen yet. port 0: any free port. Raises Stopped."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise not_listening(host, port, error) from error
    return listener


def not_listening(host: str, port: int, error: OSError) -> Stopped:
    """Return the error for an address on which a server can't listen."""
    if error.errno == errno.EADDRINUSE:
        return Stopped(f"port {port} on {host} is taken: stop what uses it, or give another --port")
    return Stopped(f"can't listen on {host}:{port}: {error.strerror or error}")
