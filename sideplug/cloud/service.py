"""A base model that is served: its engine, its sessions, and the HTTP paths that every server has.

    GET /health     is it alive? one JSON object
    GET /ready      does it take new work? 503 while it is going down, or when its engine hangs
    GET /metrics    for Prometheus
    GET /v1/model   the base model's name, fingerprint and sizes

Where keys are required (cloud/access), every request must carry one, but for /health and /ready: without a key they say
yes or no and nothing else. What concerns all users is for an operator's key. A Service does not know sockets: server.py
has its own, asgi.py uses those of another web server. Test: pytest tests/cloud/test_watch.py
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sideplug.cloud.access import RETRY_S, AccessControl, Caller, RefusalLog
from sideplug.cloud.aside import Aside
from sideplug.cloud.engine import Engine
from sideplug.cloud.grammar import Grammars
from sideplug.cloud.host import PREDICTORS_BYTES, PREDICTORS_SHARE, EngineThread, Limits, Shared
from sideplug.cloud.keys import Holder, Keys
from sideplug.cloud.logs import event
from sideplug.cloud.metrics import CONTENT_TYPE, Exposition
from sideplug.cloud.session import Connection, Session
from sideplug.cloud.shares import Shares
from sideplug.cloud.store import Base
from sideplug.cloud.tap_store import TapStore
from sideplug.cloud.token_bucket import TokenBuckets
from sideplug.cloud.trunks import Trunks
from sideplug.contract.errors import Busy, Unauthorized, WrongOrigin
from sideplug.contract.frames import ModelInfo
from sideplug.contract.version import __version__
from sideplug.contract.wire import MODEL_PATH, PATH

OPEN_PATHS = ("/health", "/ready")  # answered without a key, in one word
WATCH_S = 1.0  # how often sessions, queue and prefix cache are looked after
log = logging.getLogger("sideplug.cloud")


@dataclass(frozen=True)
class Response:
    """The response to a plain HTTP request."""

    status: int
    body: str
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, status: int, content: dict[str, Any], **headers: str) -> Response:
        """A response whose body is `content` as JSON. Underscores in the headers' names stand for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(
            status, json.dumps(content, ensure_ascii=False) + "\n", {"Content-Type": "application/json", **named}
        )


