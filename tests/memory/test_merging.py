"""Two devices, one person: what either was told is there, once; what contradicts is told, and can be restored."""

from __future__ import annotations

import pytest

from sideplug.contract.errors import InputError
from sideplug.memory import book
from sideplug.memory.merging import merge
from sideplug.memory.part import Memory
from sideplug.memory.store import Entry

EARLY, LATE = "2026-03-01T10:00:00+00:00", "2026-03-02T10:00:00+00:00"


def told(*entries: tuple[str, str, str]) -> Memory:
    memory = Memory()
    book.tell(memory, [Entry(question, reply, told=at) for question, reply, at in entries])
    return memory


def shown(memory: Memory) -> set[tuple[str, str, bool]]:
    return {(each.question, each.reply, not each.replaced_by) for each in memory.store.entries()}


def test_what_either_was_told_is_there_once() -> None:
    mine = told(("Where are the nails?", "In the tin.", EARLY), ("", "Ines waters row two.", EARLY))
    other = told(("Where are the nails?", "In the tin.", LATE), ("Who runs the mill?", "Anna.", LATE))
    merged = merge(mine, other)
    assert (merged.added, merged.known, merged.conflicts) == (1, 1, [])
    assert len(list(mine.store.entries())) == 3
    found = mine.recall("Who runs the mill?")
    assert found is not None
    assert found.text == "Anna."
    assert merge(mine, other).added == 0, "twice changes nothing"


@pytest.mark.parametrize("mine_is_later", [True, False])
def test_of_two_replies_the_later_holds(mine_is_later: bool) -> None:
    mine = told(("Where are the nails?", "In the tin.", LATE if mine_is_later else EARLY))
    other = told(("where are the nails", "In the shed.", EARLY if mine_is_later else LATE))
    ((holds, gone),) = merge(mine, other).conflicts
    replies = ["In the tin.", "In the shed."]
    assert [holds.reply, gone.reply] == (replies if mine_is_later else replies[::-1])
    assert {(reply, there) for _, reply, there in shown(mine)} == {(holds.reply, True), (gone.reply, False)}
    book.restore(mine, gone.number)
    found = mine.recall("Where are the nails?")
    assert found is not None
    assert found.text == gone.reply


def test_what_was_replaced_over_there_comes_too() -> None:
    other = told(("Where are the nails?", "In the tin.", EARLY))
    book.tell(other, [Entry("Where are the nails?", "In the shed.", told=LATE)])
    mine = Memory()
    assert merge(mine, other).added == 2
    assert shown(mine) == shown(other)
    old = next(each for each in mine.store.entries() if each.replaced_by)
    assert mine.store.entry(old.replaced_by).reply == "In the shed."


def test_days_are_kept() -> None:
    other = Memory()
    book.tell(other, [Entry("", "It rained.", date="2026-03-03", told=EARLY)])
    mine = told(("", "It rained.", LATE))
    merge(mine, other)
    assert {each.date for each in mine.store.entries()} == {"2026-03-03"}


def test_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = told(("a?", "1", EARLY)), told(("b?", "2", EARLY), ("c?", "3", EARLY))
    add, count = mine.store.add, [0]

    def fails(entries: list[Entry]) -> list[int]:
        count[0] += 1
        if count[0] == 2:
            raise InputError("no")
        return add(entries)

    monkeypatch.setattr(mine.store, "add", fails)
    with pytest.raises(InputError):
        merge(mine, other)
    assert [each.question for each in mine.store.entries()] == ["a?"]
