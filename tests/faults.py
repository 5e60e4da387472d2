"""A network that fails: a proxy between a WebSocket's two ends that cuts, holds, repeats, swaps and spoils messages.

    with faulty(cloud.url, once(Fault("reset", "down", message=3))) as proxy:
        link = a_link(proxy.url)

It passes on whole messages (it reads one to its end first) and control frames, as their bytes were. A connection that
does not become a WebSocket (GET /health) passes untouched and has no number. Several faults at one message strike in
the order of KINDS. It knows frame boundaries and masks, not what a message says, nor extensions: of a compressed
message it flips a compressed byte. Plain ws over IPv4 only, and one HTTP request before the upgrade.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args
from urllib.parse import urlsplit

Kind = Literal["flip", "duplicate", "garbage", "delay", "reorder", "truncate", "half-open", "reset"]
Direction = Literal["up", "down"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PIECE = 1 << 18
LINGER = 1.0  # seconds that a connection closed by us is read on, so that what it was sent is not lost to a reset
CLOSE = 8


@dataclass(frozen=True)
class Fault:
    """What goes wrong at the message-th (from 0) data message of one direction; up: from the client.

    flip       one byte of its payload changes, at a place and by a value that `seed` draws
    duplicate  it is sent twice
    garbage    a binary message of random bytes is sent before it
    delay      it, and all behind it, waits `seconds`
    reorder    it is sent behind the next one, or when none came in `seconds` (0: no limit), or before the end
    truncate   half of its bytes are sent, then both ends are closed
    half-open  it and all behind it vanish, both ways, until one end gives up or `seconds` passed (0: no limit);
               then both are reset
    reset      both ends are reset instead of sending it
    """

    kind: Kind
    direction: Direction
    message: int
    seconds: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.direction not in get_args(Direction):
            raise ValueError(f"no such fault: {self.kind} {self.direction}")


class Done(NamedTuple):
    """A line of the log: `connection` is -1 for one that never became a WebSocket."""

    connection: int
    what: str
    fault: Fault | None = None


Plan = Callable[[int], list[Fault]]  # a connection's number, from 0 → what goes wrong on it


def once(fault: Fault) -> Plan:
    """This fault on the first connection, none after."""
    return lambda number: [fault] if number == 0 else []


def seeded(seed: int, connections: int = 1, kinds: tuple[Kind, ...] = KINDS, seconds: float = 0.5) -> Plan:
    """One random fault on each of the first connections, of at most `seconds`; the same for the same arguments."""

    def plan(number: int) -> list[Fault]:
        if number >= connections:
            return []
        rng = random.Random(f"{seed}/{number}")
        kind, direction = rng.choice(kinds), rng.choice(get_args(Direction))
        return [Fault(kind, direction, rng.randint(0, 40), rng.uniform(0.1, 1.0) * seconds, rng.getrandbits(32))]

    return plan


class Frame(NamedTuple):
    raw: bytes
    start: int  # where its payload begins

    @property
    def opcode(self) -> int:
        return self.raw[0] & 15

    @property
    def final(self) -> bool:
        return self.raw[0] > 127


class Struck(Exception):
    """A fault that ends the connection."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault


class Way:
    """One direction of one connection."""

    def __init__(self, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        self._direction, self._source, self._sink = direction, source, sink
        self._read = bytearray()
        self._sink_gone = False
        self._held, self._due = b"", 0.0  # the message that the next one overtakes, and when it is sent without one
        self._note: Callable[[str, Fault | None], None]

    async def head(self) -> bytes:
        """An HTTP head; what there is of it when the source ends."""
        while (end := self._read.find(b"\r\n\r\n")) < 0 and await self._more():
            pass
        return self._take(end + 4 if end >= 0 else len(self._read))

    async def send(self, data: bytes) -> None:
        """To the sink; to nowhere when that is gone: the other way still brings what it said last, and its end."""
        if data and not self._sink_gone:
            try:
                await asyncio.get_running_loop().sock_sendall(self._sink, data)
            except OSError:
                self._sink_gone = True

    async def carry_bytes(self) -> None:
        await self.send(self._take(len(self._read)))
        while await self._more():
            await self.send(self._take(len(self._read)))
        self._end()

    async def carry_messages(self, faults: list[Fault], note: Callable[[str, Fault | None], None]) -> None:
        """Until the source ends; Struck for a fault that ends the connection, OSError for a source that is reset."""
        self._note = note
        mine = sorted(
            (fault for fault in faults if fault.direction == self._direction), key=lambda f: KINDS.index(f.kind)
        )
        message: list[Frame] = []
        number = 0
        try:
            while frame := await self._frame():
                if frame.opcode >= CLOSE:
                    if frame.opcode == CLOSE:
                        await self._release()
                    await self.send(frame.raw)
                    continue
                message.append(frame)
                if frame.final:
                    whole, message = message, []
                    await self._pass(whole, [fault for fault in mine if fault.message == number])
                    number += 1
        except OSError:
            await self._rest(message)
            raise
        await self._rest(message)
        self._end()

    async def _rest(self, message: list[Frame]) -> None:
        """What an ended source left: a held message, and the beginning of one that will not be whole."""
        await self._release()
        await self.send(b"".join(frame.raw for frame in message) + self._take(len(self._read)))

    def _end(self) -> None:
        with suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)

    async def _frame(self) -> Frame | None:
        """The next frame; None when the source ended before it was whole."""
        if not await self._fill(2):
            return None
        size = self._read[1] & 127
        wide = {126: 2, 127: 8}.get(size, 0)
        start = 2 + wide + (4 if self._read[1] > 127 else 0)
        if not await self._fill(start):
            return None
        size = int.from_bytes(self._read[2 : 2 + wide]) if wide else size
        if not await self._fill(start + size):
            return None
        return Frame(self._take(start + size), start)

    async def _fill(self, size: int) -> bool:
        while len(self._read) < size:
            if not await self._more():
                return False
        return True

    def _take(self, size: int) -> bytes:
        taken = bytes(self._read[:size])
        del self._read[:size]
        return taken

    async def _more(self) -> bool:
        """Read a piece; False at the source's end. A held message that is due goes meanwhile."""
        loop = asyncio.get_running_loop()
        if not (self._held and self._due):
            piece = await loop.sock_recv(self._source, PIECE)
        else:
            # Not asyncio.timeout: it cancels the read, and could so lose what was just read.
            reading = loop.create_task(loop.sock_recv(self._source, PIECE))
            try:
                await asyncio.wait([reading], timeout=max(0.0, self._due - loop.time()))
                if not reading.done():
                    await self._release()
                piece = await reading
            finally:
                reading.cancel()
                await asyncio.wait([reading])
        self._read += piece
        return bool(piece)

    async def _release(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._note("sent the held message, with none behind it", None)
            await self.send(held)

    async def _pass(self, message: list[Frame], faults: list[Fault]) -> None:
        data = b"".join(frame.raw for frame in message)
        hold: Fault | None = None
        for fault in faults:
            rng = random.Random(fault.seed)
            if fault.kind == "flip":
                data = self._flip(message, fault)
            elif fault.kind == "garbage":
                size = rng.randint(1, 512)
                self._note(f"{size} bytes of garbage", fault)
                data = binary(rng.randbytes(size), rng.randbytes(4) if self._direction == "up" else b"") + data
            else:
                self._note(fault.kind, fault)
            if fault.kind == "duplicate":
                data += data
            elif fault.kind == "delay":
                await asyncio.sleep(fault.seconds)
            elif fault.kind == "reorder":
                hold = fault
            elif fault.kind == "truncate":
                await self.send(data[: len(data) // 2])
                raise Struck(fault)
            elif fault.kind in ("half-open", "reset"):
                raise Struck(fault)
        held, self._held = self._held, b""
        if hold:
            self._held = data + held
            self._due = asyncio.get_running_loop().time() + hold.seconds if hold.seconds else 0.0
        else:
            await self.send(data + held)

    def _flip(self, message: list[Frame], fault: Fault) -> bytes:
        rng = random.Random(fault.seed)
        places = [range(frame.start, len(frame.raw)) for frame in message]
        data = bytearray()
        size = sum(map(len, places))
        left = rng.randrange(size) if size else -1
        by = rng.randint(1, 255)
        self._note(f"byte {left} of {size} ^ {by:#04x}" if size else "an empty payload: no byte to flip", fault)
        for frame, inside in zip(message, places, strict=True):
            data += frame.raw
            if 0 <= left < len(inside):
                data[len(data) - len(inside) + left] ^= by
            left -= len(inside)
        return bytes(data)


def binary(payload: bytes, mask: bytes = b"") -> bytes:
    """A binary message in one frame, of less than 64 KiB."""
    size = len(payload)
    flag = 128 if mask else 0
    head = bytes([0x82, flag | size]) if size < 126 else struct.pack(">BBH", 0x82, flag | 126, size)
    if mask:
        payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return head + mask + payload


def reset(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):  # it may be closed already
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.close()


async def drop(ends: tuple[socket.socket, ...], until: str, seconds: float | None) -> None:
    """Read both ends and throw it away, until one (FIRST_COMPLETED) or both ended, or the time is over."""
    loop = asyncio.get_running_loop()

    async def read(end: socket.socket) -> None:
        with suppress(OSError):
            while await loop.sock_recv(end, PIECE):
                pass

    reads = [loop.create_task(read(end)) for end in ends]
    try:
        await asyncio.wait(reads, timeout=seconds, return_when=until)
    finally:
        for task in reads:
            task.cancel()
        await asyncio.wait(reads)


class Proxy:
    """See `faulty`. `connections`: WebSockets opened through it so far; `log`: what it did to them."""

    def __init__(self, url: str, plan: Plan) -> None:
        self.log: list[Done] = []
        self.connections = 0
        self._plan, self._refusing = plan, False
        self.retarget(url)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        path = urlsplit(url).path
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}{path}"
        self._open = {self._listener}
        self._loop = asyncio.new_event_loop()
        self._serving = self._loop.create_task(self._serve())
        self._thread = threading.Thread(target=self._run, name="faulty", daemon=True)
        self._thread.start()

    def retarget(self, url: str) -> None:
        """New connections go there; those that are open stay."""
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "http") or not parts.hostname or not parts.port:
            raise ValueError(f"not a plain ws://host:port: {url}")
        self._target = (socket.gethostbyname(parts.hostname), parts.port)

    def refuse(self, refusing: bool) -> None:
        """Reset every new connection until refuse(False); those that are open stay."""
        self._refusing = refusing

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(10)
        self._loop.close()

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._serving)

    async def _serve(self) -> None:
        try:
            async with asyncio.TaskGroup() as carrying:
                # A callback and no sock_accept: that, cancelled, could lose a socket it had just accepted.
                self._loop.add_reader(self._listener, self._accept, carrying)
                try:
                    await self._loop.create_future()  # never: until it is cancelled
                finally:
                    self._loop.remove_reader(self._listener)
        finally:
            for end in self._open:
                end.close()

    def _accept(self, carrying: asyncio.TaskGroup) -> None:
        try:
            near, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # it went away before it was accepted
        if self._refusing:
            self.log.append(Done(-1, "refused"))
            reset(near)
            return
        far = socket.socket()
        self._open |= {near, far}
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        carrying.create_task(self._carry(near, far))

    async def _carry(self, near: socket.socket, far: socket.socket) -> None:
        up, down = Way("up", near, far), Way("down", far, near)
        fault: Fault | None = None
        try:
            try:
                await self._loop.sock_connect(far, self._target)
            except OSError:
                self.log.append(Done(-1, "unreachable"))
                reset(near, far)
                return
            try:
                async with asyncio.TaskGroup() as ways:
                    await self._begin(up, down, ways)
            except* Struck as struck:
                fault = next(one.fault for one in struck.exceptions if isinstance(one, Struck))
            except* OSError:  # one end was reset: so is the other
                reset(near, far)
            if fault and fault.kind == "truncate":
                for end in (near, far):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_WR)
                await drop((near, far), asyncio.ALL_COMPLETED, LINGER)
            elif fault:
                if fault.kind == "half-open":
                    await drop((near, far), asyncio.FIRST_COMPLETED, fault.seconds or None)
                reset(near, far)
        finally:
            near.close()
            far.close()
            self._open -= {near, far}

    async def _begin(self, up: Way, down: Way, ways: asyncio.TaskGroup) -> None:
        """Pass the HTTP heads on, then start both ways."""
        asked = await up.head()
        await up.send(asked)
        answer = await down.head() if b"\nupgrade: websocket" in asked.lower() else b""
        if not answer.startswith(b"HTTP/1.1 101"):
            await down.send(answer)
            ways.create_task(up.carry_bytes())
            ways.create_task(down.carry_bytes())
            return
        number = self.connections
        self.connections += 1
        faults = self._plan(number)

        def note(what: str, fault: Fault | None = None) -> None:
            self.log.append(Done(number, what, fault))

        await down.send(answer)
        ways.create_task(up.carry_messages(faults, note))
        ways.create_task(down.carry_messages(faults, note))


@contextmanager
def faulty(url: str, plan: Plan = lambda number: []) -> Iterator[Proxy]:
    """A proxy to `url` in a thread of its own; connections that are open at the end are closed."""
    proxy = Proxy(url, plan)
    try:
        yield proxy
    finally:
        proxy.close()
