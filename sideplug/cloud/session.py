"""One device's session: frames in, frames out, over whatever connection it is given. It runs in the event loop.

`exchange` says which frame may come now, `requests` what it asks for, and the engine does it, in its own thread: calls
go there through its inbox, and frames come back through the loop. Nothing of a session is written to disk, and no text
is logged. It does not know sockets, plugins or training. Test: pytest tests/cloud/test_server.py
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from sideplug.cloud import requests
from sideplug.cloud.bill import Bill
from sideplug.cloud.correction_predictor import CorrectionPredictor
from sideplug.cloud.engine import Chore
from sideplug.cloud.exchange import Exchange, State, Work
from sideplug.cloud.host import Shared
from sideplug.cloud.keys import Holder
from sideplug.cloud.logs import event
from sideplug.cloud.reply import Reply
from sideplug.cloud.requests import Terms
from sideplug.cloud.speculation import AcceptanceStats
from sideplug.contract.capabilities import CAPABILITIES, GRAMMAR, TOOLS, check_extensions
from sideplug.contract.errors import Busy, InputError, ProtocolError, SideplugError, Silent, Unauthorized
from sideplug.contract.frames import (
    FROM_DEVICE,
    Answer,
    Ask,
    Cancel,
    Done,
    Error,
    Frame,
    Head,
    Kind,
    Open,
    Opened,
    PromptFrame,
    Read,
    Rows,
    Score,
    SessionLimits,
    tensors_of,
)
from sideplug.contract.wire import decode, encode, error_frame

OPEN_TIMEOUT_S = 10.0  # from the connection to OPEN
OUTBOX_FRAMES = 32  # with more frames waiting to be sent, the device is not read from and its reply is held …
OUTBOX_BYTES = 1 << 20  # … and held with more bytes too
BIG_BYTES = 64 << 10  # a longer message is decoded aside, so that nobody waits for it
BIG_CHARACTERS = 16_000  # a longer text is tokenized aside
MIN_IDS = 1 << 16  # token ids that one list may have at least; beyond, twice the model's context
TURN = 16  # frames of one device that are taken before the others have their turn
READING_S = 0.005  # of tokenizing for one device in a row, without the model; then it rests for as long
STALL_S = 60.0  # a device that does not read a frame for this long is cut off
GOODBYE_S = 2.0  # for sending the reason why a session ends, before the connection is cut
GOING_DOWN = 1012  # close code: connect again, to the server that takes over
CLOSE_CODES = {"protocol": 1002, "busy": 1013, "internal": 1011}  # by error code; 1008 for all others
SURVIVED = ("busy", "bad-input", "too-long")  # codes of the engine's errors that do not end a session
NEW_WORK = (Kind.PROMPT, Kind.READ)  # frames that a server that is going down does not take any more
log = logging.getLogger("sideplug.cloud")
T = TypeVar("T")


class Gone(Exception):
    """The connection has ended."""


class Connection(Protocol):
    """A WebSocket. `recv` and `send` raise Gone when it has ended."""

    async def recv(self) -> bytes | str:
        """The next message."""
        ...

    async def send(self, message: bytes) -> None:
        """Send a message; it waits while the device does not read."""
        ...

    async def close(self, code: int, reason: str) -> None:
        """Close it with a WebSocket close code and a reason."""
        ...

    def abort(self) -> None:
        """Cut the connection at once, without a closing handshake."""
        ...


class Session:
    """One device's connection."""

    def __init__(self, shared: Shared, connection: Connection, holder: Holder | None = None) -> None:
        """`holder`: whose key the device came with; None where no keys are asked for."""
        self._shared = shared
        self._engine = shared.thread.engine
        self._connection = connection
        self.holder = holder
        self._loop = asyncio.get_running_loop()
        self._exchange = Exchange(shared.limits.readings)
        self._opened: Terms | None = None
        self._outbox: asyncio.Queue[Frame] = asyncio.Queue()
        self._outbox_moved = asyncio.Event()
        self._outbox_bytes = 0
        self._unanswered = 0  # positions that the device was asked about and has not answered
        self._received = self._transmitted = 0  # frames
        self._bytes_up = self._bytes_down = 0
        self._reading_s = 0.0
        self._held = False  # whether the reply is held because the device does not read
        self._ending: asyncio.Task[None] | None = None
        self._sending_since_s = 0.0  # since when the frame that is being sent waits for the device; 0: none is
        self._began_s = time.monotonic()
        self._name = secrets.token_hex(8)
        # The sessions of one key share its part of all that is shared; without keys each session is a user of its own.
        self._user = holder.id if holder else self._name
        self._most_ids = max(MIN_IDS, 2 * self._engine.model.context)

    # The transport: frames in their order, in both directions ─────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Serve the device until the connection ends, or until it is refused."""
        sender = asyncio.create_task(self._send_all())
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._open(await self._receive())
            while await self._take_next():
                while self._outbox.qsize() > OUTBOX_FRAMES and not sender.done():
                    self._outbox_moved.clear()
                    await self._outbox_moved.wait()
        except (Gone, TimeoutError):
            pass
        except Exception as error:
            await self.refuse(error)
        finally:
            sender.cancel()
            reply, examples = self._exchange.reply, self._exchange.examples
            self._exchange.end()  # its works refer to this session, which would stay alive with them
            self._opened = None  # and with it the projection of its tap
            self._shared.thread.call(lambda: self._engine.drop(*examples))
            if reply is not None:
                self._shared.thread.call(lambda: self._engine.leave(reply))
            self._log_end()

    async def _take_next(self) -> bool:
        """Take one frame; False: the session ends. Nothing here keeps the frame, whose device may now be idle."""
        frame = await self._receive()
        if self._shared.draining.is_set() and frame.kind in NEW_WORK:
            await self.go_down()
            return False
        rest = self._handle(frame)
        if rest is not None:
            await rest
        if self._received % TURN == 0:
            await asyncio.sleep(0)
        return True

    async def _receive(self) -> Frame:
        message = await self._connection.recv()
        if not isinstance(message, bytes):
            raise ProtocolError("a message must be binary")
        self._received += 1
        read = partial(decode, message, self._received - 1, FROM_DEVICE, self._most_ids)
        frame = await self._aside(read, len(message) > BIG_BYTES)
        self._bytes_up += len(message)
        self._count("up", frame, message)
        return frame

    async def _aside(self, function: Callable[[], T], is_long: bool) -> T:
        """Return function(), called in the thread for long work if it `is_long`."""
        return await self._shared.aside.run(self._user, function) if is_long else function()

    async def _transmit(self, frame: Frame) -> None:
        message = encode(frame, self._transmitted)
        self._transmitted += 1
        self._bytes_down += len(message)
        self._count("down", frame, message)
        if isinstance(frame, Error):
            self._shared.counters.refused[frame.code] += 1
            event(log, "refused", session=self._name, key=self._key_name, code=frame.code)
        self._sending_since_s = time.monotonic()
        await self._connection.send(message)
        self._sending_since_s = 0.0

    def _count(self, direction: str, frame: Frame, message: bytes) -> None:
        kind, codec = frame.kind.name.lower(), self._opened.spec.tap.codec if self._opened else ""
        self._shared.counters.frames[direction, kind] += 1
        self._shared.counters.bytes[direction, kind, codec] += len(message)
        if self.holder is not None:
            self._shared.usage.bytes[self.holder.name] += len(message)

    async def _send_all(self) -> None:
        """Send the outbox in its order. What a frame completes is completed when it leaves the outbox."""
        try:
            while True:
                frame = await self._outbox.get()
                self._outbox_bytes -= _payload_bytes(frame)
                self._outbox_moved.set()
                reply = self._exchange.reply
                if self._held and reply is not None and self._is_below(OUTBOX_FRAMES // 2, OUTBOX_BYTES // 2):
                    self._hold(reply, False)
                if isinstance(frame, Done) and reply is not None:
                    self._log_reply(frame, reply)
                if isinstance(frame, Ask):
                    self._unanswered += len(frame.at)
                self._exchange.complete(frame)
                if self._exchange.reply is None:
                    self._held = False
                await self._transmit(frame)
                if isinstance(frame, Ask):
                    self._start_deadline(frame)
        except Gone:
            pass
        except Exception as error:
            await self.refuse(error)
        finally:
            self._outbox_moved.set()  # nothing will be sent any more, so nobody must wait for it

    def _put(self, frame: Frame) -> None:
        """Queue a frame. If too many wait, the reply is held until the device has read some."""
        self._outbox.put_nowait(frame)
        self._outbox_bytes += _payload_bytes(frame)
        reply = self._exchange.reply
        if reply is not None and not self._held and not self._is_below(OUTBOX_FRAMES + 1, OUTBOX_BYTES + 1):
            self._hold(reply, True)

    def _is_below(self, frames: int, size: int) -> bool:
        """Whether fewer frames than these wait to be sent, and fewer bytes."""
        return self._outbox.qsize() < frames and self._outbox_bytes < size

    def _hold(self, reply: Reply, held: bool) -> None:
        """Tell the engine to hold a reply, or to go on with it."""
        self._held = held
        self._in_engine(lambda: self._engine.hold(reply, held))

    def _start_deadline(self, ask: Ask) -> None:
        """The answer's deadline begins when its ASK has been sent. (One past `answer_s` cannot be reached.)"""
        reply = self._exchange.reply
        if reply is not None and 0 < reply.deadline_s < self._shared.limits.answer_s:
            run, at = ask.run, ask.at[0]
            expire = lambda: self._engine.expire(reply, run, at)  # noqa: E731
            self._loop.call_later(reply.deadline_s, self._in_engine, expire)

    # How it ends ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def refuse(self, error: Exception) -> None:
        """Send why, and end the session with the close code of docs/WIRE.md."""
        await self._end(self._error_frame(error))

    @staticmethod
    def _error_frame(error: Exception) -> Error:
        if not isinstance(error, SideplugError):
            log.error("a session failed", exc_info=error)
        return error_frame(error)

    async def _end(self, frame: Error) -> None:
        try:
            await self._transmit(frame)
            await self._connection.close(CLOSE_CODES.get(frame.code, 1008), frame.code)
        except Gone:
            pass

    def _begin_end(self, frame: Error) -> None:
        """End the session within GOODBYE_S, even if its device does not read."""

        async def end() -> None:
            try:
                async with asyncio.timeout(GOODBYE_S):
                    await self._end(frame)
            except TimeoutError:
                self._connection.abort()

        if self._ending is None:
            self._ending = asyncio.create_task(end())

    async def go_down(self) -> None:
        """Close the connection because the server ends; the device may connect again, to the one that takes over."""
        try:
            await self._connection.close(GOING_DOWN, "the cloud is going down")
        except Gone:
            pass

    @property
    def busy(self) -> bool:
        """Whether it has work under way, or frames to send."""
        return bool(self._exchange.works) or not self._outbox.empty()

    def watch(self, now_s: float) -> None:
        """Called once a second: end a session whose key was revoked, whose device is silent, or does not read."""
        if self._sending_since_s and now_s - self._sending_since_s > STALL_S:
            self._connection.abort()
            return
        reply, most_s = self._exchange.reply, self._shared.limits.answer_s
        asks = list(reply.asks) if reply is not None else []
        try:
            self._shared.access.check_valid(self.holder)
            if asks and now_s - asks[0].asked_s > most_s:
                raise Silent(f"the device has not answered for {most_s:.0f} s")
        except (Unauthorized, Silent) as error:
            self._begin_end(error_frame(error))

    # What it tells the engine, and hears from it ──────────────────────────────────────────────────────────────────────

    def _in_engine(self, function: Callable[[], Any]) -> None:
        """Run `function` in the engine's thread; an error there ends the session."""
        self._shared.thread.call(self._guarded(function))

    def _guarded(self, function: Callable[[], Any]) -> Callable[[], None]:
        """The function, whose error ends the session."""

        def run() -> None:
            try:
                function()
            except Exception as error:
                frame = self._error_frame(error)
                self._in_loop(lambda: self._begin_end(frame))

        return run

    def _in_loop(self, function: Callable[[], Any]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop is closed: the server has stopped
            pass

    def _send_from_engine(self, frame: Frame) -> None:
        """The `send` of its works, called in the engine's thread. An ERROR of a failed work ends the session."""
        if isinstance(frame, Error) and frame.code not in SURVIVED:
            self._in_loop(lambda: self._begin_end(frame))
        else:
            self._in_loop(lambda: self._put(frame))

    def _add(self, work: Work, number: int | None = None) -> None:
        """Hand a work to the engine. If the engine has no room for it, an ERROR says so and the session stays open."""

        def add() -> None:
            try:
                self._engine.add(work)
            except (InputError, Busy) as error:
                work.bill.close()
                self._send_from_engine(error_frame(error, number))

        self._in_engine(add)

    # The frames that a device sends ───────────────────────────────────────────────────────────────────────────────────

    def _handle(self, frame: Frame) -> Awaitable[None] | None:
        """Take a frame; return what is to be awaited before the next one."""
        self._exchange.check(frame)
        check_extensions(frame, self._terms.spec.granted)
        match frame:
            case PromptFrame():
                return self._prompt(frame)
            case Answer():
                self._answer(frame)
            case Cancel():
                self._cancel(frame)
            case Read():
                return self._read(frame)
            case Score():
                self._score(frame)
            case Rows():
                self._rows(frame)
        return None

    @property
    def _terms(self) -> Terms:
        """What OPEN set, for the frames that come after it."""
        assert self._opened is not None
        return self._opened

    async def _open(self, frame: Frame) -> None:
        self._exchange.check(frame)
        assert isinstance(frame, Open)
        base, model, tokenizer = self._shared.base, self._engine.model, self._shared.tokenizer
        spec = requests.read_open(frame, base, model, self._shared.trunks, tokenizer.call_form is not None)
        scope, user = self.holder.id if self.holder else "", self._user
        take = partial(self._shared.taps.take, user, spec.tap, scope)
        tap = await self._aside(take, not self._shared.taps.is_at_hand(spec.tap))
        stats = AcceptanceStats(predictor=CorrectionPredictor(partial(self._shared.predictor_memory, user)))
        terms = Terms(replace(spec, encoder=tap.encoder), model, tokenizer, user, scope, stats, tap.claim)
        self._opened = replace(terms, grammars=self._shared.grammars)
        if self.holder is not None:
            self._shared.usage.sessions[self.holder.name] += 1
        self._exchange.state = State.OPEN
        limits = SessionLimits(self._shared.limits.readings, self._shared.limits.message_bytes)
        offers, granted = list(CAPABILITIES), list(spec.granted)
        self._outbox.put_nowait(Opened(self._name, self._shared.model_info, limits, offers, granted))
        client = re.sub(r"[^\w./ -]", "?", frame.client[:40])
        gates = ",".join(gate.kind for gate in spec.gates)
        opened = {"tap": spec.tap.name, "gate": gates, "client": client}
        event(log, "session opened", session=self._name, key=self._key_name, **opened)

    async def _prompt(self, frame: PromptFrame) -> None:
        read = partial(requests.read_prompt, frame, self._terms, self._send_from_engine)
        try:
            reply = await self._aside(read, _is_long(frame) or bool({GRAMMAR.name, TOOLS.name} & set(frame.extensions)))
            reply.bill = self._open_bill(reply.prompt_tokens + len(reply.done))
        except (InputError, Busy) as error:  # the user's mistake, or a limit: the session goes on
            self._turn_away(frame, error)
            return
        self._exchange.begin(frame, reply)
        self._add(reply)

    def _answer(self, frame: Answer) -> None:
        if not 0 < len(frame.at) <= self._unanswered:
            raise ProtocolError(f"a device must answer each question once: {self._unanswered} positions are open")
        self._unanswered -= len(frame.at)
        reply = self._exchange.reply
        if reply is not None:  # else it answers a reply that has just been cancelled
            self._in_engine(lambda: self._engine.answer(reply, frame))

    def _cancel(self, frame: Cancel) -> None:
        reply = self._exchange.reply
        if reply is not None and reply.turn == frame.turn:
            self._in_engine(lambda: self._engine.cancel(reply))

    async def _read_tokens(self, frame: Read) -> None:
        """A READ for which the model need not run: it is answered here, and its user's time in this loop is bounded."""
        started_s = time.monotonic()
        try:
            example = await self._aside(partial(requests.read_tokens, frame, self._terms), _is_long(frame))
            bill = self._open_bill(len(example.ids))
        except (InputError, Busy) as error:
            self._turn_away(frame, error)
            return
        self._in_engine(lambda: bill.run_to(0, len(example.ids)))
        self._shared.counters.examples += 1
        self._exchange.begin(frame)
        self._put(example)
        self._reading_s += time.monotonic() - started_s
        if self._reading_s > READING_S:
            await asyncio.sleep(self._reading_s)  # others have the loop for as long
            self._reading_s = 0.0

    async def _read(self, frame: Read) -> None:
        if frame.tokens:
            await self._read_tokens(frame)
            return
        read = partial(requests.read_example, frame, self._terms, self._send_from_engine)
        try:
            example = await self._aside(read, _is_long(frame))
            example.bill = self._open_bill(example.max_length)
        except (InputError, Busy) as error:
            self._turn_away(frame, error)
            return
        self._exchange.begin(frame, example)
        self._add(example, example.number)

    def _score(self, frame: Score) -> None:
        example = self._exchange.example(frame.number)
        self._in_engine(lambda: self._engine.score(example, frame))

    def _rows(self, frame: Rows) -> None:
        model = self._engine.model
        ids = requests.read_rows(frame, model)
        self._exchange.begin(frame)

        def answer() -> None:
            rows, bias = model.head_rows(ids)
            scale, softcap = float(model.logit_scale), float(model.softcap)
            self._send_from_engine(Head(frame.part, scale, softcap, rows.astype(np.float16), bias.astype(np.float32)))

        self._in_engine(lambda: self._engine.do(Chore(self._user, self._guarded(answer))))

    def _turn_away(self, frame: PromptFrame | Read, error: Exception) -> None:
        """Refuse a PROMPT or READ; the session goes on. Its slot is taken until the ERROR leaves."""
        self._exchange.begin(frame)
        self._outbox.put_nowait(error_frame(error, frame.number if isinstance(frame, Read) else None))

    # What it costs ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _open_bill(self, tokens: int) -> Bill:
        """The bill of a work that needs so many tokens at least. Raises Busy when the key has used its tokens."""
        account = self._shared.account(self.holder)
        return account.open_bill(tokens) if account else Bill()

    def _log_reply(self, done: Done, reply: Reply) -> None:
        """Log what a reply that has ended took, without a word of it."""
        counts = {name: done.counts[name] for name in ("asked", "round_trips", "fallback")}
        seconds = round(time.monotonic() - reply.since_s, 3)
        took = {"prompt": done.prompt, "reply": done.reply, "why": done.why, **counts, "seconds": seconds}
        event(log, "reply", session=self._name, key=self._key_name, **took)

    @property
    def _key_name(self) -> str:
        return self.holder.name if self.holder else ""

    def _log_end(self) -> None:
        seconds = round(time.monotonic() - self._began_s, 3)
        sizes = {"up": self._bytes_up, "down": self._bytes_down}
        event(log, "session ended", session=self._name, key=self._key_name, seconds=seconds, **sizes)


def _payload_bytes(frame: Frame) -> int:
    """The bytes of a frame's tensors."""
    return sum(tensor.nbytes for tensor in tensors_of(frame).values())


def _is_long(frame: PromptFrame | Read) -> bool:
    """Whether its text, or its list of ids, takes long to be read."""
    size = len(frame.text or "") + sum(len(message.content) for message in frame.messages or ())
    size += len(frame.ids or ()) + len(frame.done) if isinstance(frame, PromptFrame) else len(frame.reply)
    return size > BIG_CHARACTERS
