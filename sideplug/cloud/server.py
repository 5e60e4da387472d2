"""The WebSocket server: one connection is one device's session; frames in, frames out.

Sockets and asyncio are here and nowhere else in the cloud; the engine runs in a thread of its own and is reached
through its inbox. Nothing of a session is written anywhere, and no text is logged. It does not know plugins or
training.

    /v1/session       the WebSocket of docs/WIRE.md
    GET /health       is it alive? one JSON object
    GET /ready        does it take new work? 503 while it is going down, or hangs
    GET /metrics      for Prometheus
"""

from __future__ import annotations

import asyncio
import http
import json
import logging
import queue
import secrets
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from sideplug import __version__
from sideplug.cloud.engine import TOP, Engine, Reading
from sideplug.cloud.metrics import CONTENT_TYPE, Exposition
from sideplug.cloud.reply import Habits, Plug, Reply
from sideplug.cloud.store import Base
from sideplug.cloud.tokenizer import TextStream
from sideplug.contract.errors import Busy, InputError, ProtocolError, SideplugError, Silent, TooLong, WrongBase
from sideplug.contract.gate import Gate
from sideplug.contract.progress import running_hash
from sideplug.contract.sampling import Sampling
from sideplug.contract.tap import Tap
from sideplug.contract.text import Prompt
from sideplug.contract.wire import (
    HEADS,
    MAX_AHEAD,
    MAX_PAYLOAD_BYTES,
    MAX_TOP,
    MAX_WRITTEN,
    PATH,
    ROWS_PER_FRAME,
    Frame,
    Kind,
    decode,
    encode,
    error_frame,
)
from sideplug.listen import not_listening

OPEN_TIMEOUT_S = 10.0  # from the connection to OPEN
OUTBOX_FRAMES = 32  # a device that does not read what it asked for is not read from either, and its reply is held
STALL_S = 60.0  # a device that reads nothing for so long is cut off
PING_S, PONG_S = 10.0, 20.0  # half-open connections are found so
WATCH_S = 1.0
HANGS_S = 60.0  # an engine that has not listened for so long is not ready
GOING_DOWN = 1012  # close code: come back, to the one that takes over
CALLS_A_STEP = 256  # of the inbox, so that no device's flood keeps the others' steps waiting
ENDURED = ("busy", "bad-input", "too-long")  # what a session survives
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
            busy = engine.step()


