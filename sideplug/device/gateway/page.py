"""The page's three files as responses: the browser asks again each time, and gets nothing anew where nothing changed.

The policy lets the page load its own files and call its own gateway, and nothing else. This module does not know what
the page does. Test: pytest tests/device/test_gateway.py
"""

from __future__ import annotations

import hashlib
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FILES = {  # by path: the file, its type
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """Return a route for each of the page's files."""
    return [_file_route(path, name, kind) for path, (name, kind) in FILES.items()]


def _file_route(path: str, name: str, kind: str) -> Route:
    content = (resources.files("sideplug.device.gateway") / "static" / name).read_bytes()
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}

    async def serve(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return Route(path, serve)
