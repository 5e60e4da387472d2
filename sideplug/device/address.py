"""A cloud's address: its URL, the certificate that the device trusts, and the key that the device sends.

It knows HTTP and TLS, and does not know WebSockets or frames. Test: pytest tests/device/test_link.py
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import json
import re
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sideplug.contract.defaults import DEFAULT_URL
from sideplug.contract.errors import CloudError, InputError, Unauthorized, Unreachable
from sideplug.contract.printable import one_line
from sideplug.contract.wire import PATH
from sideplug.paths import local_key_file
from sideplug.sockets import LOOPBACK

KEY = re.compile(r"[\x21-\x7e]{1,1024}")
MAX_BODY_BYTES = 16 << 20  # of a response to a plain request
MAX_REASON = 300  # characters of a refusal's reason that are shown
PIN = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Proxy:
    """A proxy, and the variable of the environment that names it."""

    url: str
    variable: str

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else self.url  # no password
        return f"the proxy {place} ({self.variable})"


@dataclass(frozen=True)
class Address:
    """The address of a cloud, and how the two sides identify themselves.

    url: ws://, wss://, http:// or https://, a host, and where a proxy needs it a path, which stands before all paths of
    the cloud.
    ca: a PEM file of authorities to trust besides the system's. key: "" for none; for a cloud on this machine, the key
    that `sideplug serve` left here is used then. pin: `sha256:` and the hex SHA-256 of the server's certificate (DER);
    then the device trusts this certificate only, and checks neither authority nor name. retry_s: seconds to keep
    reconnecting when a connection breaks; 0: do not reconnect.

    Raises InputError for values that can't be used, or that would send a key unencrypted.

    >>> sideplug.Address("wss://mill.example:8765", key="sp-7f").endpoint
    'wss://mill.example:8765/v1/session'
    >>> sideplug.Address("https://mill.example/cloud/").endpoint
    'wss://mill.example/cloud/v1/session'
    """

    url: str = DEFAULT_URL
    ca: Path | None = None
    key: str = field(default="", repr=False)
    pin: str = ""
    retry_s: float = 60.0

    def __post_init__(self) -> None:
        if self.scheme not in ("ws", "wss"):
            raise InputError(f"the cloud's address must look like {DEFAULT_URL} or wss://host, got {self.url!r}")
        if re.search(r"[?#\s]", self.url):
            raise InputError(f"the cloud's address must have no ?, # or space, got {self.url!r}")
        if self.ca is not None and not self.ca.is_file():
            raise InputError(f"there is no certificate file {self.ca}")
        if self.pin and not PIN.fullmatch(self.pin.lower()):
            raise InputError(f"a pin must look like sha256: and 64 hex digits, got {self.pin[:80]!r}")
        if self.pin and self.scheme == "ws":
            raise InputError(f"a pin needs a certificate, and {self.url} has none: give a wss:// address")
        if self.key and not KEY.fullmatch(self.key):
            raise InputError("the cloud's key must be one word of ASCII letters, digits and signs, like sp-…")
        if self.key and self.scheme == "ws" and not self.is_local:
            raise InputError(f"the key would travel to {self.url} in the clear: give a wss:// address")

    @property
    def host(self) -> str:
        """Return the host's name, or "" if `url` is not a valid address."""
        try:
            parts = urlsplit(self.url)
            return parts.hostname or "" if parts.port != 0 else ""
        except ValueError:  # for example a port that is no number
            return ""

    @property
    def scheme(self) -> str:
        """Return the WebSocket scheme, ws or wss; any other value means that `url` can't be used."""
        scheme = urlsplit(self.url).scheme if self.host else ""
        return {"http": "ws", "https": "wss"}.get(scheme, scheme)

    @property
    def is_local(self) -> bool:
        """Return whether the cloud is on this machine."""
        return self.host in LOOPBACK

    @property
    def endpoint(self) -> str:
        """Return the URL of the WebSocket."""
        return self.at(PATH)

    def at(self, path: str) -> str:
        """Return the URL of one of the cloud's paths; but for the WebSocket's it is an http one."""
        parts = urlsplit(self.url)
        prefix = parts.path.rstrip("/").removesuffix(PATH).rstrip("/")
        scheme = self.scheme if path == PATH else {"ws": "http", "wss": "https"}[self.scheme]
        return f"{scheme}://{parts.netloc}{prefix}{path}"

    @property
    def proxy(self) -> Proxy | None:
        """Return the proxy that the environment sets for this address; None for none, and for this machine."""
        if self.is_local or urllib.request.proxy_bypass(urlsplit(self.url).netloc.rpartition("@")[2]):
            return None
        proxies = urllib.request.getproxies()
        names = ("wss", "socks", "https") if self.scheme == "wss" else ("ws", "socks", "https", "http")
        kind = next((name for name in names if proxies.get(name)), None)
        return Proxy(proxies[kind], f"{kind.upper()}_PROXY") if kind else None

    @property
    def bearer(self) -> str:
        """Return the key to send, or "" for none."""
        if self.key or not self.is_local:
            return self.key
        with contextlib.suppress(OSError, ValueError):
            kept = local_key_file().read_text("ascii").strip()
            return kept if KEY.fullmatch(kept) else ""
        return ""

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS settings, or None for ws."""
        if self.scheme == "ws":
            return None
        if self.pin:
            return _pinned(self.pin.lower(), self.url)
        context = ssl.create_default_context()
        if self.ca is not None:
            context.load_verify_locations(self.ca)
        return context


def refusal_reason(body: bytes) -> str:
    """Return on one line why a cloud refuses, from the JSON body of its response; "" if it is something else."""
    reason = ""
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        reason = str(json.loads(body)["error"])
    return one_line(reason)[:MAX_REASON]


def get(address: Address, path: str, timeout_s: float = 10.0) -> str:
    """Return the body of the cloud's response to GET `path`. Raises Unreachable, Unauthorized, CloudError."""
    return get_with_date(address, path, timeout_s)[0]