class Session:
    """One device's connection: what it may do, and what it has under way. Runs in the event loop."""

    def __init__(self, server: CloudServer, connection: ServerConnection) -> None:
        self._server = server
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[Frame] = asyncio.Queue()
        self._sent = asyncio.Event()
        self._plug: Plug | None = None
        self._reply: Reply | None = None
        self._readings: dict[int, Reading] = {}
        self._rows_asked = False
        self._habits = Habits()
        self._deadline_s = 0.0
        self._received = self._transmitted = 0
        self._sending_s = 0.0  # since when a frame waits for the device to read; 0: none does
        self._began_s = time.monotonic()
        self._name = secrets.token_hex(8)
        self._user = self._name  # TODO
        self._scope = ""

    async def run(self) -> None:
        sender = asyncio.create_task(self._send_all())
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._open(await self._receive())
            while True:
                frame = await self._receive()
                if self._server.draining and frame.kind in (Kind.PROMPT, Kind.READ):
                    await self.go_down()
                    return
                self._handle(frame)
                while self._outbox.qsize() > OUTBOX_FRAMES:
                    self._sent.clear()
                    await self._sent.wait()
        except (ConnectionClosed, TimeoutError):
            pass
        except Exception as error:
            await self._refuse(error)
        finally:
            sender.cancel()
            engine, readings, reply = self._server.thread.engine, list(self._readings.values()), self._reply
            self._server.thread.call(lambda: engine.drop(*readings))
            if reply is not None:
                self._server.thread.call(lambda: engine.leave(reply))

    async def _receive(self) -> Frame:
        message = await self._connection.recv()
        if not isinstance(message, bytes):
            raise ProtocolError("a message must be binary")
        self._received += 1
        frame = decode(message, self._received - 1)
        self._count("up", frame, message)
        return frame

    async def _transmit(self, frame: Frame) -> None:
        message = encode(frame, self._transmitted)
        self._transmitted += 1
        self._count("down", frame, message)
        self._sending_s = time.monotonic()
        await self._connection.send(message)
        self._sending_s = 0.0

    def _count(self, direction: str, frame: Frame, message: bytes) -> None:
        meters = self._server.meters
        kind = frame.kind.name.lower()
        meters.frames[direction, kind] += 1
        meters.bytes[direction, kind, self._plug.tap.codec if self._plug else ""] += len(message)

    async def _refuse(self, error: Exception) -> None:
        """Say why, and end the session, with the close code of docs/WIRE.md."""
        if not isinstance(error, SideplugError):
            log.error("a session failed", exc_info=error)
        self._server.meters.refused[getattr(error, "code", "internal")] += 1
        await self._end(error_frame(error))

    async def _end(self, frame: Frame) -> None:
        codes = {"protocol": 1002, "busy": 1013, "internal": 1011}
        try:
            await self._transmit(frame)
            await self._connection.close(codes.get(frame["code"], 1008), frame["code"])
        except ConnectionClosed:
            pass

    async def _send_all(self) -> None:
        """Frames leave in order. What a frame completes is free again when it leaves, not when it is queued."""
        try:
            while True:
                frame = await self._outbox.get()
                self._sent.set()
                self._let_go()
                if frame.kind is Kind.DONE or (frame.kind is Kind.ERROR and "number" not in frame.control):
                    self._reply = None
                elif frame.kind is Kind.ERROR:
                    self._readings.pop(frame["number"], None)
                elif frame.kind is Kind.HEAD:
                    self._rows_asked = False
                elif frame.kind is Kind.SCORED or (frame.kind is Kind.EXAMPLE and not self._is_scored(frame)):
                    self._readings.pop(frame["number"], None)
                await self._transmit(frame)
                if frame.kind is Kind.ASK and self._deadline_s:
                    self._expect_answer(frame)
        except ConnectionClosed:
            pass
        except Exception as error:
            await self._refuse(error)

    def _let_go(self) -> None:
        """A reply that was held goes on when its device has read."""
        reply, engine = self._reply, self._server.thread.engine
        if reply is not None and reply.held and self._outbox.qsize() < OUTBOX_FRAMES // 2:
            self._in_engine(lambda: engine.hold(reply, False))

    def _put(self, frame: Frame) -> None:
        self._outbox.put_nowait(frame)
        reply, engine = self._reply, self._server.thread.engine
        if reply is not None and not reply.held and self._outbox.qsize() > OUTBOX_FRAMES:
            self._in_engine(lambda: engine.hold(reply, True))

    @property
    def busy(self) -> bool:
        return self._reply is not None or bool(self._readings) or not self._outbox.empty()

    async def look(self, now_s: float) -> None:
        """Once a second: is the device silent where it was asked, or does it not read?"""
        reply, most = self._reply, self._server.limits.answer_s
        asks = list(reply.asks) if reply is not None else []
        if self._sending_s and now_s - self._sending_s > STALL_S:
            self._connection.transport.abort()
        elif asks and now_s - asks[0].asked_s > most:
            await self._refuse(Silent(f"the device has not answered for {most:.0f} s"))

    async def go_down(self) -> None:
        """The server ends: so does this session, and its device may come back to the one that takes over."""
        try:
            await self._connection.close(GOING_DOWN, "the cloud is going down")
        except ConnectionClosed:
            pass

    def _expect_answer(self, ask: Frame) -> None:
        """Tell the engine when the answer's deadline has passed."""
        reply, engine = self._reply, self._server.thread.engine
        if reply is not None:
            passed = lambda: engine.expire(reply, ask["run"], ask["at"][0])  # noqa: E731
            self._loop.call_later(self._deadline_s, self._in_engine, passed)

    def _is_scored(self, frame: Frame) -> bool:
        reading = self._readings.get(frame["number"])
        return reading is not None and reading.score

    def _send_from_engine(self, frame: Frame) -> None:
        """Called in the engine's thread. An ERROR from there ends the session if it is of a work that failed."""
        if frame.kind is Kind.ERROR and frame["code"] not in ENDURED:
            self._in_loop(lambda: asyncio.ensure_future(self._end(frame)))
        else:
            self._in_loop(lambda: self._put(frame))

    def _in_loop(self, function: Callable[[], Any]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed: the server has stopped
            pass

    def _in_engine(self, function: Callable[[], Any]) -> None:
        """Run in the engine's thread; an error there ends the session."""

        def run() -> None:
            try:
                function()
            except Exception as error:
                refusal = self._refuse(error)
                self._in_loop(lambda: asyncio.ensure_future(refusal))

        self._server.thread.call(run)

    def _handle(self, frame: Frame) -> None:
        handlers = {
            Kind.PROMPT: self._prompt,
            Kind.ANSWER: self._answer,
            Kind.CANCEL: self._cancel,
            Kind.READ: self._read,
            Kind.SCORE: self._score,
            Kind.ROWS: self._rows,
        }
        if frame.kind not in handlers:
            raise ProtocolError(f"a device must not send {frame.kind.name} here")
        handlers[frame.kind](frame)

    @property
    def _opened(self) -> Plug:
        assert self._plug is not None
        return self._plug

    async def _open(self, frame: Frame) -> None:
        base, model = self._server.base, self._server.thread.engine.model
        if frame.kind is not Kind.OPEN:
            raise ProtocolError(f"a session must begin with OPEN, got {frame.kind.name}")
        if frame["base"] not in ("", base.fingerprint):
            raise WrongBase(
                f"this plugin was made for the base model {frame['base'][:12]}, but the cloud serves "
                f"{base.fingerprint[:12]} ({base.name}): serve that model, or train a plugin for this one"
            )
        tap = Tap.parse(frame["tap"]) if frame["tap"] else Tap.spread(model.blocks, model.width)
        tap.check(model.blocks, model.width)
        gate = Gate.from_wire(frame["gate"], frame.tensors["gate"])
        gate.check(model.width)
        self._plug = Plug(tap, gate, frame["merge"])
        await asyncio.to_thread(tap.prepare, model.width)
        shape = {"blocks": model.blocks, "width": model.width, "vocab": model.vocab, "context": model.context}
        about = {"name": base.name, "fingerprint": base.fingerprint, "chat": self._server.tokenizer.has_chat, **shape}
        limits = {"readings": self._server.limits.readings, "message_bytes": self._server.limits.message_bytes}
        control = {"session": self._name, "model": about, "limits": limits}
        self._outbox.put_nowait(Frame(Kind.OPENED, control))

    def _prompt(self, frame: Frame) -> None:
        engine = self._server.thread.engine
        if self._reply is not None:
            raise ProtocolError("a session must wait for DONE before its next PROMPT")
        try:
            ids = self._server.tokenizer.encode(self._short_enough(Prompt.from_wire(frame.control)))
            if not ids:
                raise InputError("the prompt is empty: give at least one word")
            if max(ids) >= engine.model.vocab:
                raise InputError(f"a prompt's ids must be below {engine.model.vocab}, got {max(ids)}")
            self._check_length(len(ids) + 1, "the prompt")
            if frame["max_tokens"] < 1:
                raise InputError(f"max_tokens must be 1 or more, got {frame['max_tokens']}")
            ahead, deadline_ms = frame.control.get("ahead", 0), frame.control.get("deadline_ms", 0)
            if not 0 <= ahead <= MAX_AHEAD:
                raise InputError(f"the cloud runs 0 to {MAX_AHEAD} asks ahead, got {ahead}")
            if not 0 <= deadline_ms <= 1 << 31:
                raise InputError(f"an answer's deadline must be 0 (none) or more milliseconds, got {deadline_ms}")
            head = frame.control.get("head", "cloud")
            if head not in HEADS:
                raise InputError(f"the head must be in the {' or the '.join(HEADS)}, got {head[:40]!r}")
            top = frame.control.get("top", 0)
            if not 0 <= top <= MAX_TOP:
                raise InputError(f"0 to {MAX_TOP} alternatives are told of a token, got {top}")
            sampling = Sampling.from_wire(frame["sampling"])
            done = self._agreed(frame, ids)
        except InputError as error:  # the user's mistake: the session goes on
            self._outbox.put_nowait(error_frame(error))
            return
        self._deadline_s = deadline_ms / 1000
        self._reply = Reply(
            ids,
            self._send_from_engine,
            frame["turn"],
            self._opened,
            TextStream(self._server.tokenizer),
            sampling,
            frame["max_tokens"],
            engine.model.context,
            self._server.tokenizer.stop_ids,
            ahead,
            head,
            top,
            self._habits,
            done,
            user=self._user,
            scope=self._scope,
        )
        self._add(self._reply)

    def _agreed(self, frame: Frame, ids: list[int]) -> list[int]:
        """The reply's ids that the device has from before it was cut off. Raises InputError unless both hash alike."""
        done = frame.control.get("done", [])
        vocab, most = self._server.thread.engine.model.vocab, frame["max_tokens"]
        if not all(type(token) is int and 0 <= token < vocab for token in done) or len(done) > most:
            raise InputError(f"what is done of a reply must be at most max_tokens ({most}) ids below {vocab}")
        if done and frame.control.get("hash") != running_hash(done, running_hash(ids)):
            raise InputError("this cloud reads the prompt otherwise than the one that began the reply: ask anew")
        return done

    def _add(self, work: Reply | Reading, number: int | None = None) -> None:
        """To the engine, which may have no room: that leaves the session open."""
        engine = self._server.thread.engine

        def add() -> None:
            try:
                engine.add(work)
            except (InputError, Busy) as error:
                self._send_from_engine(error_frame(error, number))

        self._in_engine(add)

    def _short_enough(self, prompt: Prompt, reply: str = "") -> Prompt:
        """Refuse what can't fit before the tokenizer spends everybody's time on it: tokens are shorter than this."""
        context = self._server.thread.engine.model.context
        size = prompt.characters + len(reply)
        if size > 100 * context:
            raise TooLong(f"the text has {size:,} characters, the base model takes at most {context} tokens")
        return prompt

    def _check_length(self, tokens: int, what: str) -> None:
        context = self._server.thread.engine.model.context
        if tokens > context:
            raise TooLong(f"{what} has {tokens} tokens with its reply, the base model takes at most {context}")

    def _answer(self, frame: Frame) -> None:
        reply = self._reply
        if reply is not None:  # else: an answer to a reply that has just been cancelled
            self._in_engine(lambda: self._server.thread.engine.answer(reply, frame))

    def _cancel(self, frame: Frame) -> None:
        reply = self._reply
        if reply is not None and reply.turn == frame["turn"]:
            self._in_engine(lambda: self._server.thread.engine.cancel(reply))

    def _read(self, frame: Frame) -> None:
        number, limit = frame["number"], self._server.limits.readings
        if number in self._readings or len(self._readings) >= limit:
            raise ProtocolError(f"a session must have at most {limit} examples in reading, each with its own number")
        engine, plug = self._server.thread.engine, self._opened
        try:
            prompt = self._short_enough(Prompt.from_wire(frame.control), frame["reply"])
            write, reply = frame.control.get("write", 0), list[int]()
            if write:
                if not 0 < write <= MAX_WRITTEN or frame["reply"] or frame["score"]:
                    raise InputError(f"the base writes 1 to {MAX_WRITTEN} tokens, and no reply is given then")
                start = self._server.tokenizer.encode(prompt)
            else:
                start, reply = self._server.tokenizer.encode_example(prompt, frame["reply"])
            size = len(reply) or write
            if not start or not size:
                raise InputError("the example has nothing to learn: its reply is empty, or its text one token")
            self._check_length(len(start) + size, "the example")
            most = MAX_PAYLOAD_BYTES // (plug.tap.bytes_per_token + 2 * engine.model.width + 4 * TOP + 8)
            if size > most:
                raise TooLong(f"the example's reply has {size} tokens, with this tap it may have at most {most}")
        except InputError as error:
            self._outbox.put_nowait(error_frame(error, number))
            return
        how = (number, plug, len(start), frame["score"], write)
        reading = Reading(start + reply, self._send_from_engine, *how, user=self._user, scope=self._scope)
        self._readings[number] = reading
        self._add(reading, number)

    def _score(self, frame: Frame) -> None:
        reading = self._readings.get(frame["number"])
        if reading is None:
            raise ProtocolError(f"example {frame['number']} must be read with score before it is scored")
        self._in_engine(lambda: self._server.thread.engine.score(reading, frame))

    def _rows(self, frame: Frame) -> None:
        model = self._server.thread.engine.model
        ids = frame.tensors["ids"]
        if self._rows_asked:
            raise ProtocolError("a session must wait for HEAD before its next ROWS")
        ok = ids.dtype == np.int32 and 0 < len(ids) <= ROWS_PER_FRAME
        if not ok or ids.min() < 0 or ids.max() >= model.vocab:
            raise ProtocolError(f"ROWS must ask for 1 to {ROWS_PER_FRAME} ids below {model.vocab}")

        self._rows_asked = True

        def answer() -> None:
            rows, bias = model.head_rows(ids)
            tensors: dict[str, np.ndarray] = {"rows": rows.astype(np.float16), "bias": bias.astype(np.float32)}
            control = {"part": frame["part"], "scale": model.logit_scale, "softcap": model.softcap}
            self._send_from_engine(Frame(Kind.HEAD, control, tensors))

        self._in_engine(answer)


class CloudServer:
    """A base model at an address. `start`, then `serve_until_stopped`, or `close`."""

    def __init__(self, base: Base, make_engine: Callable[[], Engine], limits: Limits | None = None) -> None:
        self.base = base
        self.limits = limits or Limits()
        self.thread = EngineThread(make_engine)
        self.tokenizer = self.thread.engine.tokenizer
        self.meters = self.thread.engine.meters
        self.draining = False
        self._sessions: set[Session] = set()
        self._server: Server | None = None
        self._watch: asyncio.Task[None] | None = None
        self._exposition = Exposition(self.meters, self._gauges, base.name)

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> str:
        """Listen on what `bind` gave; the URL. Raises Stopped when another process listens there by now."""
        host, port = listener.getsockname()[:2]
        try:
            self._server = await serve(
                self._on_connection,
                sock=listener,
                ssl=tls,
                compression=None,  # codes don't compress, and the deflate state would cost each session 300 KB
                max_size=self.limits.message_bytes,
                process_request=self._on_request,
                server_header=None,
                ping_interval=PING_S,
                ping_timeout=PONG_S,
            )
        except OSError as error:
            raise not_listening(host, port, error) from error
        self._watch = asyncio.create_task(self._look())
        return f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"

    async def serve_until_stopped(self) -> None:
        """Until SIGINT or SIGTERM; what is under way then is finished, unless the signal comes again."""
        stops: asyncio.Queue[None] = asyncio.Queue()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stops.put_nowait, None)
        await stops.get()
        drain, again = asyncio.create_task(self.drain()), asyncio.create_task(stops.get())
        await asyncio.wait((drain, again), return_when=asyncio.FIRST_COMPLETED)
        for task in (drain, again):
            task.cancel()
        await self.close()

    async def drain(self) -> None:
        """Take nothing new, so that another server may listen here at once; finish what is under way."""
        self.draining = True
        if self._server is not None:
            self._server.close(close_connections=False)
        last = time.monotonic() + self.limits.drain_s
        log.info("going down: %d sessions", len(self._sessions))
        while self._sessions and time.monotonic() < last:
            await asyncio.gather(*(session.go_down() for session in self._sessions if not session.busy))
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        self.draining = True
        if self._watch is not None:
            self._watch.cancel()
        if self._server is not None:
            self._server.close(close_connections=False)
            await asyncio.gather(*(session.go_down() for session in self._sessions))
            await self._server.wait_closed()
        self.thread.stop()

    async def _look(self) -> None:
        engine = self.thread.engine
        while True:
            await asyncio.sleep(WATCH_S)
            self.thread.call(engine.tick)
            now_s = time.monotonic()
            for session in list(self._sessions):
                await session.look(now_s)

    @property
    def ready(self) -> bool:
        return not self.draining and not self.thread.hangs

    def _gauges(self) -> dict[str, tuple[str, float]]:
        engine = self.thread.engine
        memory = engine.model.memory
        return {
            "sessions": ("Open sessions.", len(self._sessions)),
            "working": ("Texts in work.", engine.working),
            "waiting": ("Texts that wait for memory.", engine.waiting),
            "kept_texts": ("Texts whose keys and values are kept for their next turn.", len(engine.kept)),
            "kept_evicted": ("Kept texts that were let go for want of memory.", engine.kept.evicted),
            "kv_promised_bytes": ("Memory promised to keys and values.", memory.promised_bytes),
            "kv_limit_bytes": ("Memory that keys and values may take.", memory.limit_bytes),
            "ready": ("Does it take new work?", int(self.ready)),
        }

    async def _on_connection(self, connection: ServerConnection) -> None:
        session = Session(self, connection)
        self._sessions.add(session)
        try:
            if len(self._sessions) > self.limits.sessions:
                await session._refuse(Busy(f"the cloud has its {self.limits.sessions} sessions: try later"))
                return
            await session.run()
        finally:
            self._sessions.discard(session)

    def _on_request(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.split("?")[0]
        if path == PATH:
            return None
        if path == "/metrics":
            response = connection.respond(http.HTTPStatus.OK, self._exposition.text().decode())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = CONTENT_TYPE
            return response
        if path == "/ready":
            why = "going down" if self.draining else "the engine hangs" if self.thread.hangs else ""
            status = http.HTTPStatus.SERVICE_UNAVAILABLE if why else http.HTTPStatus.OK
            return _json(connection, status, {"ready": not why, **({"why": why} if why else {})})
        if path == "/health":
            about = {
                "status": "ok",
                "version": __version__,
                "model": self.base.name,
                "fingerprint": self.base.fingerprint,
                "sessions": len(self._sessions),
            }
            return _json(connection, http.HTTPStatus.OK, about)
        paths = f"paths are {PATH}, /health, /ready and /metrics"
        return _json(connection, http.HTTPStatus.NOT_FOUND, {"error": paths})


def _json(connection: ServerConnection, status: http.HTTPStatus, body: dict[str, Any]) -> Response:
    response = connection.respond(status, json.dumps(body) + "\n")
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    return response
