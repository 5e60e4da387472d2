"""One reply: made in a thread of its own, told chunk by chunk to its caller, given up when the caller has left.

It does not know routes, headers or how sessions are opened. Test: pytest tests/device/test_gateway.py
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum

from sideplug.contract.errors import Busy, CloudError, SideplugError, Stopped, WrongBase
from sideplug.device.gateway import openai_reply
from sideplug.device.gateway.json_fields import JsonObject
from sideplug.device.gateway.openai_reply import Shaper
from sideplug.device.gateway.pool import Pool
from sideplug.device.plugin_store import PluginStore
from sideplug.device.reply import DecodeOptions, Piece, Usage

KEEP_ALIVE_S = 10.0  # a stream is never silent for longer: proxies take a silent one for dead
RETRY_S = 5.0  # when a caller who found the queue full may come again
log = logging.getLogger("sideplug.gateway")


class Sign(Enum):
    """What a caller is told beside chunks: the cloud has taken the text; nothing has come for KEEP_ALIVE_S."""

    BEGUN = 1
    SILENCE = 2


class Places:
    """How many replies are made at once, and how many callers may wait for a place."""

    def __init__(self, count: int, queue: int) -> None:
        self._semaphore = asyncio.Semaphore(count)
        self._count, self._queue = count, queue
        self._taken = self._waiting = 0

    @property
    def free(self) -> int:
        """Return how many replies could begin at once."""
        return self._count - self._taken

    async def take(self) -> None:
        """Wait for a place. Raises Busy where as many wait already as may."""
        if self._semaphore.locked() and self._waiting >= self._queue:
            raise Busy(f"{self._waiting} callers wait for this gateway already: try later", RETRY_S)
        self._waiting += 1
        try:
            await self._semaphore.acquire()
        finally:
            self._waiting -= 1
        self._taken += 1

    def release(self) -> None:
        """Give a place back."""
        self._taken -= 1
        self._semaphore.release()


@dataclass(frozen=True)
class ReplyResources:
    """What all replies of a gateway share."""

    plugins: PluginStore
    pool: Pool
    options: DecodeOptions
    places: Places


class Run:
    """One reply. `plugin_name`: "" for the base. `page`: the page that asked, for its audit; "" for other callers.

    is_disconnected: has the caller left?
    """

    def __init__(
        self,
        resources: ReplyResources,
        shaper: Shaper,
        plugin_name: str,
        page: str,
        is_disconnected: Callable[[], Awaitable[bool]],
    ) -> None:
        self._resources = resources
        self._shaper = shaper
        self._request = shaper.request
        self._plugin_name = plugin_name
        self._page = page
        self._is_disconnected = is_disconnected
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[JsonObject | Exception | Sign | None] = asyncio.Queue()
        self._caller_left = threading.Event()
        self._first: JsonObject | Exception | Sign | None = Sign.SILENCE
        self._usage = Usage()

    async def begin(self) -> None:
        """Wait until the cloud has taken the text, so that an error until then can be the response's status.

        A whole reply waits for its first chunk; a streamed one not even for a place, where that takes long: its
        headers go out, and what goes wrong later is an event.
        """
        starting = asyncio.create_task(self._start())
        starting.add_done_callback(self._started)
        try:
            self._first = await self._next()
            while isinstance(self._first, Sign) and not self._request.stream:
                if await self._is_disconnected():
                    raise Stopped("the caller has left")
                self._first = await self._next()
        except BaseException:
            self._leave(starting)
            raise
        self._starting = starting
        if isinstance(self._first, Exception):
            raise self._first

    async def events(self) -> AsyncIterator[bytes]:
        """Yield server-sent events; an error in the middle is an event of its own, and the last."""
        async for chunk in self._chunks():
            if isinstance(chunk, Exception):
                yield self._shaper.failed(chunk)
                return
            yield openai_reply.KEEP_ALIVE if isinstance(chunk, Sign) else self._shaper.event(chunk)
        for event in self._shaper.end(self._usage):
            yield event

    async def whole(self) -> JsonObject:
        """Return the whole reply as one answer. Raises what ended it."""
        chunks: list[JsonObject] = []
        async for chunk in self._chunks():
            if isinstance(chunk, Exception):
                raise chunk
            if not isinstance(chunk, Sign):
                chunks.append(chunk)
            if await self._is_disconnected():
                self._caller_left.set()
        return self._shaper.whole(chunks, self._usage)

    async def _chunks(self) -> AsyncIterator[JsonObject | Exception | Sign]:
        """Yield all that is told of the reply; where nothing is for KEEP_ALIVE_S, that."""
        try:
            chunk = self._first
            while chunk is not None:
                if chunk is not Sign.BEGUN:
                    yield chunk
                if isinstance(chunk, Exception):
                    return
                chunk = await self._next()
        finally:
            self._leave(self._starting)

    async def _next(self) -> JsonObject | Exception | Sign | None:
        """What is told next, or that nothing is."""
        try:
            return await asyncio.wait_for(self._queue.get(), KEEP_ALIVE_S)
        except TimeoutError:
            return Sign.SILENCE

    async def _start(self) -> None:
        """Begin the reply when there is a place for it."""
        await self._resources.places.take()
        if self._caller_left.is_set():
            self._resources.places.release()
            return
        threading.Thread(target=self._work, name="reply", daemon=True).start()

    def _started(self, starting: asyncio.Task[None]) -> None:
        error = None if starting.cancelled() else starting.exception()
        if isinstance(error, Exception):
            self._queue.put_nowait(error)

    def _leave(self, starting: asyncio.Task[None]) -> None:
        """The caller needs no more: nothing is waited for."""
        self._caller_left.set()
        starting.cancel()

    # ── in the reply's own thread ────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        """Make the reply: its chunks go to the queue, then None or the error that ended it."""
        try:
            self._make()
            self._tell(None)
        except Exception as error:
            if isinstance(error, (CloudError, WrongBase)):
                self._resources.pool.forget_model()
            elif not isinstance(error, SideplugError):
                log.exception("a reply failed")
            self._tell(error)
        finally:
            self._in_loop(self._resources.places.release)

    def _make(self) -> None:
        request, resources = self._request, self._resources
        plugin = resources.plugins.load(self._plugin_name) if self._plugin_name else None
        gate = None
        if request.gate_rate is not None and plugin is not None:
            gate = plugin.gate_at_rate(request.gate_rate)
        options = replace(resources.options, top=request.alternatives, grammar=request.grammar)
        gave_up = self._caller_left.is_set
        with resources.pool.session(self._plugin_name, plugin, gate, self._page, gave_up) as session:
            if session.model.fingerprint[:16] != self._shaper.fingerprint[:16]:
                raise CloudError(f"the cloud serves {session.model.name} now: ask again")
            self._shaper.request = request = openai_reply.prompt_for(request, session.session.granted)
            reply = session.reply(request.prompt, request.max_tokens, request.sampling, options)
            reply.on_begun = lambda: self._tell(Sign.BEGUN)
            with contextlib.closing(reply):
                pieces = self._until_left(reply)
                for chunk in openai_reply.chunks(self._shaper, pieces, lambda: reply.usage, lambda: reply.calls):
                    self._tell(chunk)
            self._usage = reply.usage

    def _until_left(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The pieces, until the caller has left."""
        for piece in pieces:
            if self._caller_left.is_set():
                return
            yield piece

    def _tell(self, chunk: JsonObject | Exception | Sign | None) -> None:
        self._in_loop(self._queue.put_nowait, chunk)

    def _in_loop(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the gateway has stopped
            self._loop.call_soon_threadsafe(function, *arguments)
