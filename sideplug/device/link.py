"""A link: the device's end of the connection to a cloud. It sends and receives frames and counts their bytes.

Two methods are the whole network, `send` and `receive`, so a test can replace the link by one without a socket. It does
not know what frames mean. Test: pytest tests/device/test_link.py
"""

from __future__ import annotations

import logging
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidProxyStatus,
    InvalidStatus,
    InvalidURI,
    ProxyError,
)
from websockets.http11 import Response
from websockets.sync.client import ClientConnection, connect

from sideplug.contract.errors import Busy, CloudError, InputError, Unauthorized, Unreachable, from_wire
from sideplug.contract.frames import Error, Frame
from sideplug.contract.printable import one_line
from sideplug.contract.wire import MAX_FRAME_BYTES, decode, encode
from sideplug.device.address import MAX_REASON, Address, refusal_reason, unreachable

Record = Callable[[str, bytes], None]  # (">" up or "<" down, message); its session may stand before it: "7>"
CONNECT_TIMEOUT_S = 10.0
REPLY_TIMEOUT_S = 300.0
PING_S, PONG_S = 10.0, 20.0  # a cloud that does not answer a ping within PONG_S is taken to be gone
CLOSE_S = 2.0  # how long to wait for the other side's closing handshake
log = logging.getLogger("sideplug.link")  # of websockets: users see our errors instead, and nothing of the library's
log.addHandler(logging.NullHandler())
log.propagate = False


class Link(Protocol):
    """Sends and receives frames. down, up: bytes of messages by kind, without the overhead of TCP and TLS."""

    down: Counter[str]
    up: Counter[str]
    check: Callable[[Frame], None]  # what every frame that comes is held against

    def send(self, frame: Frame) -> None:
        """Send a frame. Raises CloudError."""
        ...

    def receive(self, timeout_s: float = REPLY_TIMEOUT_S) -> Frame:
        """Return the next frame. Raises the error that an ERROR frame carries, and CloudError."""
        ...

    def arrived(self) -> Frame | None:
        """Return the next frame if it has arrived already, else None. Raises as `receive`."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


def _refusal(url: str, response: Response) -> CloudError:
    """Return the error for an HTTP response that is no session, with the server's own reason if it gives one."""
    kinds: dict[int, type[CloudError]] = {401: Unauthorized, 429: Busy, 503: Busy}
    kind = kinds.get(response.status_code)
    if kind is None:
        return Unreachable(f"{url} answers, but is no sideplug cloud: it says HTTP {response.status_code}")
    error = kind(refusal_reason(bytes(response.body or b"")) or f"{url} says HTTP {response.status_code}")
    wait = response.headers.get("Retry-After", "")
    if isinstance(error, Busy) and wait.isdigit():
        error.retry_s = float(wait[:6])
    return error


