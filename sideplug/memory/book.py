"""Changing the memory of a plugin's folder: one writer at a time, and a folder that has the old memory or the new one.

Test: pytest tests/memory/test_book.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sideplug.contract.errors import InputError, NoNetwork, PluginError
from sideplug.memory.curve import holds
from sideplug.memory.part import Memory
from sideplug.memory.settings import Settings
from sideplug.memory.store import Entry
from sideplug.memory.weights import fetch_encoder
from sideplug.memory.words import words
from sideplug.plugins import ANY_BASE, Plugin
from sideplug.plugins.file import changing, is_plugin, is_sealed

T = TypeVar("T")
LIKELY = 0.95  # certainty above which an entry with another reply may be contradicted by a new one
CORRECTED, NEAR = 0.3, 0.4  # … by a note that is so near its question, as cosines go
SHORT = 200  # characters of a question, and of a reply, that training keeps in the memory too
FEW = 20  # new entries that are each held against what is there

Progress = Callable[[int, int], None]


@dataclass
class Told:
    """What became of new entries: their numbers, how many were there already, and what they concern.

    replaced: (old, new) entries of one question. doubtful: (old, new) that may contradict each other; both hold.
    """

    numbers: list[int] = field(default_factory=list)
    known: int = 0
    replaced: list[tuple[Entry, Entry]] = field(default_factory=list)
    doubtful: list[tuple[Entry, Entry]] = field(default_factory=list)


def memory_of(plugin: Plugin) -> Memory | None:
    """Return a plugin's memory."""
    return next((part for part in plugin.parts if isinstance(part, Memory)), None)


def open_memory(folder: Path, passphrase: Callable[[], str] = lambda: "") -> Memory:
    """Return the memory of a folder's plugin. Raises PluginError where there is none."""
    memory = memory_of(Plugin.load(folder, passphrase))
    if memory is None:
        raise PluginError(f"the plugin in {folder} has no memory yet: sideplug remember makes one")
    return memory


def change(folder: Path, work: Callable[[Memory], T], must_be: bool = True) -> T:
    """Do `work` on the memory of a folder and keep what it became. must_be: whether there must be one already.

    Raises what `work` raises (nothing is changed then), PluginError, Stopped.
    """
    if is_sealed(folder):
        raise PluginError(f"{folder} holds a sealed plugin: unlock it first (sideplug plugin unlock {folder})")
    if must_be:
        open_memory(folder)
    with changing(folder):
        plugin = Plugin.load(folder) if is_plugin(folder) else None
        memory = (memory_of(plugin) if plugin else None) or Memory()
        result = work(memory)
        (plugin or Plugin(ANY_BASE, ANY_BASE, [memory])).save_part(memory, folder)
    return result


def questions(entries: Sequence[Entry]) -> list[Entry]:
    """Return those that a memory can say word for word: short questions with short replies, no texts to imitate."""
    return [each for each in entries if 0 < len(each.question) <= SHORT >= len(each.reply)]


def check(entries: Sequence[Entry]) -> None:
    """Raises InputError, which names where it came from, for an entry that can't be kept."""
    for entry in entries:
        try:
            entry.check()
        except InputError as error:
            raise InputError(f"{entry.source}: {error}" if entry.source else str(error)) from error


def remember(
    folder: Path, entries: Sequence[Entry], say: Callable[[str], None], progress: Progress = lambda done, count: None
) -> Told:
    """Tell the plugin in a folder, which is made where there is none, these entries. say: hears what is fetched, or why
    it can't be. progress: how many of the vectors that are missing are made.

    Raises InputError for an entry that can't be kept (then none is), PluginError, Stopped.
    """
    check(entries)
    try:
        fetch_encoder(say)
    except NoNetwork as error:
        say(f"{error}; until it can be fetched, what was told is found by words alone")
    return change(folder, partial(tell, entries=entries, progress=progress), must_be=False)


