"""The gateway: OpenAI's API and a page on this machine, with the person's plugins behind them.

    POST /v1/chat/completions, /v1/completions     streamed or whole
    GET  /v1/models                                the base, and the base with each plugin ("base+plugin")
    GET  /                                         the page; its own calls are below /sideplug/

A reply is made in a thread of its own; sessions with the cloud are kept for the next request with the same plugin.
Requests from other origins, or under another host name, are refused, so that no web page speaks to it unseen. It keeps
no text. It does not know how plugins are trained: a TrainingJob is passed in. Test: pytest tests/device/test_gateway.py
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from sideplug import __version__
from sideplug.contract.errors import CloudError, InputError, SideplugError, TooLong, UnknownModel, WrongBase
from sideplug.contract.gate import Gate
from sideplug.device import audit, openai_api
from sideplug.device.address import Address
from sideplug.device.link import Link, Record, WebSocketLink
from sideplug.device.openai_api import Asked, Defaults, Shape
from sideplug.device.plugin_store import PluginStore
from sideplug.device.reconnect import RetryPolicy
from sideplug.device.runtime import DecodeOptions, Model, Piece, Session
from sideplug.listen import LOOPBACK

MAX_BODY_BYTES = 32 << 20
EVERYWHERE = ("0.0.0.0", "::")  # listened on, a machine has many names: there the key alone tells who may come in
IDLE_SESSIONS = 4  # kept open, of all plugins together
log = logging.getLogger("sideplug.gateway")


class TrainingJob(Protocol):
    """Makes plugins, one at a time, in the background. `state` is told to the page as JSON."""

    def start(self, name: str, files: list[tuple[str, str]], settings: dict[str, Any]) -> None:
        """Raises InputError (bad data, a name that is taken, or one is being made already)."""
        ...

    def stop(self) -> None: ...

    @property
    def state(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Settings:
    """key: what callers must bear ("" for none). origins: web pages from elsewhere that may call. hosts: names that
    this gateway answers to, besides loopback's. replies: at once; further ones wait."""

    key: str = ""
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    replies: int = 8
    pace: DecodeOptions = DecodeOptions()
    defaults: Defaults = Defaults()


