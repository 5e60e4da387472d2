"""A base model that is served: its engine, its sessions, and the doors that every server has, whatever carries them.

    GET /health     is it alive? one JSON object
    GET /ready      does it take new work? 503 while it is going down, or hangs
    GET /metrics    for Prometheus

Where keys are asked for (cloud/access), every request must bear one. It does not know sockets: server.py has its own,
asgi.py those of whatever carries it. Test: pytest tests/cloud/test_watch.py
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from sideplug import __version__
from sideplug.cloud.access import RETRY_S, AccessControl
from sideplug.cloud.engine import Engine
from sideplug.cloud.keys import Holder, Keys
from sideplug.cloud.logs import event
from sideplug.cloud.metrics import CONTENT_TYPE, Exposition
from sideplug.cloud.session import Connection, Session
from sideplug.cloud.store import Base
from sideplug.cloud.token_bucket import Meter
from sideplug.contract.errors import Busy, Unauthorized
from sideplug.contract.wire import PATH

WATCH_S = 1.0
HANGS_S = 60.0  # an engine that has not listened for so long is not ready
CALLS_A_STEP = 256  # of the inbox, so that no device's flood keeps the others' steps waiting
log = logging.getLogger("sideplug.cloud")


@dataclass(frozen=True)
class Limits:
    """sessions at once; examples that a session may have in reading at once; bytes of one incoming message; seconds
    that a device may take to answer an ask; seconds that what is under way has when the server goes down."""

    sessions: int = 1024
    readings: int = 8
    message_bytes: int = 16 << 20
    answer_s: float = 120.0
    drain_s: float = 60.0


class EngineThread:
    """Makes the engine and runs its steps; `call` puts a function into its inbox, to be run between two steps.

    The model is loaded in the very thread that runs it: OpenMP keeps a team of workers for each thread that has used
    it, and two teams on the same cores cost half of the speed. Raises what `make` raises.
    """

    def __init__(self, make: Callable[[], Engine]) -> None:
        made: Future[Engine] = Future()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(make, made), name="engine", daemon=True)
        self._thread.start()
        self.engine = made.result()

    def call(self, function: Callable[[], None]) -> None:
        self._inbox.put(function)

    @property
    def hangs(self) -> bool:
        return not self._thread.is_alive() or time.monotonic() - self.engine.heard_s > HANGS_S

    def stop(self) -> None:
        self._inbox.put(None)
        self._thread.join(timeout=10)

    def _run(self, make: Callable[[], Engine], made: Future[Engine]) -> None:
        try:
            engine = make()
        except BaseException as error:
            made.set_exception(error)
            return
        made.set_result(engine)
        busy = False
        while True:
            engine.heard_s = time.monotonic()
            try:
                for _ in range(CALLS_A_STEP):
                    call = self._inbox.get(block=not busy)
                    if call is None:
                        return
                    busy = True
                    call()
                    del call  # it holds a session's work
            except queue.Empty:
                pass
            except Exception:
                log.exception("a call to the engine failed")
            try:
                busy = engine.step()
            except Exception:  # a work that fails ends alone, in the engine; this is another fault
                log.exception("a step failed")
                busy = False


@dataclass(frozen=True)
class Response:
    """To a plain HTTP request."""

    status: int
    body: str
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, status: int, about: dict[str, Any], **headers: str) -> Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls(status, json.dumps(about, ensure_ascii=False) + "\n", {"Content-Type": "application/json", **named})


class Service:
    def __init__(
        self,
        base: Base,
        make_engine: Callable[[], Engine],
        limits: Limits | None = None,
        keys: Keys | None = None,
    ) -> None:
        """`keys`: those that may come in; None: everybody may."""
        self.base = base
        self.limits = limits or Limits()
        self.guard = AccessControl(keys)
        self.meter = Meter()
        self.thread = EngineThread(make_engine)
        self.tokenizer = self.thread.engine.tokenizer
        self.meters = self.thread.engine.meters
        self.draining = False
        self.sessions: set[Session] = set()
        self._watch: asyncio.Task[None] | None = None
        self._exposition = Exposition(self.meters, self._gauges, base.name)

    def begin(self) -> None:
        """Watch over sessions, from within the event loop that runs them."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._look())

    async def attend(self, connection: Connection, holder: Holder | None) -> None:
        """A connection's session, to its end."""
        session = Session(self, connection, holder)
        others = [other.holder for other in self.sessions]
        self.sessions.add(session)
        try:
            if len(others) >= self.limits.sessions:
                raise Busy(f"the cloud has its {self.limits.sessions} sessions: try later", RETRY_S)
            self.guard.check_room(holder, others)  # again: several may have been on their way at once
            await session.run()
        except Busy as error:
            await session.refuse(error)
        finally:
            self.sessions.discard(session)

    def answer(self, path: str, authorization: list[str]) -> Response | Holder | None:
        """To an HTTP request: a response; or for PATH, whose WebSocket it may become (None where nobody is asked)."""
        try:
            holder = self.guard.admit(authorization)
            if path == PATH:
                self.guard.check_room(holder, (session.holder for session in self.sessions))
                return holder
        except Unauthorized as error:
            self.meters.refused[error.code] += 1
            return Response.json(401, {"error": str(error)}, WWW_Authenticate="Bearer")
        except Busy as error:
            self.meters.refused[error.code] += 1
            return Response.json(429, {"error": str(error)}, Retry_After=str(RETRY_S))
        if path == "/metrics":
            return Response(200, self._exposition.text().decode(), {"Content-Type": CONTENT_TYPE})
        if path == "/ready":
            why = "going down" if self.draining else "the engine hangs" if self.thread.hangs else ""
            return Response.json(503 if why else 200, {"ready": not why, **({"why": why} if why else {})})
        if path == "/health":
            about = {"status": "ok", "version": __version__, "model": self.base.name}
            shown = {"fingerprint": self.base.fingerprint, "sessions": len(self.sessions), "pid": os.getpid()}
            return Response.json(200, about | shown)
        return Response.json(404, {"error": f"paths are {PATH}, /health, /ready and /metrics"})

    @property
    def ready(self) -> bool:
        return not self.draining and not self.thread.hangs

    async def drain(self) -> None:
        """Take nothing new, and finish what is under way, for as long as the limits say."""
        self.draining = True
        last = time.monotonic() + self.limits.drain_s
        event(log, "going down", sessions=len(self.sessions))
        while self.sessions and time.monotonic() < last:
            await asyncio.gather(*(session.go_down() for session in self.sessions if not session.busy))
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        """Send everybody away."""
        self.draining = True
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await asyncio.gather(*(session.go_down() for session in self.sessions))

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            self.thread.call(self.thread.engine.tick)
            now_s = time.monotonic()
            for session in list(self.sessions):
                session.look(now_s)

    def _gauges(self) -> dict[str, tuple[str, float]]:
        engine = self.thread.engine
        memory = engine.model.memory
        return {
            "sessions": ("Open sessions.", len(self.sessions)),
            "working": ("Texts in work.", engine.working),
            "waiting": ("Texts that wait for memory.", engine.waiting),
            "kept_texts": ("Texts whose keys and values are kept for their next turn.", len(engine.kept)),
            "kept_evicted": ("Kept texts that were let go for want of memory.", engine.kept.evicted),
            "kv_reserved_bytes": ("Memory promised to keys and values.", memory.reserved_bytes),
            "kv_limit_bytes": ("Memory that keys and values may take.", memory.limit_bytes),
            "ready": ("Does it take new work?", int(self.ready)),
        }