class Service:
    """One engine with its sessions: `begin`, then `attend` each connection, and at last `drain` and `end`."""

    def __init__(
        self,
        base: Base,
        make_engine: Callable[[], Engine],
        limits: Limits | None = None,
        keys: Keys | None = None,
        origins: Sequence[str] = (),
    ) -> None:
        """`keys`: those that may come in; None: everybody may. `origins`: of web pages that may.

        Raises what `make_engine` raises.
        """
        self.thread = EngineThread(make_engine)
        engine = self.thread.engine
        self.counters = engine.counters
        self.limits = limits or Limits()
        self.shared = Shared(
            thread=self.thread,
            base=base,
            tokenizer=engine.tokenizer,
            limits=self.limits,
            access=AccessControl(keys, origins),
            buckets=TokenBuckets(),
            counters=self.counters,
            model_info=_describe(base, engine),
            taps=TapStore(engine.model),
            aside=Aside(engine.charge),
            trunks=Trunks.for_base(base.fingerprint, engine.model.width),
            grammars=Grammars(engine.tokenizer, engine.model.vocab),
            predictors=Shares(max(PREDICTORS_BYTES, engine.model.memory.limit_bytes // PREDICTORS_SHARE)),
        )
        self._refusals = RefusalLog()
        self.sessions: set[Session] = set()
        self._watching: asyncio.Task[None] | None = None
        self._exposition = Exposition(self.counters, self.shared.usage, self._gauges, base.name)

    def begin(self) -> None:
        """Start to look after sessions and engine; to be called in the event loop that runs the sessions."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch_sessions())

    async def attend(self, connection: Connection, holder: Holder | None) -> None:
        """Run a connection's session to its end. `holder`: whose key it came with."""
        session = Session(self.shared, connection, holder)
        others = [other.holder for other in self.sessions]
        self.sessions.add(session)
        try:
            if len(others) >= self.limits.sessions:
                raise Busy(f"the cloud has its {self.limits.sessions} sessions: try later", RETRY_S)
            self.shared.access.check_room(holder, others)  # checked again: several may have connected at once
            await session.run()
        except Busy as error:
            await session.refuse(error)
        finally:
            self.sessions.discard(session)

    def respond(self, path: str, caller: Caller) -> Response | Holder | None:
        """The response to an HTTP request.

        For PATH it is instead whose key the request carries (None where no keys are required): it may become a
        WebSocket.
        """
        access = self.shared.access
        try:
            if path in OPEN_PATHS and access.wants_keys and not caller.has_key:
                return self._alive() if path == "/health" else self._ready(says_why=False)
            holder = access.admit(caller)
            if path == PATH:
                if not self.ready:
                    why = "this part of the cloud is going down"
                    return Response.json(503, {"error": why}, Retry_After=str(RETRY_S))
                access.check_room(holder, (session.holder for session in self.sessions))
                access.check_rate(holder)
                return holder
        except Unauthorized as error:
            self.counters.refused[error.code] += 1
            self._refusals.note(caller.address, path)
            return Response.json(401, {"error": str(error)}, WWW_Authenticate="Bearer")
        except WrongOrigin as error:
            self.counters.refused[error.code] += 1
            return Response.json(403, {"error": str(error)})
        except Busy as error:
            self.counters.refused[error.code] += 1
            retry_s = math.ceil(error.retry_s or RETRY_S)
            return Response.json(429, {"error": str(error)}, Retry_After=str(retry_s))
        return self._answer(path, holder)

    def _answer(self, path: str, holder: Holder | None) -> Response:
        """The response to a request whose key is right."""
        sees_all = holder is None or holder.is_operator
        if path == MODEL_PATH:
            return Response.json(200, msgspec.to_builtins(self.shared.model_info))
        if path == "/metrics":
            if not sees_all:
                why = (
                    "/metrics concerns all users, so it wants an operator's key: sideplug keys add NAME --role operator"
                )
                return Response.json(403, {"error": why})
            return Response(200, self._exposition.text().decode(), {"Content-Type": CONTENT_TYPE})
        if path == "/ready":
            return self._ready(says_why=True)
        if path == "/health":
            return self._alive(about_all=sees_all, about_model=True)
        return Response.json(404, {"error": f"paths are {PATH}, {MODEL_PATH}, /health, /ready and /metrics"})

    def _alive(self, about_all: bool = False, about_model: bool = False) -> Response:
        base, state = self.shared.base, dict[str, Any](status="ok")
        if about_model:
            state |= {"version": __version__, "model": base.name, "fingerprint": base.fingerprint}
        if about_all:
            state |= {"sessions": len(self.sessions), "pid": os.getpid()}
        return Response.json(200, state)

    def _ready(self, says_why: bool) -> Response:
        why = "going down" if self.draining else "the engine hangs" if self.thread.hangs else ""
        return Response.json(503 if why else 200, {"ready": not why, **({"why": why} if why and says_why else {})})

    @property
    def draining(self) -> bool:
        """Whether it is going down and takes no new work."""
        return self.shared.draining.is_set()

    @property
    def ready(self) -> bool:
        """Whether it takes new work."""
        return not self.draining and not self.thread.hangs

    async def drain(self) -> None:
        """Take no new work, and give the running work `drain_s` seconds to finish."""
        self.shared.draining.set()
        last_s = time.monotonic() + self.limits.drain_s
        event(log, "going down", sessions=len(self.sessions))
        while self.sessions and time.monotonic() < last_s:
            await asyncio.gather(*(session.go_down() for session in self.sessions if not session.busy))
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        """Close every session's connection, and stop looking after them."""
        self.shared.draining.set()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await asyncio.gather(*(session.go_down() for session in self.sessions))

    async def _watch_sessions(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            self.thread.call(self.thread.engine.tick)
            now_s = time.monotonic()
            self._refusals.tick()
            for session in list(self.sessions):
                session.watch(now_s)

    def _gauges(self) -> dict[str, tuple[str, float]]:
        engine = self.thread.engine
        memory, cache = engine.model.memory, engine.prefix_cache
        taps, predictors = self.shared.taps.shares, self.shared.predictors
        return {
            "sessions": ("Open sessions.", len(self.sessions)),
            "working": ("Texts in work.", engine.working),
            "waiting": ("Texts that wait for memory.", engine.waiting),
            "cached_texts": ("Texts whose keys and values are in the prefix cache.", len(cache)),
            "evicted_texts": ("Cached texts that were evicted because memory was needed.", cache.evicted),
            "kv_reserved_bytes": ("Memory that is reserved for keys and values.", memory.reserved_bytes),
            "kv_limit_bytes": ("Memory that keys and values may take.", memory.limit_bytes),
            "tap_bytes": ("Memory that the projections of sessions' taps take.", taps.total),
            "predictor_bytes": ("Memory that sessions' correction predictors take.", predictors.total),
            "ready": ("Does it take new work?", int(self.ready)),
        }


def _describe(base: Base, engine: Engine) -> ModelInfo:
    model = engine.model
    sizes = (model.blocks, model.width, model.vocab, model.context)
    return ModelInfo(base.name, base.fingerprint, *sizes, engine.tokenizer.has_chat)
