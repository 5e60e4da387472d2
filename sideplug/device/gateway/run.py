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

from sideplug.contract.errors import CloudError, SideplugError, WrongBase
from sideplug.device.gateway import openai_api
from sideplug.device.gateway.openai_api import JsonObject, ResponseShaper
from sideplug.device.gateway.pool import Pool
from sideplug.device.plugin_store import PluginStore
from sideplug.device.reply import DecodeOptions, Piece, Usage

log = logging.getLogger("sideplug.gateway")


@dataclass(frozen=True)
class ReplyResources:
    """What all replies of a gateway share. `places`: how many may be made at once."""

    plugins: PluginStore
    pool: Pool
    options: DecodeOptions
    places: asyncio.Semaphore


class Run:
    """One reply. `plugin_name`: "" for the base. `page`: the page that asked, for its audit; "" for other callers."""

    def __init__(self, resources: ReplyResources, shaper: ResponseShaper, plugin_name: str, page: str = "") -> None:
        self._resources = resources
        self._shaper = shaper
        self._request = shaper.request
        self._plugin_name = plugin_name
        self._page = page
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[JsonObject | Exception | None] = asyncio.Queue()
        self._caller_left = threading.Event()
        self._first: JsonObject | Exception | None = None
        self._usage = Usage()

    async def begin(self) -> None:
        """Wait for a place and for the first chunk, so that an error until then can be the response's status."""
        await self._resources.places.acquire()
        threading.Thread(target=self._work, name="reply", daemon=True).start()
        try:
            self._first = await self._queue.get()
        except asyncio.CancelledError:
            self._caller_left.set()
            raise
        if isinstance(self._first, Exception):
            raise self._first

    async def events(self) -> AsyncIterator[bytes]:
        """Yield server-sent events; an error in the middle is an event of its own, and the last."""
        async for chunk in self._chunks():
            if isinstance(chunk, Exception):
                yield openai_api.event(openai_api.error(chunk)[1])
                return
            yield openai_api.event(chunk)
        if self._request.include_usage or self._request.detail:
            yield openai_api.event(self._shaper.usage(self._usage))
        yield openai_api.DONE

    async def whole(self, is_disconnected: Callable[[], Awaitable[bool]]) -> JsonObject:
        """Return the whole reply as one answer. Raises what ended it."""
        chunks: list[JsonObject] = []
        async for chunk in self._chunks():
            if isinstance(chunk, Exception):
                raise chunk
            chunks.append(chunk)
            if await is_disconnected():
                self._caller_left.set()
        return self._shaper.whole(chunks, self._usage)

    async def _chunks(self) -> AsyncIterator[JsonObject | Exception]:
        try:
            chunk = self._first
            while chunk is not None:
                yield chunk
                if isinstance(chunk, Exception):
                    return
                chunk = await self._queue.get()
        finally:
            self._caller_left.set()

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
        options = replace(resources.options, top=request.alternatives)
        with resources.pool.session(self._plugin_name, plugin, gate, self._page) as session:
            if session.model.fingerprint[:16] != self._shaper.fingerprint[:16]:
                raise CloudError(f"the cloud serves {session.model.name} now: ask again")
            reply = session.reply(request.prompt, request.max_tokens, request.sampling, options)
            with contextlib.closing(reply):
                for chunk in openai_api.chunks(self._shaper, self._until_left(reply), lambda: reply.usage):
                    self._tell(chunk)
            self._usage = reply.usage

    def _until_left(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The pieces, until the caller has left."""
        for piece in pieces:
            if self._caller_left.is_set():
                return
            yield piece

    def _tell(self, chunk: JsonObject | Exception | None) -> None:
        self._in_loop(self._queue.put_nowait, chunk)

    def _in_loop(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the gateway has stopped
            self._loop.call_soon_threadsafe(function, *arguments)