def tell(memory: Memory, entries: Sequence[Entry], progress: Progress = lambda done, count: None) -> Told:
    """Add entries to a memory. A question that was told before with another reply is replaced by the newer one.

    Raises InputError for an entry that can't be kept; then none is.
    """
    told, store = Told(), memory.store
    earlier = {} if not len(store) else {each.number: each for each in store.entries() if not each.replaced_by}
    by_key = {key_of(each): each for each in earlier.values() if not each.is_note}
    with store.change():
        for entry in entries:
            before = by_key.get(key_of(entry)) if not entry.is_note else None
            doubt = _doubted(memory, entry) if len(entries) <= FEW and before is None else None
            number = store.add([entry])[0]
            if number in earlier:
                told.known += 1
                continue
            new = store.entry(number)
            earlier[number] = new
            told.numbers.append(number)
            if before is not None:
                store.replace(before.number, number)
                told.replaced.append((before, new))
            elif doubt is not None:
                told.doubtful.append((doubt, new))
            if not new.is_note:
                by_key[key_of(new)] = new
    memory.fill(progress)
    return told


def key_of(entry: Entry) -> tuple[str, ...]:
    """Return what two entries of one question have in common: its words, or all of it where it has none."""
    return tuple(words(entry.question)) or (entry.question,)


def _doubted(memory: Memory, entry: Entry) -> Entry | None:
    """The entry of which a new one may tell otherwise."""
    return _corrected(memory, entry) if entry.is_note else _contradicted(memory, entry)


def _corrected(memory: Memory, note: Entry) -> Entry | None:
    """The entry whose question a new short note answers too, and otherwise: "my combination is now 4471".

    The note finds the entry as a question does, or the entry's question finds the note. Notes are not held against
    notes: two of one thing are as often two days of a diary as a correction.
    """
    if len(note.reply) > SHORT:
        return None
    found = next((each for each in memory.judged(note.reply) if not each.entry.is_note), None)
    if found is None or holds(note.reply, found.entry.reply):
        return None
    if set(words(note.reply)) <= set(words(found.entry.question)):
        return None  # it says nothing of it
    if memory.nearness(note.reply, found.entry.question) < NEAR:
        return None
    certainty = found.certainty
    if certainty < CORRECTED:
        alone = Memory()
        alone.store.add([note])
        back = alone.recall(found.entry.question)
        certainty = back.certainty if back else 0.0
    return found.entry if certainty >= CORRECTED else None


def _contradicted(memory: Memory, entry: Entry) -> Entry | None:
    """The entry that answers the new one's question already, and otherwise."""
    recall = memory.recall(entry.question)
    if recall is None or recall.certainty < LIKELY or recall.entry.is_note:
        return None
    return recall.entry if words(recall.entry.reply) != words(entry.reply) else None


def forget(
    memory: Memory, numbers: Sequence[int], before: Callable[[list[Entry]], None] = lambda entries: None
) -> list[Entry]:
    """Forget entries; return what they were. Raises InputError where one is not there: then none is forgotten.

    before: called with them first, to forget them elsewhere; where it raises, they stay and can be forgotten again.
    """
    entries = [memory.store.entry(number) for number in dict.fromkeys(numbers)]
    if not entries:
        raise InputError("no entry is named: give their numbers, sideplug memory list shows them")
    before(entries)
    memory.store.forget([entry.number for entry in entries])
    return entries


def edit(memory: Memory, number: int, question: str | None, reply: str | None) -> Entry:
    """Put other words in an entry's place; None leaves the words that are there. Return what it is now.

    Raises InputError.
    """
    entry = memory.store.entry(number)
    memory.store.edit(number, entry.question if question is None else question, entry.reply if reply is None else reply)
    memory.fill()
    return memory.store.entry(number)


def set_(memory: Memory, changes: Mapping[str, Any]) -> Settings:
    """Change some settings; return all. Raises InputError for a value that can't be."""
    memory.behave(replace(memory.settings, **changes))
    return memory.settings


def restore(memory: Memory, number: int) -> Entry:
    """Let an entry that was replaced hold again; return the one that held instead, which is replaced by it now.

    Raises InputError where it holds already.
    """
    newest = memory.store.entry(number)
    while newest.replaced_by:
        newest = memory.store.entry(newest.replaced_by)
    if newest.number == number:
        raise InputError(f"entry {number} holds already")
    with memory.store.change():
        memory.store.restore(number)
        memory.store.replace(newest.number, number)
    memory.fill()
    return newest