class WebSocketLink:
    """A link over one WebSocket."""

    def __init__(self, connection: ClientConnection, url: str, closing: ExitStack, record: Record | None) -> None:
        self._connection = connection
        self._url = url
        self._closing = closing
        self._record = record or (lambda direction, message: None)
        self.down: Counter[str] = Counter()
        self.up: Counter[str] = Counter()
        self._sent = self._received = 0
        self.closed = False
        self.check: Callable[[Frame], None] = lambda frame: None

    @classmethod
    def open(cls, address: Address, record: Record | None = None) -> WebSocketLink:
        """Connect to a cloud. `record` is called with (">" or "<", message) for each message.

        Raises Unreachable, Unauthorized, Busy, or InputError (an address that no connection can be made to).
        """
        url, key = address.url, address.bearer
        try:
            closing = ExitStack()
            connection = closing.enter_context(
                connect(
                    address.endpoint,
                    ssl=address.tls(),
                    additional_headers={"Authorization": f"Bearer {key}"} if key else None,
                    compression=None,
                    max_size=MAX_FRAME_BYTES,
                    open_timeout=CONNECT_TIMEOUT_S,
                    user_agent_header=None,
                    close_timeout=CLOSE_S,
                    ping_interval=PING_S,
                    ping_timeout=PONG_S,
                    proxy=True if address.proxy else None,
                    logger=log,
                )
            )
        except ssl.SSLCertVerificationError as error:
            raise Unreachable(f"the certificate of {url} is not trusted: {error.verify_message}") from error
        except InvalidURI as error:  # the address itself is well-formed, so it is one that a server named
            raise Unreachable(f"{url} answers, but is no sideplug cloud: it sends on to another address") from error
        except (InvalidProxy, ImportError) as error:
            why = "it needs the package python-socks" if isinstance(error, ImportError) else "its address is none"
            raise InputError(f"{address.proxy or 'the proxy'} can't be used: {why}") from error
        except ValueError as error:
            raise InputError(f"the cloud's address can't be used: {url}") from error
        except ProxyError as error:
            says = f" (it says HTTP {error.response.status_code})" if isinstance(error, InvalidProxyStatus) else ""
            raise Unreachable(f"{address.proxy or 'the proxy'} does not let through to {url}{says}") from error
        except InvalidStatus as error:
            raise _refusal(url, error.response) from error
        except InvalidHandshake as error:
            reason = one_line(str(error))[:MAX_REASON]
            raise Unreachable(f"{url} answers, but is no sideplug cloud: {reason}") from error
        except (OSError, TimeoutError, EOFError, ConnectionClosed) as error:
            raise unreachable(address, error) from error
        return cls(connection, url, closing, record)

    def send(self, frame: Frame) -> None:
        """Send a frame. Raises CloudError when the connection is lost."""
        message = encode(frame, self._sent)
        self._sent += 1
        try:
            self._connection.send(message)
        except (ConnectionClosed, OSError) as error:
            raise self._gone(error) from error
        self._record(">", message)
        self.up[frame.kind.name] += len(message)

    def receive(self, timeout_s: float = REPLY_TIMEOUT_S) -> Frame:
        """Return the next frame. Raises the error of an ERROR frame, and CloudError if the cloud is gone or silent."""
        try:
            return self._receive(timeout_s)
        except TimeoutError as error:
            raise CloudError(f"the cloud at {self._url} said nothing for {timeout_s:.0f} s") from error

    def arrived(self) -> Frame | None:
        """See Link."""
        try:
            return self._receive(0)
        except TimeoutError:
            return None

    def _receive(self, timeout_s: float) -> Frame:
        """Return the next frame. Raises as `receive`, and TimeoutError."""
        try:
            message = self._connection.recv(timeout_s)
        except TimeoutError:
            raise
        except (ConnectionClosed, OSError) as error:
            raise self._gone(error) from error
        if not isinstance(message, bytes):
            raise CloudError(f"{self._url} sent text: it is no sideplug cloud")
        frame = decode(message, self._received)
        self._received += 1
        self._record("<", message)
        self.down[frame.kind.name] += len(message)
        if isinstance(frame, Error):
            raise from_wire(frame.code, frame.message, frame.number, frame.retry_s)
        self.check(frame)
        return frame

    def _gone(self, error: Exception) -> CloudError:
        """Return why the connection ended, or raise the error of an ERROR frame that was not read yet."""
        try:
            while True:
                frame = decode(self._connection.recv(0))  # type: ignore[arg-type]
                if isinstance(frame, Error):
                    raise from_wire(frame.code, frame.message, None, frame.retry_s)
        except (ConnectionClosed, TimeoutError, OSError):
            pass
        reason = one_line(error.rcvd.reason) if isinstance(error, ConnectionClosed) and error.rcvd else ""
        return CloudError(f"the cloud at {self._url} closed the connection{': ' + reason if reason else ''}")

    def close(self) -> None:
        """See Link."""
        self.closed = True
        self._closing.close()
