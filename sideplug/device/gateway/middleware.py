"""Who may call the gateway: by host name, by origin, and by key where there is one; and what stands around each answer.

Requests from web pages of other origins, or under another host name (DNS rebinding), are refused, so that no foreign
page speaks to the gateway unseen. This module does not know what the routes do.
Test: pytest tests/device/test_gateway.py
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sideplug.contract.errors import InputError
from sideplug.device.gateway import messages_api
from sideplug.device.gateway.openai_reply import error_body
from sideplug.sockets import LOOPBACK

EVERYWHERE = ("0.0.0.0", "::")  # a machine that listens here has many names, so only the key tells who may call
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+|null")
HOST = re.compile(r"[\w.-]+|[0-9a-f:.]+")
ANY = "*"
# Of every answer: it is of the type that it says, and stands in no other page. The page's own files allow more.
AROUND = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


@dataclass(frozen=True)
class AccessRules:
    """key: what callers must give ("": nothing). origins: web pages from elsewhere that may call. hosts: names that the
    gateway answers to, besides loopback's. open_paths: what is served without the key, such as the page's files."""

    key: str = ""
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    open_paths: frozenset[str] = frozenset()


def checked_origins(origins: Iterable[str], key: str) -> tuple[str, ...]:
    """Return the origins as browsers write them. Raises InputError for what is none, and for * without a key."""
    checked = []
    for origin in origins:
        plain = origin.strip().rstrip("/").lower()
        if plain == ANY and not key:
            raise InputError(
                "--allow-origin '*' would let every web page use your plugins: give a --key too, or name the pages "
                "(https://notes.example, app://obsidian.md)"
            )
        if plain != ANY and not ORIGIN.fullmatch(plain):
            raise InputError(f"--allow-origin must be like https://notes.example or app://obsidian.md, got {origin!r}")
        checked.append(plain)
    return tuple(checked)


def checked_hosts(hosts: Iterable[str]) -> tuple[str, ...]:
    """Return the names of --allow-host as they are compared. Raises InputError for what is no name."""
    names = [host.strip().strip("[]").rstrip(".").lower() for host in hosts]
    wrong = next((host for host, name in zip(hosts, names, strict=True) if not HOST.fullmatch(name)), None)
    if wrong is not None:
        raise InputError(f"--allow-host must be a name without port or path, like host.docker.internal, got {wrong!r}")
    return tuple(names)


class Edge:
    """What is so of every request and answer: plain paths come in, and AROUND stands around what goes out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on (ASGI). Doubled slashes count as one, and one at the end as none."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = re.sub("/{2,}", "/", scope["path"])

        async def send_around(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in AROUND.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app({**scope, "path": path.rstrip("/") or "/"}, receive, send_around)


class AccessMiddleware:
    """Answers refused requests itself, before any route sees them."""

    def __init__(self, app: ASGIApp, rules: AccessRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it (ASGI)."""
        if scope["type"] == "http":
            refusal = self._refusal(Request(scope))
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        rules, path = self._rules, request.scope["path"]
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        any_host = rules.key and any(name in EVERYWHERE for name in rules.hosts)
        if _hostname(host) not in (*LOOPBACK, *rules.hosts) and not any_host:
            message = f"this gateway does not answer to the name {host[:80]!r}: --allow-host lets it"
            return error_response(403, message, "wrong_host", path)
        if origin is not None and not self._may_call(origin.lower(), host.lower()):
            message = f"calls from pages of {origin[:80]} are not allowed (--allow-origin)"
            return error_response(403, message, "wrong_origin", path)
        if rules.key and path not in rules.open_paths:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            given = given if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
            if not hmac.compare_digest(given.strip().encode(), rules.key.encode()):
                message = "this gateway wants its key: Authorization: Bearer …"
                return error_response(401, message, "invalid_api_key", path)
        return None

    def _may_call(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may call: the gateway's own, or one that was allowed."""
        allowed = self._rules.origins
        return origin in (f"http://{host}", f"https://{host}", *allowed) or ANY in allowed


def error_response(status: int, message: str, code: str, path: str = "") -> JSONResponse:
    """Return OpenAI's error object as a response, or Anthropic's where `path` is of its API."""
    if path.startswith("/v1/messages"):
        return JSONResponse(messages_api.error_body(status, message), status)
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return JSONResponse(error_body(message, kind, code), status)


def _hostname(host: str) -> str:
    """The name in a Host header without its port and a dot at its end; "" for a header that holds no name."""
    try:
        parts = urlsplit(f"//{host}")
        return (parts.hostname or "").rstrip(".") if parts.netloc == host else ""
    except ValueError:
        return ""
