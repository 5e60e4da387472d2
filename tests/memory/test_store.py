"""The store: entries by their numbers, passages, what is forgotten, and bytes that are a memory or are refused."""

from __future__ import annotations

import contextlib
import gc
import sqlite3
from dataclasses import replace

import numpy as np
import pytest

from sideplug.contract.errors import InputError, PluginError
from sideplug.memory.store import MAX_CHARACTERS, Entry, Store
from sideplug.memory.words import stem, words

MILL = Entry("Where is the mill?", "By the river.", "said", "2024-05-01")
BURNT = Entry("Where is the mill?", "It burnt down.")
BEES = Entry("Who keeps the bees?", "Anna keeps them.")
NOTE = Entry("", "The roof leaks. Ask Jonas about it!", "notes/house.md")


def a_store(*entries: Entry) -> Store:
    store = Store()
    store.add(entries or [MILL, BEES, NOTE])
    return store


def texts(store: Store) -> list[tuple[int, str, str]]:
    """What is searched: (number, asked, said) of each passage."""
    return [(each.number, each.asked, each.said) for each in store.passages(store.ids().tolist())]


def test_entries_are_kept_in_their_order() -> None:
    store = a_store(MILL, NOTE)
    mill, note = store.entries()
    assert (mill, mill.told[-6:]) == (replace(MILL, told=mill.told, number=1), "+00:00")
    assert (mill.is_note, mill.title, note.is_note, note.title) == (False, MILL.question, True, "The roof leaks.")
    assert texts(store) == [(1, MILL.question, MILL.reply), (2, "", "The roof leaks.\nAsk Jonas about it!")]


def test_the_same_entry_keeps_its_number() -> None:
    store = a_store()
    assert store.add([BEES, BURNT, Entry(f" {MILL.question}\n", MILL.reply)]) == [2, 4, 1]
    store.replace(1, 4)
    assert (store.add([MILL]), len(store)) == ([5], 4), "one that was replaced does not hold"


def test_an_edited_entry_has_only_the_new_words() -> None:
    store = a_store(MILL, BEES)
    store.edit(1, "Where is the barn?", "Uphill.")
    with pytest.raises(InputError, match="this one is empty"):
        store.edit(1, "Where?", " ")
    entry = store.entry(1)
    assert entry == replace(MILL, question="Where is the barn?", reply="Uphill.", told=entry.told, number=1)
    assert texts(store) == [(2, BEES.question, BEES.reply), (1, "Where is the barn?", "Uphill.")]
    assert store.frequency(["mill", "river", "barn", "the"]) == {"barn": 1, "the": 2}


def test_a_replaced_entry_is_seen_and_not_found_until_it_is_restored() -> None:
    store = a_store(MILL, BURNT)
    store.replace(1, 2)
    assert (len(store), store.passage_count(), [each.replaced_by for each in store.entries()]) == (1, 1, [2, 0])
    assert (store.by_words(["river"], 9), store.frequency(["river", "mill"])) == ([], {"mill": 1})
    store.edit(1, MILL.question, "By the lake.")
    assert store.frequency(["lake"]) == {}, "an edit does not make it hold"
    store.restore(1)
    assert (len(store), store.entry(1).replaced_by, store.frequency(["lake", "mill"])) == (2, 0, {"lake": 1, "mill": 2})


@pytest.mark.parametrize(
    ("gone", "holds"),
    [
        ([3], 2),
        ([2], 3),
        ([2, 3], 1),
        ([3, 2], 1),
    ],
)
def test_what_a_forgotten_entry_replaced_holds_again(gone: list[int], holds: int) -> None:
    store = a_store(MILL, BURNT, Entry(MILL.question, "It was built anew."))
    store.replace(1, 2)
    store.replace(2, 3)
    assert (store.forget(gone), [number for number, _, _ in texts(store)]) == (len(gone), [holds])


@pytest.mark.parametrize("number", [9, 0, -1, 1 << 63])
def test_a_number_that_is_not_there(number: int) -> None:
    store = a_store()
    for work in (store.entry, store.restore, lambda number: store.edit(number, "a", "b")):
        with pytest.raises(InputError, match=f"the memory has no entry {number}: sideplug memory list shows them"):
            work(number)
    assert (store.forget([number]), len(store)) == (0, 3)


def test_forgotten_words_vectors_and_tokens_are_nowhere_in_the_bytes() -> None:
    secret = Entry("Zwetschge vault?", "Xylophone 778899.", "quarry.md", "1999-09-19")
    store = a_store(*(Entry(f"Mill {n}?", f"River {n}.") for n in range(50)), secret, Entry("", "Jukebox hums. " * 60))
    store.edit(51, secret.question, "Yacht 665544.")
    assert not any(mark in store.to_bytes() for mark in b"Xylophone xylop 7788".split())
    marks = [b"VECTORSECRET" * 32, b"TOKENSECRET-" * 4]
    marks += b"Zwets zwets quarry 1999-09 Yacht yacht 6655 Jukebox jukeb".split()
    secrets = [each.id for each in store.passages(store.ids().tolist()) if each.number > 50]
    store.set_vectors({each: np.frombuffer(marks[0], np.int8) for each in secrets})
    store.set_ids("base", {each: np.frombuffer(marks[1], np.int32) for each in secrets})
    assert [mark for mark in marks if mark not in store.to_bytes()] == []
    store.add([Entry(f"Barn {n}?", f"Hill {n}.") for n in range(20)])
    assert (store.forget([51, 52]), [mark for mark in marks if mark in store.to_bytes()]) == (2, [])
    assert (len(store), store.passage_count(), len(store.vectors()[0]), store.ids_by_passage("base")) == (70, 70, 0, {})
    assert (store.add([secret]), store.forget([73]), store.add([secret])) == ([73], 1, [74]), "a number is given once"


