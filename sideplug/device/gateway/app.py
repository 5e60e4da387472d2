"""The gateway's routes, and what they are wired to.

    POST /v1/chat/completions, /v1/completions     streamed or whole; OpenAI's
    POST /v1/responses                             the same in OpenAI's newer shapes
    POST /v1/messages, /v1/messages/count_tokens   the same in Anthropic's
    POST /v1/embeddings                            of the base's own states
    GET  /v1/models                                the base, and the base with each plugin ("base+plugin")
    GET  /                                         the page; its own calls are below /sideplug/

The page's addresses are relative, so a proxy may put a path before all of them.

The gateway keeps no text on disk, but for what a plugin is told. It does not know how plugins are trained or what a
memory is: a TrainingJob and a MemoryDesk are passed in.
Test: pytest tests/device/test_gateway.py
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, unquote

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from sideplug.contract.errors import Busy, InputError, SideplugError
from sideplug.contract.frames import ModelInfo
from sideplug.contract.sampling import Sampling
from sideplug.contract.version import __version__
from sideplug.device import audit
from sideplug.device.address import Address
from sideplug.device.gateway import embeddings, messages_api, openai_api, openai_reply, responses_api
from sideplug.device.gateway.body import read_body
from sideplug.device.gateway.json_fields import JsonObject, json_object, named_files, object_with, typed
from sideplug.device.gateway.memory_api import File, MemoryApi, MemoryDesk
from sideplug.device.gateway.middleware import (
    AccessMiddleware,
    AccessRules,
    Edge,
    checked_hosts,
    checked_origins,
    error_response,
)
from sideplug.device.gateway.names import ModelNames
from sideplug.device.gateway.openai_api import CompletionRequest, Defaults
from sideplug.device.gateway.openai_reply import ResponseShaper, Shaper
from sideplug.device.gateway.page import FILES, page_routes
from sideplug.device.gateway.pool import Pool, session_opener
from sideplug.device.gateway.run import RETRY_S, Places, ReplyResources, Run
from sideplug.device.link import Record
from sideplug.device.plugin_store import PluginStore
from sideplug.device.reply import DecodeOptions
from sideplug.plugins import ANY_BASE

OPEN_PATHS = frozenset({*FILES, "/health"})  # served without the key
PAGE_ID = re.compile(r"[0-9a-f]{32}")
log = logging.getLogger("sideplug.gateway")


class TrainingJob(Protocol):
    """Trains plugins, one at a time, in the background."""

    def start(self, name: str, files: Sequence[File], settings: dict[str, Any]) -> None:
        """Begin. Raises InputError (bad data, or another one is being trained)."""
        ...

    def words(self, name: str, text: str) -> dict[str, Any]:
        """What the plugin of this name does to the words of a text, as JSON."""
        ...

    def stop(self) -> None:
        """Stop between two steps."""
        ...

    @property
    def state(self) -> Mapping[str, object]:
        """What the page shows of it, as JSON."""
        ...


Shape = Callable[[CompletionRequest, str, str], Shaper]  # (request, the model's name, the base's fingerprint)
# (files, how they are read, whether a memory is to be told them) → what would be read of them, as JSON
Preview = Callable[[Sequence[File], Mapping[str, object], bool], JsonObject]


@dataclass(frozen=True)
class GatewayConfig:
    """key: what callers must give ("": nothing). origins: web pages from elsewhere that may call. hosts: names that the
    gateway answers to, besides loopback's. replies: how many are made at once; further ones wait, `queue` of them at
    most. options: how replies are fetched. defaults: values of a request that does not give them."""

    key: str = ""
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    replies: int = 8
    queue: int = 1000
    options: DecodeOptions = DecodeOptions()
    defaults: Defaults = Defaults()


class Gateway:
    """`app` is what a server runs. `training` makes plugins for the page; None: this gateway does not train.
    `transcript` hears all messages with the cloud. `memory` changes what plugins remember; None: they don't here.
    `preview` looks into files; None: nobody does here."""

    def __init__(
        self,
        plugins: PluginStore,
        cloud: Address,
        config: GatewayConfig = GatewayConfig(),
        training: TrainingJob | None = None,
        transcript: Record | None = None,
        memory: MemoryDesk | None = None,
        preview: Preview | None = None,
    ) -> None:
        self.plugins = plugins
        self.config = config
        self.pool = Pool(session_opener(cloud, "device" if config.options.head else "cloud"), transcript, cloud.retry_s)
        self.places = Places(config.replies, config.queue)
        self._cloud_url = cloud.url
        self._training = training
        self._look_into = preview
        self._memory = MemoryApi(plugins, memory)
        self._resources = ReplyResources(plugins, self.pool, config.options, self.places)
        self.app = self._make_app()

    async def serve(self, listener: socket.socket, ready: Callable[[str], None] = lambda url: None) -> None:
        """Serve until SIGINT or SIGTERM. `ready` hears the address."""
        host, port = listener.getsockname()[:2]
        server = GatewayServer(self.app)
        listener.listen(128)
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        try:
            await server.serve(sockets=[listener])
        finally:
            self.pool.close()

    def _make_app(self) -> ASGIApp:
        routes = [
            Route("/v1/chat/completions", self._completions, methods=["POST"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/responses", self._responses, methods=["POST"]),
            Route("/v1/messages", self._messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", self._count_tokens, methods=["POST"]),
            Route("/v1/embeddings", self._embeddings, methods=["POST"]),
            Route("/v1/models", self._models),
            Route("/v1/models/{name:path}", self._models),  # a base of the hub's has a / in its name
            *page_routes(),
            Route("/sideplug/state", self._state),
            Route("/sideplug/audit", self._audit),
            Route("/sideplug/training", self._train, methods=["POST", "DELETE"]),
            Route("/sideplug/words", self._words, methods=["POST"]),
            Route("/sideplug/preview", self._preview, methods=["POST"]),
            *self._memory.routes(),
            Route("/sideplug/plugins/{name}", self._plugin, methods=["GET", "PUT", "PATCH", "DELETE"]),
            Route("/health", lambda request: JSONResponse({"status": "ok", "version": __version__})),
        ]
        config = self.config
        origins = checked_origins(config.origins, config.key)
        rules = AccessRules(config.key, origins, checked_hosts(config.hosts), OPEN_PATHS)
        middleware = [Middleware(AccessMiddleware, rules=rules)]
        if origins:
            cors = Middleware(CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"])
            middleware.insert(0, cors)
        handlers: dict[Any, Any] = {404: _unknown_path, 405: _unknown_path, 500: _failed}
        handlers |= {SideplugError: _refused, ClientDisconnect: _disconnected}
        return Edge(Starlette(routes=routes, middleware=middleware, exception_handlers=handlers))

    # ── the API ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _completions(self, request: Request) -> Response:
        is_chat = request.scope["path"].endswith("chat/completions")
        body = await read_body(request)
        completion = await run_in_threadpool(openai_api.parse, body, is_chat, self.config.defaults)
        return await self._reply(request, completion, ResponseShaper)

    async def _responses(self, request: Request) -> Response:
        body = await read_body(request)
        completion = await run_in_threadpool(responses_api.parse, body, self.config.defaults)
        return await self._reply(request, completion, responses_api.ResponsesShaper)

    async def _messages(self, request: Request) -> Response:
        body = await read_body(request)
        completion = await run_in_threadpool(messages_api.parse, body, self.config.defaults)
        return await self._reply(request, completion, messages_api.MessagesShaper)

    async def _reply(self, request: Request, completion: CompletionRequest, shape: Shape) -> Response:
        """A reply in the shapes of an API, streamed or whole."""
        page = _page_id(request)
        model = await run_in_threadpool(self.pool.model)
        names = self._names(model)
        plugin = names.plugin(completion.model)
        shaper = shape(completion, names.full(plugin), model.fingerprint)
        run = Run(self._resources, shaper, plugin, page, request.is_disconnected)
        await run.begin()
        if completion.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(run.events(), media_type="text/event-stream", headers=headers)
        return JSONResponse(await run.whole())

    async def _count_tokens(self, request: Request) -> Response:
        """How many tokens a prompt has, by the base's own reading of it."""
        body = await read_body(request)
        completion = await run_in_threadpool(messages_api.parse, body, self.config.defaults, True)

        def count() -> int:
            self._names(self.pool.model()).plugin(completion.model)
            with self.pool.session("", None, None) as session:
                prompt = openai_reply.prompt_for(completion, session.session.granted).prompt
                with session.reply(prompt, 1, Sampling(), DecodeOptions()) as reply:
                    reply.on_begun = _begun  # the cloud has counted, and has not read it yet
                    with contextlib.suppress(Counted):
                        next(reply, None)
                    return reply.usage.prompt_tokens

        return JSONResponse({"input_tokens": await run_in_threadpool(count)})

    async def _embeddings(self, request: Request) -> Response:
        body = await read_body(request)
        asked = await run_in_threadpool(embeddings.parse, body)

        def answer() -> JsonObject:
            model = self.pool.model()
            self._names(model).plugin(asked.model)  # of a plugin too they are the base's: it changes no state
            embeddings.check_dimensions(asked, model)
            with self.pool.session("", None, None) as session:
                vectors_BD, tokens = embeddings.embed(session.session, asked.texts)
            return embeddings.answer(asked, model.name, vectors_BD, tokens)

        return JSONResponse(await run_in_threadpool(answer))

    async def _models(self, request: Request) -> Response:
        model = await run_in_threadpool(self.pool.model)
        names = self._names(model)
        name = request.path_params.get("name")
        wanted = names.listed() if name is None else [names.full(names.plugin(name))]
        about = {"object": "model", "type": "model", "created": 0, "created_at": "1970-01-01T00:00:00Z"}
        about |= {"owned_by": "sideplug", "context_length": model.context, "max_model_len": model.context}
        able = ["chat", "completions", "responses", "messages"] if model.chat else ["completions"]
        models = [
            {
                "id": each,
                "display_name": each,
                **about,
                "capabilities": [*able, *(["embeddings"] if each == model.name else [])],
            }
            for each in wanted
        ]
        listed = {"object": "list", "data": models, "has_more": False, "first_id": wanted[0], "last_id": wanted[-1]}
        return JSONResponse(listed if name is None else models[0])

    def _names(self, model: ModelInfo) -> ModelNames:
        return ModelNames(model.name, [entry.name for entry in self.plugins.entries()])

    # ── the page's calls ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _state(self, request: Request) -> Response:
        """What the page shows: the cloud and its model (or why there is none), the plugins, the training."""
        state: JsonObject = {"version": __version__, "cloud": self._cloud_url, "model": None, "error": None}
        try:
            state["model"] = msgspec.to_builtins(await run_in_threadpool(self.pool.model))
        except SideplugError as error:
            state["error"] = str(error)
        state["plugins"] = [
            await run_in_threadpool(self._describe, entry.name, entry.sealed) for entry in self.plugins.entries()
        ]
        state["training"] = dict(self._training.state) if self._training else None
        return JSONResponse(state)

    def _describe(self, name: str, sealed: bool) -> JsonObject:
        """One plugin, as the page shows it."""
        shown: JsonObject = {"name": name, "sealed": sealed, "own": self.plugins.is_own(name), "error": None}
        try:
            plugin = self.plugins.load(name)
        except SideplugError as error:
            return {**shown, "error": str(error)}
        model = self.pool.known_model
        memories = [part for part in plugin.parts if part.role == "memory"]
        return {
            **shown,
            "fits": model is None or plugin.base in (model.fingerprint, ANY_BASE),
            "dial": any(gate.dial for gate in plugin.gates),
            "parameters": plugin.size - sum(part.size for part in memories),
            "entries": sum(part.size for part in memories) if memories else None,
            "base": plugin.base_name,
            "about": plugin.about,
        }

    async def _audit(self, request: Request) -> Response:
        """What the requests of the page that asks sent and got; empty for a page, or another caller, without any."""
        record = self.pool.page_record(_page_id(request))

        def look() -> JsonObject:
            if record is None:
                report = audit.report([])
                return {**report.to_json(), "plugin": "", "lines": list(report.lines()), "dropped": 0}
            report, dropped = audit.report(record.messages, record.plugin, whole=False), record.messages.dropped
            lines = list(report.lines())
            return {**report.to_json(), "plugin": record.plugin_name, "lines": lines, "dropped": dropped}

        return JSONResponse(await run_in_threadpool(look))

    async def _train(self, request: Request) -> Response:
        """Start (POST) or stop (DELETE) the training."""
        if self._training is None:
            raise InputError("this gateway does not train")
        if request.method == "DELETE":
            self._training.stop()
        else:
            fields = object_with(await read_body(request), "name", "files")
            settings = fields.get("settings") or {}
            if not isinstance(settings, dict):
                raise InputError("settings must be an object")
            files = named_files(fields["files"])
            await run_in_threadpool(self._training.start, str(fields["name"]), files, settings)
        return JSONResponse(dict(self._training.state))

    async def _preview(self, request: Request) -> Response:
        """What would be read of files: {"files": […], "reading": {"me", "redact", "skip_bad"}, "use": "memory"}."""
        if self._look_into is None:
            raise InputError("this gateway reads no files")
        fields = json_object(await read_body(request))
        files, reading = named_files(fields.get("files")), typed(fields, "reading", dict, {})
        is_told = typed(fields, "use", str, "memory") == "memory"
        return JSONResponse(await run_in_threadpool(self._look_into, files, reading, is_told))

    async def _words(self, request: Request) -> Response:
        """What a plugin does to the words of a text."""
        if self._training is None:
            raise InputError("this gateway does not train")
        fields = object_with(await read_body(request), "name", "text")
        text = fields["text"]
        if not isinstance(text, str) or not text.strip():
            raise InputError("text must be a text of yours")
        return JSONResponse(await run_in_threadpool(self._training.words, str(fields["name"]), text))

    async def _plugin(self, request: Request) -> Response:
        """Export (GET), import (PUT), rename (PATCH) or delete (DELETE) a plugin."""
        name = request.path_params["name"]
        passphrase = unquote(request.headers.get("x-passphrase", ""))  # a header is Latin-1, and loses outer spaces
        if request.method == "DELETE":
            await run_in_threadpool(self.plugins.delete, name)
        elif request.method == "PATCH":
            fields = object_with(await read_body(request), "name")
            await run_in_threadpool(self.plugins.rename, name, str(fields["name"]))
        elif request.method == "PUT":
            await run_in_threadpool(self.plugins.import_, name, await read_body(request), passphrase)
        else:
            file = await run_in_threadpool(self.plugins.export, name, passphrase)
            headers = {"Content-Disposition": f"attachment; filename*=utf-8''{quote(name)}.sideplug"}
            return Response(file, media_type="application/octet-stream", headers=headers)
        return JSONResponse({"plugins": [entry.name for entry in self.plugins.entries()]})


