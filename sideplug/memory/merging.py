"""Two memories of one person, told on two devices, become one: by question, reply and day; nothing is dropped.

Where both were told another reply to one question, the one that was told last holds; the other stays, as replaced, and
is told to the person, who may restore it. Test: pytest tests/memory/test_merging.py
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sideplug.memory.book import key_of
from sideplug.memory.part import Memory
from sideplug.memory.store import Entry


@dataclass
class Merged:
    """What became of the other memory's entries. conflicts: (the one that holds, the one that was replaced by it)."""

    added: int = 0
    known: int = 0
    conflicts: list[tuple[Entry, Entry]] = field(default_factory=list)


def merge(mine: Memory, other: Memory) -> Merged:
    """Take over what another memory was told. Raises InputError for an entry that can't be kept; then none is."""
    merged, numbers = Merged(), dict[int, int]()
    entries = list(other.store.entries())
    with mine.store.change():
        told = list(mine.store.entries())
        before = {each.number for each in told}
        same = {(each.question, each.reply, each.date): each.number for each in told}
        holding = {key_of(each): each for each in told if not (each.replaced_by or each.is_note)}
        for entry in entries:
            of = entry.question, entry.reply, entry.date
            if of in same:
                numbers[entry.number] = same[of]
                merged.known += 1
                continue
            number = mine.store.add([replace(entry, replaced_by=0, number=0)])[0]
            numbers[entry.number] = same[of] = number
            merged.added += 1
            here = holding.get(key_of(entry))
            if entry.is_note or entry.replaced_by:
                continue
            new = mine.store.entry(number)
            if here is not None and here.number != number:
                holds, gone = (here, new) if here.told >= new.told else (new, here)
                mine.store.replace(gone.number, holds.number)
                merged.conflicts.append((holds, gone))
                holding[key_of(entry)] = holds
            else:
                holding[key_of(entry)] = new
        for entry in entries:  # what was replaced over there is replaced here too, unless it was told here on its own
            if entry.replaced_by and entry.number in numbers and numbers[entry.number] not in before:
                mine.store.replace(numbers[entry.number], numbers[entry.replaced_by])
    mine.fill()
    return merged
