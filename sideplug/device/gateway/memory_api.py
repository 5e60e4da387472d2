"""What the page tells, sees and changes of a plugin's memory, below /sideplug/plugins/NAME/memory.

    GET    …/memory                    all entries
    POST   …/memory                    {"entries": [{"question": "", "reply": "…"}, …], "files": [{"name", "text"}, …]};
                                       a file that is no text as "data" in base64, "reading" as sideplug/preview has it
    GET    …/memory/search?question=…  what would be found, how certainly, and whether it would be said
    GET    …/memory/settings           {"certain": 0.85 or null, "doubt": "base" or "ask", "unknown": "base" or "say"}
    PATCH  …/memory/settings           some of these
    PATCH  …/memory/NUMBER             {"question": "…", "reply": "…"}, either or both
    DELETE …/memory/NUMBER             forget it
    POST   …/memory/NUMBER/restore     an entry that was replaced holds again

It does not know what a memory is: a MemoryDesk is passed in. Test: pytest tests/device/test_gateway_memory.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sideplug.contract.errors import InputError
from sideplug.device.gateway.body import read_body
from sideplug.device.gateway.json_fields import JsonObject, json_object, named_files, number, shown, typed
from sideplug.device.plugin_store import PluginStore
from sideplug.plugins import Plugin

Named = tuple[str, str]
File = tuple[str, bytes]
MAX_NUMBER = 2**63 - 1  # of an entry


class MemoryDesk(Protocol):
    """Sees and changes what plugins remember. What changes it returns is on the disk."""

    def entries(self, plugin: Plugin) -> list[JsonObject]:
        """All entries, in the order in which they were told."""
        ...

    def search(self, plugin: Plugin, question: str) -> list[JsonObject]:
        """What is nearest to a question, the most certain first."""
        ...

    def settings(self, plugin: Plugin) -> JsonObject:
        """What a memory does where it is not certain."""
        ...

    def set(self, folder: Path, changes: JsonObject) -> JsonObject:
        """Change some settings; return all. Raises InputError."""
        ...

    def tell(
        self, folder: Path, entries: Sequence[Named], files: Sequence[File], reading: Mapping[str, object]
    ) -> JsonObject:
        """Tell (question, reply) and files to the plugin in a folder. reading: how files are read.

        Raises InputError: then nothing is kept.
        """
        ...

    def edit(self, folder: Path, number: int, question: str | None, reply: str | None) -> JsonObject:
        """Change an entry's words. Raises InputError."""
        ...

    def forget(self, folder: Path, number: int) -> JsonObject:
        """Forget an entry. Raises InputError."""
        ...

    def restore(self, folder: Path, number: int) -> JsonObject:
        """Let an entry that was replaced hold again. Raises InputError."""
        ...


class MemoryApi:
    """The routes. desk None: this gateway has no memory."""

    def __init__(self, plugins: PluginStore, desk: MemoryDesk | None) -> None:
        self._plugins = plugins
        self._given_desk = desk

    def routes(self) -> list[Route]:
        """Return them; what has a name stands before the entries' numbers."""
        start = "/sideplug/plugins/{name}/memory"
        return [
            Route(start, self._memory, methods=["GET", "POST"]),
            Route(f"{start}/search", self._search),
            Route(f"{start}/settings", self._settings, methods=["GET", "PATCH"]),
            Route(f"{start}/{{number}}", self._entry, methods=["PATCH", "DELETE"]),
            Route(f"{start}/{{number}}/restore", self._restore, methods=["POST"]),
        ]

    @property
    def _desk(self) -> MemoryDesk:
        if self._given_desk is None:
            raise InputError("this gateway has no memory")
        return self._given_desk

    async def _memory(self, request: Request) -> Response:
        """All entries (GET), or new ones (POST)."""
        name, desk = request.path_params["name"], self._desk
        if request.method == "GET":
            return JSONResponse({"entries": await run_in_threadpool(lambda: desk.entries(self._plugins.load(name)))})
        fields = json_object(await read_body(request))
        entries, files = _entries(fields.get("entries")), named_files(fields.get("files") or [])
        reading = typed(fields, "reading", dict, {})
        told = await run_in_threadpool(lambda: desk.tell(self._plugins.folder(name), entries, files, reading))
        return JSONResponse(told)

    async def _search(self, request: Request) -> Response:
        name, desk = request.path_params["name"], self._desk
        question = request.query_params.get("question", "").strip()
        if not question:
            raise InputError("question must be given: …/memory/search?question=…")
        return JSONResponse({"parts": await run_in_threadpool(lambda: desk.search(self._plugins.load(name), question))})

    async def _settings(self, request: Request) -> Response:
        """Show (GET) or change (PATCH) the settings."""
        name, desk = request.path_params["name"], self._desk
        if request.method == "GET":
            return JSONResponse(await run_in_threadpool(lambda: desk.settings(self._plugins.load(name))))
        fields = json_object(await read_body(request))
        unknown = set(fields) - {"certain", "doubt", "unknown"}
        if unknown or not fields:
            raise InputError("settings must be some of certain, doubt and unknown")
        changes: JsonObject = {each: typed(fields, each, str, "") for each in ("doubt", "unknown") if each in fields}
        if "certain" in fields:
            changes["certain"] = None if fields["certain"] is None else number(fields, "certain", 0.0)
        return JSONResponse(await run_in_threadpool(lambda: desk.set(self._plugins.find(name).folder, changes)))

    async def _entry(self, request: Request) -> Response:
        """Edit (PATCH) or forget (DELETE) an entry."""
        name, entry, desk = request.path_params["name"], _number(request), self._desk
        work = partial(desk.forget, number=entry)
        if request.method == "PATCH":
            fields = json_object(await read_body(request))
            question, reply = (typed(fields, each, str, "") if fields.get(each) is not None else None for each in WORDS)
            if question is None and reply is None:
                raise InputError("nothing is to be changed: give question or reply")
            work = partial(desk.edit, number=entry, question=question, reply=reply)
        return JSONResponse(await run_in_threadpool(lambda: work(self._plugins.find(name).folder)))

    async def _restore(self, request: Request) -> Response:
        name, entry, desk = request.path_params["name"], _number(request), self._desk
        return JSONResponse(await run_in_threadpool(lambda: desk.restore(self._plugins.find(name).folder, entry)))


WORDS = ("question", "reply")


def _number(request: Request) -> int:
    """The entry's number in the path. Raises InputError."""
    given = request.path_params["number"]
    if not (given.isascii() and given.isdigit() and len(given) < 20 and 0 < int(given) <= MAX_NUMBER):
        raise InputError(f"an entry's number must be a whole number above 0, got {shown(given)}")
    return int(given)


def _entries(entries: object) -> list[Named]:
    """(question, reply) of each entry that is told. Raises InputError."""
    wrong = InputError('entries must be a list of {"question": "…", "reply": "…"}, a note without a question')
    if not isinstance(entries or [], list):
        raise wrong
    told = []
    for entry in entries or []:  # type: ignore[attr-defined]
        if not isinstance(entry, dict) or set(entry) - set(WORDS):
            raise wrong
        told.append((typed(entry, "question", str, ""), typed(entry, "reply", str, "")))
    return told
