"""One device's session: frames in, frames out, whatever carries them. Runs in the event loop.

It asks the engine for what the device wants, through the engine's inbox, and hands on what comes back. Nothing of it is
written anywhere, and no text is logged. It does not know sockets (a Connection is given), plugins or training.
Test: pytest tests/cloud/test_server.py
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sideplug.cloud.engine import TOP, Reading
from sideplug.cloud.keys import Holder
from sideplug.cloud.logs import event
from sideplug.cloud.reply import AcceptanceStats, Reply, SessionSpec
from sideplug.cloud.tokenizer import TextStream
from sideplug.contract.errors import (
    Busy,
    InputError,
    ProtocolError,
    SideplugError,
    Silent,
    TooLong,
    Unauthorized,
    WrongBase,
)
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
    ROWS_PER_FRAME,
    Frame,
    Kind,
    decode,
    encode,
    error_frame,
)

if TYPE_CHECKING:
    from sideplug.cloud.service import Service

OPEN_TIMEOUT_S = 10.0  # from the connection to OPEN
OUTBOX_FRAMES = 32  # a device that does not read what it asked for is not read from either, and its reply is held
STALL_S = 60.0  # a device that reads nothing for so long is cut off
GOODBYE_S = 2.0  # for a device to hear why its session ends, before the line is cut
GOING_DOWN = 1012  # close code: come back, to the one that takes over
ENDURED = ("busy", "bad-input", "too-long")  # what a session survives
log = logging.getLogger("sideplug.cloud")


class Gone(Exception):
    """The connection has ended."""


class Connection(Protocol):
    """A WebSocket. recv and send raise Gone when it has ended."""

    async def recv(self) -> bytes | str: ...

    async def send(self, message: bytes) -> None:
        """Returns when the device reads as fast as it is sent to."""
        ...

    async def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None:
        """At once, without a goodbye."""
        ...


class Session:
    """One device's connection: what it may do, and what it has under way. Runs in the event loop."""

    def __init__(self, service: Service, connection: Connection, holder: Holder | None = None) -> None:
        self._service = service
        self._engine = service.thread.engine
        self._connection = connection
        self.holder = holder  # whose key it came with
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[Frame] = asyncio.Queue()
        self._sent = asyncio.Event()
        self._plug: SessionSpec | None = None
        self._reply: Reply | None = None
        self._readings: dict[int, Reading] = {}
        self._refused: set[int | None] = set()  # READs, and the PROMPT (None), whose ERROR has not left yet
        self._rows_asked = False
        self._habits = AcceptanceStats()
        self._deadline_s = 0.0
        self._received = self._transmitted = 0
        self._up = self._down = 0  # bytes
        self._held = False  # the reply, because the device does not read
        self._ending: asyncio.Task[None] | None = None
        self._sending_s = 0.0  # since when a frame waits for the device to read; 0: none does
        self._began_s = time.monotonic()
        self._name = secrets.token_hex(8)
        # Of one key's sessions none has more of a step than another's; without keys each is somebody.
        self._user = holder.id if holder else self._name
        self._scope = holder.id if holder else ""

    async def run(self) -> None:
        sender = asyncio.create_task(self._send_all())
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._open(await self._receive())
            while True:
                frame = await self._receive()
                if self._service.draining and frame.kind in (Kind.PROMPT, Kind.READ):
                    await self.go_down()
                    return
                self._handle(frame)
                while self._outbox.qsize() > OUTBOX_FRAMES and not sender.done():
                    self._sent.clear()
                    await self._sent.wait()
        except (Gone, TimeoutError):
            pass
        except Exception as error:
            await self.refuse(error)
        finally:
            sender.cancel()
            readings, reply = list(self._readings.values()), self._reply
            self._service.thread.call(lambda: self._engine.drop(*readings))
            self._readings, self._reply = {}, None  # they hold this session, which would outlive itself for long
            if reply is not None:
                self._service.thread.call(lambda: self._engine.leave(reply))
            self._say_goodbye()

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
        meters = self._service.meters
        kind = frame.kind.name.lower()
        if direction == "up":
            self._up += len(message)
        else:
            self._down += len(message)
            if frame.kind is Kind.ERROR:
                meters.refused[frame["code"]] += 1
                event(log, "refused", session=self._name, key=self._who, code=frame["code"])
        meters.frames[direction, kind] += 1
        meters.bytes[direction, kind, self._plug.tap.codec if self._plug else ""] += len(message)

    async def refuse(self, error: Exception) -> None:
        """Say why, and end the session, with the close code of docs/WIRE.md."""
        await self._end(self._say_why(error))

    @staticmethod
    def _say_why(error: Exception) -> Frame:
        if not isinstance(error, SideplugError):
            log.error("a session failed", exc_info=error)
        return error_frame(error)

    async def _end(self, frame: Frame) -> None:
        codes = {"protocol": 1002, "busy": 1013, "internal": 1011}
        try:
            await self._transmit(frame)
            await self._connection.close(codes.get(frame["code"], 1008), frame["code"])
        except Gone:
            pass

    async def _send_all(self) -> None:
        """Frames leave in order. What a frame completes is free again when it leaves, not when it is queued."""
        try:
            while True:
                frame = await self._outbox.get()
                self._sent.set()
                if self._held and self._reply is not None and self._outbox.qsize() < OUTBOX_FRAMES // 2:
                    self._hold(self._reply, False)
                if frame.kind is Kind.DONE:
                    self._account(frame)
                number = frame.control.get("number")
                if frame.kind is Kind.ERROR and number in self._refused:
                    self._refused.discard(number)
                elif frame.kind is Kind.DONE or (frame.kind is Kind.ERROR and number is None):
                    self._reply, self._held = None, False
                elif frame.kind is Kind.ERROR:
                    self._readings.pop(frame["number"], None)
                elif frame.kind is Kind.HEAD:
                    self._rows_asked = False
                elif frame.kind is Kind.SCORED or (frame.kind is Kind.EXAMPLE and not self._is_scored(frame)):
                    self._readings.pop(frame["number"], None)
                await self._transmit(frame)
                if frame.kind is Kind.ASK and 0 < self._deadline_s < self._service.limits.answer_s:
                    self._expect_answer(frame["run"], frame["at"][0])
        except Gone:
            pass
        except Exception as error:
            await self.refuse(error)
        finally:
            self._sent.set()  # nothing is sent any more: whoever waits for it waits in vain

    def _account(self, done: Frame) -> None:
        """A reply has ended: what it took, without a word of it."""
        reply = self._reply
        if reply is None:
            return
        if self.holder is not None:
            new = done["reply"] - len(reply.done)
            self._service.meter.charge(self.holder.id, new, self.holder.limits.tokens_per_minute, time.monotonic())
        counts = {name: done["counts"][name] for name in ("asked", "round_trips", "fallback")}
        seconds = round(time.monotonic() - reply.since_s, 3)
        told = {"prompt": done["prompt"], "reply": done["reply"], "why": done["why"], **counts, "seconds": seconds}
        event(log, "reply", session=self._name, key=self._who, **told)

    @property
    def _who(self) -> str:
        return self.holder.name if self.holder else ""

    def _say_goodbye(self) -> None:
        seconds = round(time.monotonic() - self._began_s, 3)
        event(log, "session ended", session=self._name, key=self._who, seconds=seconds, up=self._up, down=self._down)

    def _put(self, frame: Frame) -> None:
        self._outbox.put_nowait(frame)
        if self._reply is not None and not self._held and self._outbox.qsize() > OUTBOX_FRAMES:
            self._hold(self._reply, True)

    def _hold(self, reply: Reply, held: bool) -> None:
        """A reply is held while its device does not read what it was sent. Said in turn, so heard in turn."""
        self._held = held
        self._in_engine(lambda: self._engine.hold(reply, held))

    @property
    def busy(self) -> bool:
        return self._reply is not None or bool(self._readings) or not self._outbox.empty()

    def look(self, now_s: float) -> None:
        """Once a second: is the key still in force, is the device silent where it was asked, or does it not read?"""
        reply, most = self._reply, self._service.limits.answer_s
        asks = list(reply.asks) if reply is not None else []
        if self._sending_s and now_s - self._sending_s > STALL_S:
            self._connection.abort()
            return
        try:
            self._service.guard.check_valid(self.holder)
            if asks and now_s - asks[0].asked_s > most:
                raise Silent(f"the device has not answered for {most:.0f} s")
        except (Unauthorized, Silent) as error:
            self._begin_end(error_frame(error))

    def _begin_end(self, frame: Frame) -> None:
        """End the session soon, even if its device does not listen."""

        async def end() -> None:
            try:
                async with asyncio.timeout(GOODBYE_S):
                    await self._end(frame)
            except TimeoutError:
                self._connection.abort()

        if self._ending is None:
            self._ending = asyncio.create_task(end())

    async def go_down(self) -> None:
        """The server ends: so does this session, and its device may come back to the one that takes over."""
        try:
            await self._connection.close(GOING_DOWN, "the cloud is going down")
        except Gone:
            pass

    def _expect_answer(self, run: int, at: int) -> None:
        """Tell the engine when the answer's deadline has passed. (Past `answer_s` there is nobody to wait for.)"""
        reply = self._reply
        if reply is not None:
            passed = lambda: self._engine.expire(reply, run, at)  # noqa: E731
            self._loop.call_later(self._deadline_s, self._in_engine, passed)

    def _is_scored(self, frame: Frame) -> bool:
        reading = self._readings.get(frame["number"])
        return reading is not None and reading.score

    def _send_from_engine(self, frame: Frame) -> None:
        """Called in the engine's thread. An ERROR from there ends the session if it is of a work that failed."""
        if frame.kind is Kind.ERROR and frame["code"] not in ENDURED:
            self._in_loop(lambda: self._begin_end(frame))
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
                frame = self._say_why(error)
                self._in_loop(lambda: self._begin_end(frame))

        self._service.thread.call(run)

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
    def _opened(self) -> SessionSpec:
        assert self._plug is not None
        return self._plug

    async def _open(self, frame: Frame) -> None:
        base, model = self._service.base, self._engine.model
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
        self._plug = SessionSpec(tap, gate, frame["merge"])
        await asyncio.to_thread(tap.prepare, model.width)
        shape = {"blocks": model.blocks, "width": model.width, "vocab": model.vocab, "context": model.context}
        about = {"name": base.name, "fingerprint": base.fingerprint, "chat": self._service.tokenizer.has_chat, **shape}
        limits = {"readings": self._service.limits.readings, "message_bytes": self._service.limits.message_bytes}
        control = {"session": self._name, "model": about, "limits": limits}
        self._outbox.put_nowait(Frame(Kind.OPENED, control))
        client = re.sub(r"[^\w./ -]", "?", frame["client"][:40])
        event(log, "session opened", session=self._name, key=self._who, tap=tap.name, gate=gate.kind, client=client)

    def _prompt(self, frame: Frame) -> None:
        if self._reply is not None or None in self._refused:
            raise ProtocolError("a session must wait for DONE, or the ERROR, before its next PROMPT")
        try:
            ids = self._service.tokenizer.encode(self._short_enough(Prompt.from_wire(frame.control)))
            if not ids:
                raise InputError("the prompt is empty: give at least one word")
            if max(ids) >= self._engine.model.vocab:
                raise InputError(f"a prompt's ids must be below {self._engine.model.vocab}, got {max(ids)}")
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
            self._pay(len(ids))
        except (InputError, Busy) as error:  # the user's mistake, or a limit: the session goes on
            self._turn_away(error)
            return
        self._deadline_s = deadline_ms / 1000
        self._reply = Reply(
            ids,
            self._send_from_engine,
            frame["turn"],
            self._opened,
            TextStream(self._service.tokenizer),
            sampling,
            frame["max_tokens"],
            self._engine.model.context,
            self._service.tokenizer.stop_ids,
            ahead,
            head,
            top,
            self._habits,
            done,
            user=self._user,
            scope=self._scope,
        )
        self._add(self._reply)

    def _turn_away(self, error: Exception, number: int | None = None) -> None:
        """Refuse a PROMPT, or the READ of this number; its ERROR must not end another that comes meanwhile."""
        self._refused.add(number)
        self._outbox.put_nowait(error_frame(error, number))

    def _pay(self, tokens: int) -> None:
        """Take tokens from what the key has of a minute. Raises Busy."""
        if self.holder is None:
            return
        limit = self.holder.limits.tokens_per_minute
        wait_s = self._service.meter.take(self.holder.id, tokens, limit, time.monotonic())
        if wait_s:
            raise Busy(f"this key has used its {limit:,} tokens a minute: try again in {wait_s:.0f} s", wait_s)

    def _agreed(self, frame: Frame, ids: list[int]) -> list[int]:
        """The reply's ids that the device has from before it was cut off. Raises InputError unless both hash alike."""
        done = frame.control.get("done", [])
        vocab, most = self._engine.model.vocab, min(frame["max_tokens"], self._engine.model.context - len(ids))
        if len(done) > most or not all(type(token) is int and 0 <= token < vocab for token in done):
            raise InputError(
                f"what is done of a reply must be at most max_tokens ids below {vocab}, and fit the context ({most})"
            )
        if done and frame.control.get("hash") != running_hash(done, running_hash(ids)):
            raise InputError("this cloud reads the prompt otherwise than the one that began the reply: ask anew")
        return done

    def _add(self, work: Reply | Reading, number: int | None = None) -> None:
        """To the engine, which may have no room: that leaves the session open."""

        def add() -> None:
            try:
                self._engine.add(work)
            except (InputError, Busy) as error:
                self._send_from_engine(error_frame(error, number))

        self._in_engine(add)

    def _short_enough(self, prompt: Prompt, reply: str = "") -> Prompt:
        """Refuse what can't fit before the tokenizer spends everybody's time on it: tokens are shorter than this."""
        context = self._engine.model.context
        size = prompt.characters + len(reply)
        if size > 100 * context:
            raise TooLong(f"the text has {size:,} characters, the base model takes at most {context} tokens")
        return prompt

    def _check_length(self, tokens: int, what: str) -> None:
        context = self._engine.model.context
        if tokens > context:
            raise TooLong(f"{what} has {tokens} tokens with its reply, the base model takes at most {context}")

    def _answer(self, frame: Frame) -> None:
        reply = self._reply
        if reply is not None:  # else: an answer to a reply that has just been cancelled
            self._in_engine(lambda: self._engine.answer(reply, frame))

    def _cancel(self, frame: Frame) -> None:
        reply = self._reply
        if reply is not None and reply.turn == frame["turn"]:
            self._in_engine(lambda: self._engine.cancel(reply))

    def _read(self, frame: Frame) -> None:
        number, limit = frame["number"], self._service.limits.readings
        if number in self._readings or number in self._refused or len(self._readings) >= limit:
            raise ProtocolError(f"a session must have at most {limit} examples in reading, each with its own number")
        plug = self._opened
        try:
            prompt = self._short_enough(Prompt.from_wire(frame.control), frame["reply"])
            write, reply = frame.control.get("write", 0), list[int]()
            if write:
                if not 0 < write <= MAX_WRITTEN or frame["reply"] or frame["score"]:
                    raise InputError(f"the base writes 1 to {MAX_WRITTEN} tokens, and no reply is given then")
                start = self._service.tokenizer.encode(prompt)
            else:
                start, reply = self._service.tokenizer.encode_example(prompt, frame["reply"])
            size = len(reply) or write
            if not start or not size:
                raise InputError("the example has nothing to learn: its reply is empty, or its text one token")
            self._check_length(len(start) + size, "the example")
            most = MAX_PAYLOAD_BYTES // (plug.tap.bytes_per_token + 2 * self._engine.model.width + 4 * TOP + 8)
            if size > most:
                raise TooLong(f"the example's reply has {size} tokens, with this tap it may have at most {most}")
            self._pay(len(start) + size)
        except (InputError, Busy) as error:
            self._turn_away(error, number)
            return
        how = (number, plug, len(start), frame["score"], write)
        reading = Reading(start + reply, self._send_from_engine, *how, user=self._user, scope=self._scope)
        self._readings[number] = reading
        self._add(reading, number)

    def _score(self, frame: Frame) -> None:
        reading = self._readings.get(frame["number"])
        if reading is None:
            raise ProtocolError(f"example {frame['number']} must be read with score before it is scored")
        self._in_engine(lambda: self._engine.score(reading, frame))

    def _rows(self, frame: Frame) -> None:
        model = self._engine.model
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