def get_with_date(address: Address, path: str, timeout_s: float = 10.0) -> tuple[str, str]:
    """Return (the body, the Date that the response tells, "" for none) as `get` does."""
    url = address.at(path)
    headers = {"Authorization": f"Bearer {address.bearer}"} if address.bearer else {}
    handlers: list[Any] = [urllib.request.HTTPSHandler(context=address.tls())] if address.scheme == "wss" else []
    if address.is_local:
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout_s) as answer:
            body: bytes = answer.read(MAX_BODY_BYTES + 1)
            if len(body) > MAX_BODY_BYTES:
                raise CloudError(f"{url} answers with more than {MAX_BODY_BYTES >> 20} MiB: it is no sideplug cloud")
            return body.decode(), answer.headers.get("Date", "")
    except urllib.error.HTTPError as error:
        kind = Unauthorized if error.code == 401 else CloudError
        raise kind(refusal_reason(error.read(1000)) or f"{url} says HTTP {error.code}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, Unreachable):
            raise reason from error
        raise unreachable(address, reason) from error


def unreachable(address: Address, reason: object) -> Unreachable:
    """Return the error for an address at which no cloud answers; a proxy on the way is named, because it may be why."""
    why = getattr(reason, "strerror", None) or reason or "no answer"
    if address.proxy:
        way = f"through {address.proxy}, which may not run: NO_PROXY={address.host} goes without it"
        return Unreachable(f"no cloud answers at {address.url} ({why}) {way}")
    hint = "start one with sideplug serve, or give its --cloud address"
    return Unreachable(f"no cloud answers at {address.url} ({why}): {hint}")


def _pinned(pin: str, url: str) -> ssl.SSLContext:
    """Return TLS settings that trust one certificate only; the handshake checks it before the device sends any data."""

    def check(socket: Any) -> None:
        fingerprint = f"sha256:{hashlib.sha256(socket.getpeercert(binary_form=True) or b'').hexdigest()}"
        if not hmac.compare_digest(fingerprint, pin):
            raise Unreachable(f"the certificate of {url} is {fingerprint}, and not {pin}, which --pin asks for")

    class PinnedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            try:
                check(self)
            except Unreachable:
                self.close()
                raise

    class PinnedObject(ssl.SSLObject):  # used for TLS inside TLS, through a proxy
        def do_handshake(self) -> None:
            super().do_handshake()
            check(self)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.sslsocket_class = PinnedSocket
    context.sslobject_class = PinnedObject
    return context
