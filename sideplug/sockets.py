"""An address to listen on, reserved before the work that takes long: a port that is taken is said at once."""

from __future__ import annotations

import errno
import socket

from sideplug.contract.errors import Stopped

LOOPBACK = ("localhost", "127.0.0.1", "::1")  # names that mean this very machine, for a server and for a client


def bind(host: str, port: int) -> socket.socket:
    """Reserve an address before the model is loaded; nobody is listened to yet. Port 0: any. Raises Stopped."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise not_listening(host, port, error) from error
    return listener


def not_listening(host: str, port: int, error: OSError) -> Stopped:
    """Why an address can't be listened on, in one sentence."""
    if error.errno == errno.EADDRINUSE:
        return Stopped(f"port {port} on {host} is taken: stop what uses it, or give another --port")
    return Stopped(f"{host}:{port} can't be listened on: {error.strerror or error}")