class GatewayServer(uvicorn.Server):
    """uvicorn without logs of its own, and without raising a signal again after it has ended by it."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=3)
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End at SIGINT and SIGTERM."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self.handle_exit, number, None)
        yield


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Counted(Exception):
    """A prompt is counted: its reply is not wanted."""


def _begun() -> None:
    raise Counted


def _page_id(request: Request) -> str:
    """The id that a page gave itself; "" for other callers. Raises InputError for one that is malformed."""
    page = request.headers.get("x-sideplug-page", "")
    if page and not PAGE_ID.fullmatch(page):
        raise InputError(f"X-Sideplug-Page must be 32 hexadecimal digits, got {page[:40]!r}")
    return page


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _refused(request: Request, problem: Exception) -> Response:
    shapes = messages_api if request.url.path.startswith("/v1/messages") else openai_reply
    status, body = shapes.error(problem)
    retry_s = (problem.retry_s if isinstance(problem, Busy) else None) or RETRY_S
    return JSONResponse(body, status, {"Retry-After": str(math.ceil(retry_s))} if status == 429 else None)


async def _disconnected(request: Request, problem: Exception) -> Response:
    """The caller left before the request was complete: there is nobody to tell, and nothing to log."""
    return Response(status_code=400)


async def _unknown_path(request: Request, problem: Exception) -> Response:
    status = getattr(problem, "status_code", 404)
    what = (
        f"{request.method} {request.url.path[:80]} is not here: there are POST /v1/chat/completions, /v1/completions, "
        "/v1/responses, /v1/messages and /v1/embeddings, GET /v1/models and GET /"
    )
    return error_response(status, what, "not_found")


async def _failed(request: Request, problem: Exception) -> Response:
    log.error("a request failed", exc_info=problem)
    status, body = openai_reply.error(problem)
    return JSONResponse(body, status)
