"""The desk: what the gateway's page tells, sees and changes of a plugin's memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from sideplug.contract.errors import InputError, NoNetwork, PluginError
from sideplug.memory.desk import SOURCE, Desk, Files
from sideplug.memory.part import MOST_CHARACTERS
from sideplug.memory.store import Entry
from sideplug.plugins import Plugin
from sideplug.plugins.file import WEIGHTS
from tests.conftest import a_plugin

DOG = ("What is my dog's name?", "Biscuit.")
KEY = ("", "The spare key hangs behind the clock.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a plugin was told two things."""
    Desk().tell(tmp_path / "anna", [DOG, KEY])
    return tmp_path / "anna"


def entries(folder: Path) -> list[dict[str, Any]]:
    return Desk().entries(Plugin.load(folder))


def said(folder: Path, question: str) -> list[str]:
    return [part["text"] for part in Desk().search(Plugin.load(folder), question) if part["said"]]


def test_a_plugin_is_made_and_told(folder: Path) -> None:
    dog, key = entries(folder)
    assert (dog["number"], dog["question"], dog["reply"], dog["source"]) == (1, *DOG, SOURCE)
    assert (key["number"], key["question"], key["reply"], key["replaced_by"]) == (2, *KEY, None)
    assert dog["told"].startswith("20")
    assert said(folder, "What is my dog's name?") == ["Biscuit."]
    assert said(folder, "Is it far to the mill?") == []


def test_what_is_known_replaced_or_doubtful_is_told(folder: Path) -> None:
    again = Desk().tell(folder, [DOG])
    assert (again["numbers"], again["known"]) == ([], 1)
    newer = Desk().tell(folder, [(DOG[0], "Rex.")])
    ((old, new),) = [(both["old"], both["new"]) for both in newer["replaced"]]
    assert (old["number"], old["replaced_by"], new["number"], new["replaced_by"]) == (1, 3, 3, None)
    assert [entry["replaced_by"] for entry in entries(folder)] == [3, None, None]
    assert said(folder, DOG[0]) == ["Rex."]


def test_a_replaced_one_holds_again(folder: Path) -> None:
    """Whatever the number of those that came after it: one of them holds."""
    for reply in ("Rex.", "Pepper."):
        Desk().tell(folder, [(DOG[0], reply)])
    assert Desk().restore(folder, 1) == {"number": 1, "instead_of": 4}
    assert said(folder, DOG[0]) == ["Biscuit."]
    assert [entry["number"] for entry in entries(folder) if not entry["replaced_by"]] == [1, 2]
    assert Desk().restore(folder, 3)["instead_of"] == 1
    assert said(folder, DOG[0]) == ["Rex."]
    with pytest.raises(InputError, match="entry 3 holds already"):
        Desk().restore(folder, 3)


def test_an_entry_is_edited_and_forgotten(folder: Path) -> None:
    assert Desk().edit(folder, 1, None, "Rex.")["question"] == DOG[0]
    assert said(folder, DOG[0]) == ["Rex."]
    assert Desk().edit(folder, 1, "Who is my cat?", None)["reply"] == "Rex."
    with pytest.raises(InputError, match="must have a reply"):
        Desk().edit(folder, 1, None, " ")
    gone = Desk().forget(folder, 1)
    assert (gone["forgotten"]["number"], gone["trained"]) == (1, False)
    assert [entry["number"] for entry in entries(folder)] == [2]
    for work in (lambda: Desk().forget(folder, 1), lambda: Desk().edit(folder, 1, "x", "y")):
        with pytest.raises(InputError, match="has no entry 1"):
            work()


def test_a_trained_part_stays_and_is_told_of(folder: Path) -> None:
    """What was trained on it may still hold what is forgotten."""
    a_plugin("0" * 64).save(folder.parent / "mill")
    trained = (folder.parent / "mill" / WEIGHTS).read_bytes()
    assert Desk().entries(Plugin.load(folder.parent / "mill")) == []
    assert Desk().search(Plugin.load(folder.parent / "mill"), "Is it far?") == []
    with pytest.raises(PluginError, match="no memory yet"):
        Desk().forget(folder.parent / "mill", 1)
    Desk().tell(folder.parent / "mill", [DOG])
    assert (folder.parent / "mill" / WEIGHTS).read_bytes() == trained
    assert Desk().forget(folder.parent / "mill", 1)["trained"] is True


def test_files_are_told_as_they_are_read(tmp_path: Path) -> None:
    def read(files: Files, reading: Mapping[str, object], tell: Callable[[str], None]) -> list[Entry]:
        tell("one row was passed over")
        return [Entry("", data.decode(), name) for name, data in files]

    told = Desk(read).tell(tmp_path / "anna", [], [("notes.txt", b"The mill stands by the river.")])
    assert (told["numbers"], told["notes"]) == ([1], ["one row was passed over"])
    assert entries(tmp_path / "anna")[0]["source"] == "notes.txt"
    with pytest.raises(InputError, match="files are not read here"):
        Desk().tell(tmp_path / "anna", [], [("notes.txt", b"x")])


def test_what_can_t_be_kept_changes_nothing(tmp_path: Path) -> None:
    for bad, says in (([("Who?", "")], "must have a reply"), ([("", "x" * 20_001)], "20,000")):
        with pytest.raises(InputError, match=says):
            Desk().tell(tmp_path / "anna", [DOG, *bad])
    with pytest.raises(InputError, match="nothing to remember"):
        Desk().tell(tmp_path / "anna", [])
    assert not (tmp_path / "anna" / "plugin.json").exists()


def test_a_long_text_is_no_question(folder: Path) -> None:
    long = DOG[0] + " " + "please " * MOST_CHARACTERS
    assert not any(part["said"] for part in Desk().search(Plugin.load(folder), long))


def test_what_helps_is_fetched_when_something_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the background; without a network it is said, and what was told is kept."""
    called = threading.Event()

    def fetch() -> None:
        called.set()
        raise NoNetwork("there is no network")

    desk = Desk(fetch=fetch)
    assert not called.is_set()
    desk.tell(tmp_path / "anna", [DOG])
    assert called.wait(30)
    assert desk._fetching is not None
    desk._fetching.join(30)
    assert "found by words alone" in caplog.text
    assert said(tmp_path / "anna", DOG[0]) == ["Biscuit."]