def test_a_note_is_cut_between_sentences() -> None:
    some = [f"{letter * size}." for letter, size in zip("abcdefg", (300, 58, 1, 500, 9, 100, 249), strict=True)]
    passages = [said.split("\n") for _, said in Entry("", " ".join(some)).passages()]
    assert passages == [some[:2], some[2:3], some[3:4], some[4:6], some[6:]], "360 characters are one, 361 are not"
    assert Entry("Why?", " ".join(some)).passages() == [("Why?", " ".join(some))], "a pair is one"


def test_parts_and_their_tokens() -> None:
    store = a_store(Entry("Who?", "Anna.\nOr Bo. Or Cy."), Entry("", "One. Two. Three."))
    assert [each.parts for each in store.unrecorded("base")] == [["Anna.\nOr Bo. Or Cy."], ["One.", "Two.", "Three."]]
    store.set_ids("base", {2: np.array([7, 8, -1, -1, 9, -1])})
    pair, note = store.passages([1, 2], "base")
    assert (pair.ids_of(0), [note.ids_of(part) for part in range(3)]) == ([], [[7, 8], [], [9]])
    assert [each.id for each in store.unrecorded("base")] == [1]
    assert [each.ids_of(0) for each in store.passages([2, 9, 1], "other")] == [[], []]
    store.edit(2, "", "One. Four.")
    assert [each.parts for each in store.unrecorded("base")][1:] == [["One.", "Four."]], "what changed is read anew"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (" a\n", "a"),
        ("  " + "ж" * MAX_CHARACTERS, "ж" * MAX_CHARACTERS),
        ("a\0b\0", "ab"),
        ("a\ud800b\udfffc", "a?b?c"),
        ("Привет, dünya: 犬の名前", "Привет, dünya: 犬の名前"),
        ('<|im_end|>\n" OR 1=1; --', '<|im_end|>\n" OR 1=1; --'),
    ],
)
def test_texts_that_are_kept(given: str, kept: str) -> None:
    store = a_store(Entry(given, given), Entry("", given))
    pair, note = Store(store.to_bytes()).entries()
    assert (pair.question, pair.reply, note.question, note.reply) == (kept, kept, "", kept)
    assert set(store.by_words([stem(each) for each in words(kept)], 9)) == set(store.ids().tolist())


@pytest.mark.parametrize(("question", "reply"), [("Why?", ""), ("", "\0 \n"), ("", "a" * 20_001), ("a" * 20_001, "b")])
def test_texts_that_are_refused(question: str, reply: str) -> None:
    store, long = a_store(MILL), len(question + reply) > MAX_CHARACTERS
    sentence = (
        "an entry may have 20,000 characters, this one has 20,001" if long else "a note a text: this one is empty"
    )
    with pytest.raises(InputError, match=sentence):
        store.add([BEES, Entry(question, reply)])
    assert texts(store) == [(1, MILL.question, MILL.reply)], "all of them or none"


def test_a_source_that_is_no_text() -> None:
    assert a_store(Entry("", "Rain.", "notes/\udcff.md")).entry(1).source == "notes/?.md"


def test_the_whole_memory_goes_round() -> None:
    store = a_store()
    store.replace(2, 1)
    store.set_vectors({1: np.arange(-64, 64, dtype=np.int8)})
    store.set_ids("base", {1: np.array([5, -1])})
    store.set_setting("encoder", "small")
    back = Store(store.to_bytes())
    assert (list(back.entries()), texts(back)) == (list(store.entries()), texts(store))
    assert [each.tolist() for each in back.vectors()] == [[1], [list(range(-64, 64))]]
    assert (back.passages([1], "base")[0].ids_of(0), back.missing_vectors()) == ([5], 1)
    assert (back.setting("encoder"), back.setting("other"), back.add([BEES]), len(store)) == ("small", "", [4], 2)


def test_bytes_of_another_format() -> None:
    for sql, sentence in (
        ("UPDATE meta SET value = '2'", "m has format 2, this version reads 1"),
        ("DELETE FROM meta", "m has format none, this version reads 1"),
        ("DROP TABLE meta", "m is damaged: no such table: meta"),
    ):
        with contextlib.closing(sqlite3.connect(":memory:")) as db, pytest.raises(PluginError, match=sentence):
            db.deserialize(a_store().to_bytes())
            db.executescript(sql)
            Store(db.serialize(), "m")


def test_damaged_bytes() -> None:
    whole = a_store().to_bytes()
    cut = [whole[:-4096], whole + bytes(4096), whole[:-1], whole[:4096], b"no database".ljust(4096)]
    for bad in (b"", whole[:1], whole[:100], whole[:30_000], b"no database", *cut):
        with pytest.raises(PluginError, match="m is damaged: "):
            Store(bad, "m")


@pytest.mark.parametrize("schema", [b"", b"CREATE TABLE entries \xff"])
def test_damaged_bytes_that_sqlite_has_no_words_for(schema: bytes) -> None:
    whole, words = a_store().to_bytes(), b"CREATE TABLE entries ("
    bad = whole.replace(words, schema.ljust(len(words)))
    assert (words in whole, len(bad)) == (True, len(whole))
    with pytest.raises(PluginError, match="m is damaged: "):
        Store(bad, "m")


def test_a_dropped_memory_closes_its_database() -> None:
    """Python 3.13 warns of one that is not closed."""
    store = a_store()
    db = store._db
    del store
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        db.execute("SELECT 1")
