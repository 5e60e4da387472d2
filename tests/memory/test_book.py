"""Telling and forgetting in a plugin's folder: the old memory or the new one, whatever happens in between."""

from __future__ import annotations

import errno
import random
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from sideplug.contract.errors import InputError, PluginError, Stopped
from sideplug.device.lock import lock
from sideplug.memory.book import FEW, change, edit, forget, open_memory, tell
from sideplug.memory.part import Memory, Recall
from sideplug.memory.store import Entry
from sideplug.paths import write_aside
from sideplug.plugins import ANY_BASE, Plugin, file
from tests.conftest import a_plugin

BASE = "f" * 64
MILL = Entry("Where is the mill?", "By the river.")
BURNT = Entry("WHERE is the mill", "It burnt down.")
NOTE = Entry("", "Where is the mill?")


def remember(folder: Path, *entries: Entry) -> None:
    change(folder, lambda memory: tell(memory, entries), must_be=False)


def said(folder: Path) -> list[str]:
    return [each.reply for each in open_memory(folder).store.entries()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_a_question_is_answered_by_the_newest_that_was_told() -> None:
    memory = Memory()
    assert tell(memory, [MILL, NOTE]).numbers == [1, 2]
    told = tell(memory, [BURNT, Entry("Who?", "Anna."), Entry("who", "Bo."), Entry("WHO?!", "Cy.")])
    assert (told.numbers, told.known, told.doubtful) == ([3, 4, 5, 6], 0, [])
    assert [(old.number, new.number) for old, new in told.replaced] == [(1, 3), (4, 5), (5, 6)]
    assert [each.replaced_by for each in memory.store.entries()] == [3, 0, 0, 5, 6, 0]


def test_what_is_known_is_counted_and_notes_replace_nothing() -> None:
    memory = Memory()
    assert tell(memory, [MILL, MILL, NOTE]).known == 1
    told = tell(memory, [NOTE, Entry(f" {MILL.question}", MILL.reply), Entry("", BURNT.question), Entry("", "Mill?")])
    assert (told.numbers, told.known, told.replaced, told.doubtful, len(memory.store)) == ([3, 4], 2, [], [], 4)


def test_other_questions_replace_nothing() -> None:
    others = ["When was Austria founded?", "When was Australia founded?", "Is Bo Al's boss?", "Is Al Bo's boss?"]
    assert tell(Memory(), [Entry(each, f"About {each}") for each in others]).replaced == []


def test_questions_without_words_replace_nothing() -> None:
    assert tell(Memory(), [Entry("🐈?", "A cat."), Entry("🐕?", "A dog.")]).replaced == []


@pytest.mark.parametrize(
    ("found", "certainty", "reply", "doubts"),
    [(0, 0.95, "Uphill.", 1), (0, 0.94, "Uphill.", 0), (0, 0.99, "By - the RIVER", 0), (1, 0.99, "Uphill.", 0)],
)
def test_what_may_contradict_is_doubtful(found: int, certainty: float, reply: str, doubts: int) -> None:
    memory = Memory()
    tell(memory, [MILL, NOTE])
    old, new = list(memory.store.entries())[found], Entry("What place has the mill?", reply)
    with mock.patch.object(memory, "recall") as recall:
        recall.return_value = Recall(memory.store.passages([found + 1])[0], 0, certainty, old)
        told = tell(memory, [new, Entry("", "A note."), BURNT])
        assert [(a, b.question, b.number) for a, b in told.doubtful] == [(old, new.question, 3)] * doubts
        tell(memory, [Entry(f"q{n}", "a") for n in range(FEW + 1)])
        assert recall.mock_calls == [mock.call(new.question)], "many are not held against it"
    assert [each.replaced_by for each in memory.store.entries()][:5] == [5, 0, 0, 0, 0], "both hold"


CODE = Entry("What is my combination?", "1234.")


@pytest.mark.parametrize(
    ("note", "near", "forth", "back", "doubts"),
    [
        ("my combination is now 4471", 0.7, 0.66, 0.0, 1),
        ("my combination is now 4471", 0.7, 0.0, 0.98, 1),  # its question finds the note
        ("my combination is now 4471", 0.3, 0.98, 0.98, 0),  # about something else
        ("my combination is now 4471", 0.7, 0.29, 0.29, 0),
        ("my combination is 1234 now", 0.9, 0.98, 0.98, 0),  # it says the same
        ("my combination is now 4471. " + "The bees are well. " * 10, 0.9, 0.98, 0.98, 0),  # a page, not a correction
    ],
)
def test_a_note_that_may_correct_an_entry(note: str, near: float, forth: float, back: float, doubts: int) -> None:
    """It is told, and both hold; told again it is known."""
    memory = Memory()
    tell(memory, [NOTE, CODE])
    found = Recall(memory.store.passages([2])[0], 0, forth, memory.store.entry(2))
    with (
        mock.patch.object(memory, "judged", return_value=[found]),
        mock.patch.object(memory, "nearness", return_value=near),
        mock.patch.object(Memory, "recall", return_value=Recall(found.passage, 0, back, found.entry)),
    ):
        told = tell(memory, [Entry("", note)])
        assert [(old.number, new.number) for old, new in told.doubtful] == [(2, 3)] * doubts
        assert tell(memory, [Entry("", note)]).known == 1
    assert [each.replaced_by for each in memory.store.entries()] == [0, 0, 0]


def test_by_words_alone_a_note_that_may_correct_an_entry() -> None:
    memory = Memory()
    tell(memory, [Entry("Who feeds Pepper on Sunday?", "Aunt Ingrid."), CODE])
    told = tell(memory, [Entry("", "My combination is 4471."), Entry("", "The roof leaks.")])
    assert [(old.question, new.reply) for old, new in told.doubtful] == [(CODE.question, "My combination is 4471.")]


def test_all_or_none_are_told_and_forgotten() -> None:
    memory = Memory()
    with pytest.raises(InputError, match="this one is empty"):
        tell(memory, [MILL, BURNT, Entry("Why?", "")])
    assert tell(memory, [MILL, NOTE]).numbers == [1, 2]
    for numbers, sentence in (([1, 99], "the memory has no entry 99"), ([], "no entry is named: give their numbers")):
        with pytest.raises(InputError, match=sentence):
            forget(memory, numbers)
    assert (len(memory.store), [each.reply for each in forget(memory, [2, 2])]) == (2, [NOTE.reply])
    assert edit(memory, 1, None, "Uphill.").question == MILL.question
    assert edit(memory, 1, "Where?", None).reply == "Uphill."
    assert [(each.number, each.question) for each in memory.store.entries()] == [(1, "Where?")]


def test_a_folder_is_made_and_changed(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    a_plugin(BASE).save(tmp_path / "manner")
    for there, sentence in (
        (folder, "there is no plugin in"),
        (tmp_path / "manner", "has no memory yet: sideplug rem"),
    ):
        with pytest.raises(PluginError, match=sentence):
            change(there, lambda memory: tell(memory, [MILL]))
    remember(folder, MILL, NOTE)
    assert change(folder, lambda memory: forget(memory, [1]))[0].reply == MILL.reply
    assert (said(folder), Plugin.load(folder).base, open_memory(folder).size) == ([NOTE.reply], ANY_BASE, 1)
    assert not [name for name, data in contents(folder).items() if b"river" in data]


def test_an_error_inside_changes_nothing(tmp_path: Path) -> None:
    remember(tmp_path / "old", MILL)
    before = contents(tmp_path)
    for name in ("old", "new"):
        with pytest.raises(ZeroDivisionError):
            change(tmp_path / name, lambda memory: tell(memory, [BURNT]).known / 0, must_be=False)
    assert contents(tmp_path) == before


def test_a_sealed_folder_is_refused(tmp_path: Path) -> None:
    remember(tmp_path, MILL)
    lock(tmp_path, "bees and nails")
    before = contents(tmp_path)
    with pytest.raises(PluginError, match="holds a sealed plugin: unlock it first"):
        remember(tmp_path, NOTE)
    assert contents(tmp_path) == before
    assert open_memory(tmp_path, lambda: "bees and nails").store.entry(1).reply == MILL.reply


@pytest.mark.parametrize("first", ["memory", "manner"])
def test_a_memory_beside_a_trained_part(tmp_path: Path, first: str) -> None:
    plugin = a_plugin(BASE)
    if first == "memory":
        remember(tmp_path, MILL)
    plugin.save_part(plugin.trained, tmp_path)
    manner = contents(tmp_path / "manner")
    remember(tmp_path, MILL, NOTE)
    back = Plugin.load(tmp_path)
    assert (back.base, back.base_name, [part.name for part in back.parts]) == (BASE, "tiny", ["memory", "manner"])
    assert (said(tmp_path), contents(tmp_path / "manner")) == ([MILL.reply, NOTE.reply], manner)


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_a_full_disk_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    remember(tmp_path, MILL)
    before, room = contents(tmp_path), iter(range(whole))

    def full(path: Path, data: bytes) -> None:
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_aside(path, data)

    monkeypatch.setattr(file, "write_aside", full)
    with pytest.raises(Stopped, match="could not be written to .*: No space left on device"):
        remember(tmp_path, NOTE)
    assert (contents(tmp_path) == before) == (whole == 0)
    assert said(tmp_path) == [MILL.reply, NOTE.reply][: 1 + min(whole, 1)]


REMEMBER = """
import os, sys, time
from sideplug.memory.book import Entry, Path, change, tell
os.fsync = lambda number: time.sleep(0.01)  # as slow as a disk may be
for n in range(int(sys.argv[3]), int(sys.argv[4])):
    entry = Entry(f"What is {sys.argv[2]} {n}?", f"{sys.argv[2]} {n}")
    change(Path(sys.argv[1]), lambda memory: tell(memory, [entry]), must_be=False)
    print(n, flush=True)
"""


def start(folder: Path, name: str, first: int, end: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", REMEMBER, str(folder), name, str(first), str(end)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once(tmp_path: Path) -> None:
    children = [start(tmp_path / "p", name, 0, 20) for name in ("ash", "oak")]
    for child in children:
        assert child.communicate()[0].split() == [str(n) for n in range(20)]
    assert sorted(said(tmp_path / "p")) == sorted(f"{name} {n}" for name in ("ash", "oak") for n in range(20))


def test_a_kill_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    rng, found = random.Random(0), list[str]()
    for _ in range(4):
        with start(tmp_path, "elm", len(found), 1000) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(rng.randrange(1, 4))]
            time.sleep(rng.random() * 0.1)
            child.kill()
            last = [*lines, *child.stdout.readlines()][-1]
        found = said(tmp_path)
        assert found == [f"elm {n}" for n in range(len(found))]
        assert len(found) - int(last) in (1, 2), "what it said to be done is there, and one more perhaps"
    remember(tmp_path, NOTE)
    assert said(tmp_path) == [*found, NOTE.reply]


def test_a_memory_that_has_forgotten_all_is_the_same_memory(tmp_path: Path) -> None:
    """A number is given once, and what was set stays."""
    remember(tmp_path, MILL)
    change(tmp_path, lambda memory: memory.store.set_setting("kept", "so"))
    change(tmp_path, lambda memory: forget(memory, [1]))
    assert change(tmp_path, lambda memory: memory.store.setting("kept")) == "so"
    assert change(tmp_path, lambda memory: tell(memory, [MILL])).numbers == [2]
