"""Who may call the gateway: by host name, by origin, and by key where there is one.

Requests from web pages of other origins, or under another host name (DNS rebinding), are refused, so that no foreign
page speaks to the gateway unseen. This module does not know what the routes do.
Test: pytest tests/device/test_gateway.py
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sideplug.device.gateway.openai_api import error_body
from sideplug.sockets import LOOPBACK

EVERYWHERE = ("0.0.0.0", "::")  # a machine that listens here has many names, so only the key tells who may call


@dataclass(frozen=True)
class AccessRules:
    """key: what callers must give ("": nothing). origins: web pages from elsewhere that may call. hosts: names that the
    gateway answers to, besides loopback's. open_paths: what is served without the key, such as the page's files."""

    key: str = ""
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    open_paths: frozenset[str] = frozenset()


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
        rules = self._rules
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        any_host = rules.key and any(name in EVERYWHERE for name in rules.hosts)
        if _hostname(host) not in (*LOOPBACK, *rules.hosts) and not any_host:
            return error_response(403, f"this gateway does not answer to the name {host[:80]!r}", "wrong_host")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}", *rules.origins):
            message = f"calls from pages of {origin[:80]} are not allowed (--allow-origin)"
            return error_response(403, message, "wrong_origin")
        if rules.key and request.scope["path"] not in rules.open_paths:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), rules.key.encode()):
                return error_response(401, "this gateway wants its key: Authorization: Bearer …", "invalid_api_key")
        return None


def error_response(status: int, message: str, code: str) -> JSONResponse:
    """Return OpenAI's error object as a response."""
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return JSONResponse(error_body(message, kind, code), status)


def _hostname(host: str) -> str:
    """The name in a Host header without its port; "" for a header that holds no name."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname or "" if parts.netloc == host else ""
    except ValueError:
        return ""
