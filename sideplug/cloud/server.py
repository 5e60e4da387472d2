"""The WebSocket server: one connection is one device's session; frames in, frames out.

Sockets and asyncio are here and nowhere else in the cloud; the engine runs in a thread of its own and is reached
through its inbox. Nothing of a session is written anywhere, and no text is logged. It does not know plugins or
training.

    GET /health       one JSON object
    /v1/session       the WebSocket of docs/WIRE.md

Where keys are asked for (cloud/guard), every request must bear one.
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
from sideplug.cloud.guard import RETRY_S, Guard
from sideplug.cloud.keys import Holder, Keys
from sideplug.cloud.reply import Habits, Plug, Reply
from sideplug.cloud.store import Base
from sideplug.cloud.tokenizer import TextStream
from sideplug.contract.errors import Busy, InputError, ProtocolError, SideplugError, TooLong, Unauthorized, WrongBase
from sideplug.contract.gate import Gate
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
OUTBOX_FRAMES = 32  # a device that does not read what it asked for is not read from either
REVOKED_CLOSE_S = 2.0  # for a device to hear that its key was revoked, before the line is cut
CALLS_A_STEP = 256  # of the inbox, so that no device's flood keeps the others' steps waiting
log = logging.getLogger("sideplug.cloud")


@dataclass(frozen=True)
class Limits:
    """sessions at once; examples that a session may have in reading at once; bytes of one incoming message."""

    sessions: int = 64
    readings: int = 8
    message_bytes: int = 16 << 20


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
        self.holder: Holder | None = getattr(connection, "holder", None)  # whose key it came with
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[Frame] = asyncio.Queue()
        self._sent = asyncio.Event()
        self._plug: Plug | None = None
        self._reply: Reply | None = None
        self._readings: dict[int, Reading] = {}
        self._rows_asked = False
        self._habits = Habits()
        self._deadline_s = 0.0

    async def run(self) -> None:
        sender = asyncio.create_task(self._send_all())
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._open(await self._receive())
            while True:
                self._handle(await self._receive())
                while self._outbox.qsize() > OUTBOX_FRAMES:
                    self._sent.clear()
                    await self._sent.wait()
        except (ConnectionClosed, TimeoutError):
            pass
        except Exception as error:
            await self._refuse(error)
        finally:
            sender.cancel()
            works = [*self._readings.values(), *([self._reply] if self._reply else [])]
            self._server.thread.call(lambda: self._server.thread.engine.drop(*works))

    async def _receive(self) -> Frame:
        message = await self._connection.recv()
        if not isinstance(message, bytes):
            raise ProtocolError("a message must be binary")
        return decode(message)

    async def _refuse(self, error: Exception) -> None:
        """Say why, and end the session, with the close code of docs/WIRE.md."""
        if not isinstance(error, SideplugError):
            log.error("a session failed", exc_info=error)
        await self._end(error_frame(error))

    async def _end(self, frame: Frame) -> None:
        codes = {"protocol": 1002, "busy": 1013, "internal": 1011}
        try:
            await self._connection.send(encode(frame))
            await self._connection.close(codes.get(frame["code"], 1008), frame["code"])
        except ConnectionClosed:
            pass

    async def _send_all(self) -> None:
        """Frames leave in order. What a frame completes is free again when it leaves, not when it is queued."""
        try:
            while True:
                frame = await self._outbox.get()
                self._sent.set()
                if frame.kind is Kind.DONE:
                    self._reply = None
                elif frame.kind is Kind.HEAD:
                    self._rows_asked = False
                elif frame.kind is Kind.SCORED or (frame.kind is Kind.EXAMPLE and not self._is_scored(frame)):
                    self._readings.pop(frame["number"], None)
                await self._connection.send(encode(frame))
                if frame.kind is Kind.ASK and self._deadline_s:
                    self._expect_answer(frame)
        except ConnectionClosed:
            pass
        except Exception as error:
            await self._refuse(error)

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
        """Called in the engine's thread. An ERROR from there is of a work that failed, and ends the session."""
        if frame.kind is Kind.ERROR:
            self._in_loop(lambda: asyncio.ensure_future(self._end(frame)))
        else:
            self._in_loop(lambda: self._outbox.put_nowait(frame))

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
        control = {"session": secrets.token_hex(8), "model": about, "limits": limits}
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
            cache = engine.model.new_cache(min(len(ids) + frame["max_tokens"], engine.model.context))
        except (InputError, Busy) as error:  # the user's mistake, or nobody's: the session goes on
            self._outbox.put_nowait(error_frame(error))
            return
        self._deadline_s = deadline_ms / 1000
        self._reply = Reply(
            ids,
            self._send_from_engine,
            cache,
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
        )
        reply = self._reply
        self._in_engine(lambda: engine.add(reply))

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
            cache = engine.model.new_cache(len(start) + size)
        except (InputError, Busy) as error:
            self._outbox.put_nowait(error_frame(error, number))
            return
        reading = Reading(start + reply, self._send_from_engine, cache, number, plug, len(start), frame["score"], write)
        self._readings[number] = reading
        self._in_engine(lambda: engine.add(reading))

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
        self.guard = Guard(keys)
        self.thread = EngineThread(make_engine)
        self.tokenizer = self.thread.engine.tokenizer
        self._sessions: set[Session] = set()
        self._server: Server | None = None

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
            )
        except OSError as error:
            raise not_listening(host, port, error) from error
        return f"{'wss' if tls else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"

    async def serve_until_stopped(self) -> None:
        """Until SIGINT or SIGTERM."""
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()
        await self.close()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        self.thread.stop()

    async def _on_connection(self, connection: ServerConnection) -> None:
        session = Session(self, connection)
        others = [other.holder for other in self._sessions]
        self._sessions.add(session)
        watch = asyncio.create_task(self._watch(session, connection))
        try:
            if len(others) >= self.limits.sessions:
                raise Busy(f"the cloud has its {self.limits.sessions} sessions: try later")
            self.guard.check_room(session.holder, others)  # again: several may have been on their way at once
            await session.run()
        except Busy as error:
            await session._refuse(error)
        finally:
            watch.cancel()
            self._sessions.discard(session)

    async def _watch(self, session: Session, connection: ServerConnection) -> None:
        """End a session whose key was revoked, even if its device does not listen."""
        reason = await self.guard.until_revoked(session.holder)
        try:
            async with asyncio.timeout(REVOKED_CLOSE_S):
                await session._end(error_frame(reason))
        except TimeoutError:
            connection.transport.abort()

    def _on_request(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.split("?")[0]
        try:
            holder = self.guard.admit(request.headers.get_all("Authorization"))
            if path == PATH:
                self.guard.check_room(holder, (session.holder for session in self._sessions))
        except Unauthorized as error:
            refusal = {"error": str(error)}
            return _json(connection, http.HTTPStatus.UNAUTHORIZED, refusal, {"WWW-Authenticate": "Bearer"})
        except Busy as error:
            refusal, wait = {"error": str(error)}, {"Retry-After": str(RETRY_S)}
            return _json(connection, http.HTTPStatus.TOO_MANY_REQUESTS, refusal, wait)
        if path == PATH:
            connection.holder = holder  # type: ignore[attr-defined]  # for the Session that it becomes
            return None
        if path == "/health":
            about = {
                "status": "ok",
                "version": __version__,
                "model": self.base.name,
                "fingerprint": self.base.fingerprint,
                "sessions": len(self._sessions),
            }
            return _json(connection, http.HTTPStatus.OK, about)
        return _json(connection, http.HTTPStatus.NOT_FOUND, {"error": f"paths are {PATH} and /health"})


def _json(
    connection: ServerConnection, status: http.HTTPStatus, body: dict[str, Any], headers: dict[str, str] | None = None
) -> Response:
    response = connection.respond(status, json.dumps(body, ensure_ascii=False) + "\n")
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    response.headers.update(headers or {})
    return response
