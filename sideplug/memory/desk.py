"""The desk at which the gateway's page tells, sees and changes what a plugin remembers, as plain JSON.

Changes go through book, so each is whole on the disk before it is answered. It does not know HTTP, and it is handed in
what turns files into entries. Test: pytest tests/memory/test_desk.py
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sideplug.contract.errors import InputError, SideplugError
from sideplug.memory import book
from sideplug.memory.part import CERTAIN, MOST_CHARACTERS
from sideplug.memory.settings import Settings
from sideplug.memory.store import Entry
from sideplug.plugins import Plugin, TrainedPart

SOURCE = "the page"  # of what was told there
FOUND = 8  # parts that a search shows
log = logging.getLogger("sideplug.memory")

Named = tuple[str, str]
AS_THEY_ARE: Mapping[str, object] = MappingProxyType({})  # how files are read, where nothing is chosen
Files = Sequence[tuple[str, bytes]]  # the name of a file, and what it holds
# (files, how they are read, what hears what is passed over) → entries
ReadFiles = Callable[[Files, Mapping[str, object], Callable[[str], None]], list[Entry]]

Forget = Callable[[Path, Sequence[int]], tuple[list[Entry], str]]  # what they were; what still holds them


def _forget_here(folder: Path, numbers: Sequence[int]) -> tuple[list[Entry], str]:
    gone = book.change(folder, partial(book.forget, numbers=numbers))
    is_trained = any(isinstance(part, TrainedPart) for part in Plugin.load(folder).parts)
    return gone, "its trained part may still hold it: train it anew" if is_trained else ""


def _no_files(files: Files, reading: Mapping[str, object], tell: Callable[[str], None]) -> list[Entry]:
    raise InputError("files are not read here: give entries")


class Desk:
    """read_files: turns files into entries. fetch: brings what a memory finds more with, unless it is there; it is
    called in a thread when something was told. forget: forgets in what training made of it too."""

    def __init__(
        self, read_files: ReadFiles = _no_files, fetch: Callable[[], None] = lambda: None, forget: Forget = _forget_here
    ) -> None:
        self._read_files, self._fetch, self._forget = read_files, fetch, forget
        self._fetching: threading.Thread | None = None
        self._lock = threading.Lock()

    def entries(self, plugin: Plugin) -> list[dict[str, Any]]:
        """Return all entries of a plugin, in the order in which they were told; [] where it has no memory."""
        memory = book.memory_of(plugin)
        return [as_json(entry) for entry in memory.store.entries()] if memory else []

    def search(self, plugin: Plugin, question: str) -> list[dict[str, Any]]:
        """Return the parts that are nearest to a question, each with its certainty and whether it would be said."""
        memory = book.memory_of(plugin)
        if memory is None:
            return []
        is_question = len(question) <= MOST_CHARACTERS
        return [
            {
                "number": found.entry.number,
                "question": found.entry.question,
                "text": found.text,
                "certainty": round(found.certainty, 4),
                "said": is_question and memory.says(question, found),
            }
            for found in memory.judged(question)[:FOUND]
        ]

    def tell(
        self,
        folder: Path,
        entries: Sequence[Named],
        files: Files = (),
        reading: Mapping[str, object] = AS_THEY_ARE,
    ) -> dict[str, Any]:
        """Tell the plugin in a folder entries, (question, reply) each, and files; make it where there is none.
        reading: how files are read.

        Raises InputError, PluginError, Stopped: then nothing is kept.
        """
        notes: list[str] = []
        told = [Entry(question, reply, SOURCE) for question, reply in entries]
        told += self._read_files(files, reading, notes.append) if files else []
        if not told:
            raise InputError("there is nothing to remember: give at least one entry or file")
        result = book.change(folder, partial(book.tell, entries=told), must_be=False)
        self._start_fetching()
        return {
            "numbers": result.numbers,
            "known": result.known,
            "replaced": [_both(replace(old, replaced_by=new.number), new) for old, new in result.replaced],
            "doubtful": [_both(old, new) for old, new in result.doubtful],
            "notes": notes,
        }

    def settings(self, plugin: Plugin) -> dict[str, Any]:
        """Return what a memory does where it is not certain; the shipped settings where there is no memory."""
        memory = book.memory_of(plugin)
        return asdict(memory.settings if memory else Settings()) | {"shipped": CERTAIN}

    def set(self, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
        """Change some settings; return all. Raises InputError, PluginError, Stopped."""
        return asdict(book.change(folder, partial(book.set_, changes=changes))) | {"shipped": CERTAIN}

    def edit(self, folder: Path, number: int, question: str | None, reply: str | None) -> dict[str, Any]:
        """Put other words in an entry's place; return it as it is now. Raises InputError, PluginError, Stopped."""
        return as_json(book.change(folder, partial(book.edit, number=number, question=question, reply=reply)))

    def forget(self, folder: Path, number: int) -> dict[str, Any]:
        """Forget an entry; return it. trained: whether a trained part of the plugin may still hold it. left: the same
        as a sentence, with what ends it.

        Raises InputError, PluginError, Stopped.
        """

        (gone,), left = self._forget(folder, [number])
        return {"forgotten": as_json(gone), "trained": bool(left), "left": left}

    def restore(self, folder: Path, number: int) -> dict[str, Any]:
        """Let an entry that was replaced hold again. Raises InputError, PluginError, Stopped."""
        instead = book.change(folder, partial(book.restore, number=number))
        return {"number": number, "instead_of": instead.number}

    def _start_fetching(self) -> None:
        with self._lock:
            if self._fetching is None or not self._fetching.is_alive():
                self._fetching = threading.Thread(target=self._bring, name="fetching", daemon=True)
                self._fetching.start()

    def _bring(self) -> None:
        try:
            self._fetch()
        except SideplugError as error:
            log.warning("%s; until it can be fetched, what was told is found by words alone", error)
        except Exception:
            log.exception("fetching failed")


def _both(old: Entry, new: Entry) -> dict[str, Any]:
    return {"old": as_json(old), "new": as_json(new)}


def as_json(entry: Entry) -> dict[str, Any]:
    """Return an entry as JSON has it; replaced_by is null where it holds."""
    return {
        "number": entry.number,
        "question": entry.question,
        "reply": entry.reply,
        "source": entry.source,
        "date": entry.date,
        "told": entry.told,
        "replaced_by": entry.replaced_by or None,
    }