@dataclass
class Pool:
    """Sessions with the cloud, by plugin and gate: taken by one request at a time, kept for the next."""

    connect: Callable[[audit.Recent], Link]
    retry_s: float = 0.0  # how long a lost cloud is tried again
    _idle: list[tuple[Any, Session, audit.Recent]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    # The newest: its plugin's name, the plugin, its messages.
    last: tuple[str, Any, audit.Recent] = field(default_factory=lambda: ("", None, audit.Recent()))

    @contextlib.contextmanager
    def session(self, name: str, plugin: Any, gate: Gate | None) -> Iterator[Session]:
        """A session that nobody else uses. What it sent and got stays in memory, for the audit."""
        mark = (name, id(plugin), gate.threshold if gate else None, gate.kind if gate else None)
        session, record = self._take(mark) or self._open(plugin, gate)
        self.last = (name, plugin, record)
        try:
            yield session
        except BaseException:
            session.link.close()
            raise
        with self._lock:
            self._idle.append((mark, session, record))
            spare = [self._idle.pop(0) for _ in range(len(self._idle) - IDLE_SESSIONS)]
        for _, old, _ in spare:
            old.link.close()

    def _take(self, mark: Any) -> tuple[Session, audit.Recent] | None:
        """An idle session that is still alive."""
        while True:
            with self._lock:
                found = next((entry for entry in reversed(self._idle) if entry[0] == mark), None)
                if found is None:
                    return None
                self._idle.remove(found)
            _, session, record = found
            try:
                session.link.arrived()
                return session, record
            except SideplugError:
                session.link.close()

    def _open(self, plugin: Any, gate: Gate | None) -> tuple[Session, audit.Recent]:
        record = audit.Recent()
        connect = partial(self.connect, record)
        again = RetryPolicy(self.retry_s, log.warning)
        return Session.open(connect(), plugin, gate=gate, connect=connect, again=again), record

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for _, session, _ in idle:
            session.link.close()


class Gateway:
    """`app` is what a server runs; `model` what the cloud serves, known from the first session on. `record` hears all
    messages with the cloud (--transcript)."""

    def __init__(
        self,
        shelf: PluginStore,
        cloud: Address,
        settings: Settings = Settings(),
        teacher: TrainingJob | None = None,
        record: Record | None = None,
    ) -> None:
        self.shelf = shelf
        self.cloud = cloud.url
        self.settings = settings
        self.teacher = teacher

        def connect(recent: audit.Recent) -> Link:
            def both(direction: str, message: bytes) -> None:
                recent(direction, message)
                if record:
                    record(direction, message)

            return WebSocketLink.open(cloud, both)

        self.pool = Pool(connect, cloud.retry_s)
        self._model: Model | None = None
        self.room = asyncio.Semaphore(settings.replies)
        self.app = self._make_app()

    # ── the API ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _completions(self, request: Request) -> Response:
        chat = request.scope["path"].endswith("chat/completions")
        asked = openai_api.parse(await _body(request), chat, self.settings.defaults)
        model = await run_in_threadpool(self.model)
        name = self._plugin_name(asked.model, model)
        run = Run(self, asked, name, Shape(asked, f"{model.name}+{name}" if name else model.name, model.fingerprint))
        await run.begin()
        if asked.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(run.events(), media_type="text/event-stream", headers=headers)
        return JSONResponse(await run.whole(request))

    async def _models(self, request: Request) -> Response:
        model = await run_in_threadpool(self.model)
        names = [model.name, *(f"{model.name}+{entry.name}" for entry in self.shelf.entries())]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "sideplug"} for name in names]
        if "name" in request.path_params:
            wanted = request.path_params["name"]
            found = [entry for entry in data if entry["id"] == wanted]
            if not found:
                raise UnknownModel(f"there is no model {wanted[:80]!r} here; there are: {', '.join(names)}")
            return JSONResponse(found[0])
        return JSONResponse({"object": "list", "data": data})

    def model(self) -> Model:
        """What the cloud serves. Raises Unreachable, CloudError."""
        if self._model is None:
            with self.pool.session("", None, None) as session:
                self._model = session.model
        return self._model

    def forget_model(self) -> None:
        """The cloud may have come back with another one."""
        self._model = None

    def _plugin_name(self, wanted: str, model: Model) -> str:
        """ "" for the base. A plugin goes by "base+plugin", or by its own name. Raises UnknownModel."""
        entries = [entry.name for entry in self.shelf.entries()]
        if wanted in ("", model.name):
            return ""
        for name in entries:
            if wanted in (name, f"{model.name}+{name}"):
                return name
        names = ", ".join([model.name, *(f"{model.name}+{name}" for name in entries)])
        raise UnknownModel(f"there is no model {wanted[:80]!r} here; there are: {names}")

    # ── the page ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _page(self, request: Request) -> Response:
        page = (resources.files("sideplug.device") / "page.html").read_text("utf-8")
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
        headers = {"Content-Security-Policy": policy + "img-src data:; base-uri 'none'; form-action 'none'"}
        return HTMLResponse(page, headers={**headers, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"})

    async def _state(self, request: Request) -> Response:
        """What the page shows: the cloud and its model (or why not), the plugins, the teacher."""
        about: dict[str, Any] = {"version": __version__, "cloud": self.cloud, "model": None, "error": None}
        try:
            model = await run_in_threadpool(self.model)
            about["model"] = {name: getattr(model, name) for name in Model.__dataclass_fields__}
        except SideplugError as error:
            about["error"] = str(error)
        plugins = [await run_in_threadpool(self._about, entry.name, entry.sealed) for entry in self.shelf.entries()]
        return JSONResponse({**about, "plugins": plugins, "teacher": self.teacher.state if self.teacher else None})

    def _about(self, name: str, sealed: bool) -> dict[str, Any]:
        about: dict[str, Any] = {"name": name, "sealed": sealed, "own": self.shelf.is_own(name), "error": None}
        try:
            plugin = self.shelf.load(name)
        except SideplugError as error:
            return {**about, "error": str(error)}
        fits = self._model is None or plugin.base == self._model.fingerprint
        return {
            **about,
            "fits": fits,
            "dial": bool(plugin.gate.dial),
            "parameters": plugin.size,
            "base": plugin.base_name,
            "about": plugin.about,
        }

    async def _audit(self, request: Request) -> Response:
        name, plugin, record = self.pool.last

        def look() -> dict[str, Any]:
            found = audit.report(record, plugin)
            return {**found.to_json(), "plugin": name, "lines": list(found.lines()), "dropped": record.dropped}

        return JSONResponse(await run_in_threadpool(look))

    async def _teach(self, request: Request) -> Response:
        if self.teacher is None:
            raise InputError("this gateway does not train")
        if request.method == "DELETE":
            self.teacher.stop()
        else:
            given = _object(await _body(request), "name", "files")
            files = given["files"]
            if not isinstance(files, list) or not all(
                isinstance(f, dict) and isinstance(f.get("name"), str) and isinstance(f.get("text"), str) for f in files
            ):
                raise InputError("files must be a list of {name, text}, each text UTF-8")
            named = [(str(f["name"]), str(f["text"])) for f in files]
            settings = given.get("settings") or {}
            if not isinstance(settings, dict):
                raise InputError("settings must be an object")
            await run_in_threadpool(self.teacher.start, str(given["name"]), named, settings)
        return JSONResponse(self.teacher.state)

    async def _plugin(self, request: Request) -> Response:
        name = request.path_params["name"]
        passphrase = unquote(request.headers.get("x-passphrase", ""))  # a header is Latin-1, and loses outer spaces
        if request.method == "DELETE":
            await run_in_threadpool(self.shelf.delete, name)
        elif request.method == "PATCH":
            given = _object(await _body(request), "name")
            await run_in_threadpool(self.shelf.rename, name, str(given["name"]))
        elif request.method == "PUT":
            await run_in_threadpool(self.shelf.import_, name, await _body(request), passphrase)
        else:
            file = await run_in_threadpool(self.shelf.export, name, passphrase)
            headers = {"Content-Disposition": f"attachment; filename*=utf-8''{quote(name)}.sideplug"}
            return Response(file, media_type="application/octet-stream", headers=headers)
        return JSONResponse({"plugins": [entry.name for entry in self.shelf.entries()]})

    # ── the app ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _make_app(self) -> Starlette:
        routes = [
            Route("/v1/chat/completions", self._completions, methods=["POST"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._models),  # a base of the hub's has a / in its name
            Route("/", self._page),
            Route("/sideplug/state", self._state),
            Route("/sideplug/audit", self._audit),
            Route("/sideplug/teach", self._teach, methods=["POST", "DELETE"]),
            Route("/sideplug/plugins/{name}", self._plugin, methods=["GET", "PUT", "PATCH", "DELETE"]),
            Route("/health", lambda request: JSONResponse({"status": "ok", "version": __version__})),
        ]
        middleware = [Middleware(Door, settings=self.settings)]
        if self.settings.origins:
            origins = list(self.settings.origins)
            cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
            middleware.insert(0, cors)
        handlers: dict[Any, Any] = {404: _no_such_path, 405: _no_such_path, 500: _failed}
        handlers |= {SideplugError: _refused, ClientDisconnect: _left}
        return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)

    async def serve(self, listener: socket.socket, ready: Callable[[str], None] = lambda url: None) -> None:
        """Until SIGINT or SIGTERM. `ready` hears the address."""
        host, port = listener.getsockname()[:2]
        config = uvicorn.Config(self.app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=3)
        server = Server(config)
        listener.listen(128)
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        try:
            await server.serve(sockets=[listener])
        finally:
            self.pool.close()


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again when it has ended; this one was told to end, and did."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self.handle_exit, number, None)
        yield


class Run:
    """One reply: made in a thread, told chunk by chunk to whoever asked, given up when they have left."""

    def __init__(self, gateway: Gateway, asked: Asked, name: str, shape: Shape) -> None:
        self._gateway = gateway
        self._asked = asked
        self._name = name
        self._shape = shape
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        self._left = threading.Event()
        self._first: dict[str, Any] | Exception | None = None
        self._usage: Any = None

    async def begin(self) -> None:
        """Wait for a place and for the first sign of the reply, so that an error then is an error's status."""
        await self._gateway.room.acquire()
        threading.Thread(target=self._work, name="reply", daemon=True).start()
        try:
            self._first = await self._queue.get()
        except asyncio.CancelledError:
            self._left.set()
            raise
        if isinstance(self._first, Exception):
            raise self._first

    def _tell(self, what: dict[str, Any] | Exception | None) -> None:
        self._in_loop(self._queue.put_nowait, what)

    def _in_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the gateway has stopped
            self._loop.call_soon_threadsafe(function, *arguments)

    def _work(self) -> None:
        asked, gateway = self._asked, self._gateway
        try:
            plugin = gateway.shelf.load(self._name) if self._name else None
            gate = None
            if asked.gate_rate is not None and plugin is not None:
                gate = plugin.gate.at_rate(asked.gate_rate)
            pace = DecodeOptions(**{**vars(gateway.settings.pace), "top": asked.top})
            with gateway.pool.session(self._name, plugin, gate) as session:
                if session.model.fingerprint[:16] != self._shape.fingerprint[:16]:
                    raise CloudError(f"the cloud serves {session.model.name} now: ask again")
                pieces = session.generate(asked.prompt, asked.max_tokens, asked.sampling, pace)
                with contextlib.closing(pieces):
                    for chunk in openai_api.chunks(self._shape, self._watched(pieces), lambda: session.usage):
                        self._tell(chunk)
                self._usage = session.usage
            self._tell(None)
        except Exception as error:
            if isinstance(error, (CloudError, WrongBase)):
                gateway.forget_model()
            elif not isinstance(error, SideplugError):
                log.exception("a reply failed")
            self._tell(error)
        finally:
            self._in_loop(self._gateway.room.release)

    def _watched(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The pieces, until whoever asked has left."""
        for piece in pieces:
            if self._left.is_set():
                return
            yield piece

    async def _chunks(self) -> AsyncIterator[dict[str, Any] | Exception]:
        try:
            found = self._first
            while found is not None:
                yield found
                if isinstance(found, Exception):
                    return
                found = await self._queue.get()
        finally:
            self._left.set()

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events; an error in the middle is an event of its own, and the last."""
        async for chunk in self._chunks():
            if isinstance(chunk, Exception):
                yield openai_api.event(openai_api.error(chunk)[1])
                return
            yield openai_api.event(chunk)
        if self._asked.include_usage or self._asked.detail:
            yield openai_api.event(self._shape.usage(self._usage))
        yield openai_api.DONE

    async def whole(self, request: Request) -> dict[str, Any]:
        chunks: list[dict[str, Any]] = []
        async for chunk in self._chunks():
            if isinstance(chunk, Exception):
                raise chunk
            chunks.append(chunk)
            if await request.is_disconnected():
                self._left.set()
        return self._shape.whole(chunks, self._usage)


class Door:
    """Who may come in: by host name, by origin, and by key where there is one. Runs before everything else."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            refusal = self._refusal(Request(scope))
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        anywhere = self._settings.key and any(name in EVERYWHERE for name in self._settings.hosts)
        if _hostname(host) not in (*LOOPBACK, *self._settings.hosts) and not anywhere:
            return _error(403, f"this gateway does not answer to the name {host[:80]!r}", "wrong_host")
        own = (f"http://{host}", f"https://{host}")
        if origin is not None and origin not in (*own, *self._settings.origins):
            return _error(403, f"calls from pages of {origin[:80]} are not allowed (--allow-origin)", "wrong_origin")
        key = self._settings.key
        if key and request.scope["path"] not in ("/", "/health"):
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), key.encode()):
                return _error(401, "this gateway wants its key: Authorization: Bearer …", "invalid_api_key")
        return None


def _hostname(host: str) -> str:
    """The name in a Host header, without its port; "" for what is none."""
    try:
        parts = urlsplit(f"//{host}")
        return parts.hostname or "" if parts.netloc == host else ""
    except ValueError:
        return ""


async def _body(request: Request) -> bytes:
    """Raises InputError for one that is too large."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise TooLong(f"the body must have at most {MAX_BODY_BYTES >> 20} MiB")
        parts.append(part)
    return b"".join(parts)


def _object(body: bytes, *needed: str) -> dict[str, Any]:
    given = openai_api.json_object(body)
    if any(name not in given for name in needed):
        raise InputError(f"the body must be an object with {' and '.join(needed)}")
    return given


def _error(status: int, message: str, code: str) -> JSONResponse:
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status)


async def _refused(request: Request, problem: Exception) -> Response:
    status, body = openai_api.error(problem)
    return JSONResponse(body, status, {"Retry-After": "5"} if status == 429 else None)


async def _left(request: Request, problem: Exception) -> Response:
    """Whoever asked left before the question was whole: there is nobody to tell, and nothing for the log."""
    return Response(status_code=400)


async def _no_such_path(request: Request, problem: Exception) -> Response:
    status = getattr(problem, "status_code", 404)
    what = f"{request.method} {request.url.path[:80]} is not here: POST /v1/chat/completions, GET /v1/models, GET /"
    return _error(status, what, "not_found")


async def _failed(request: Request, problem: Exception) -> Response:
    log.error("a request failed", exc_info=problem)
    status, body = openai_api.error(problem)
    return JSONResponse(body, status)
