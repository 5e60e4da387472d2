"""remember --watch: what the files say is remembered, what they say no more is forgotten, all else stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sideplug.cli.follow import follow
from sideplug.contract.errors import DataError
from sideplug.memory import book
from sideplug.memory.store import Entry
from sideplug.plugins.file import is_plugin
from sideplug.readers import read
from tests.conftest import Run, eventually
from tests.test_cli import sentence


def notes_of(plugin: Path) -> set[str]:
    if not is_plugin(plugin):
        return set()
    return {each.reply for each in book.open_memory(plugin).store.entries() if not each.replaced_by}


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.md").write_text("The nails are in the blue tin.")
    (folder / "deep" / "b.txt").write_text("Ines waters row two.")
    return folder


def test_changes_are_followed(notes: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "p"
    book.remember(plugin, [Entry("", "Told by hand.", "by hand:1")], lambda line: None)

    def looks() -> Iterator[None]:
        yield
        assert notes_of(plugin) == {"Told by hand.", "The nails are in the blue tin.", "Ines waters row two."}
        numbers = {each.reply: each.number for each in book.open_memory(plugin).store.entries()}
        (notes / "a.md").write_text("\n\nThe nails are in the blue tin.")  # another line, the same words
        (notes / "c.md").write_text("The tin is under the bench.")
        yield
        kept = {each.reply: each.number for each in book.open_memory(plugin).store.entries()}
        assert kept["The nails are in the blue tin."] == numbers["The nails are in the blue tin."]
        assert "The tin is under the bench." in kept
        (notes / "c.md").write_text("The tin is in the shed.")
        (notes / "deep" / "b.txt").unlink()
        yield
        assert notes_of(plugin) == {"Told by hand.", "The nails are in the blue tin.", "The tin is in the shed."}
        (notes / "c.md").write_bytes(b"caf\xe9")  # can't be read
        yield
        assert "The tin is in the shed." in notes_of(plugin), "it stays as it was"
        (notes / "c.md").unlink()
        (notes / "a.md").unlink()
        yield
        assert notes_of(plugin) == {"Told by hand."}

    def forget(numbers: list[int]) -> None:
        book.change(plugin, lambda memory: book.forget(memory, numbers))

    def found(root: Path) -> list[Entry]:
        return [Entry(each.question, each.reply, each.where) for each in read(root)]

    follow(notes, plugin, found, lambda new: book.remember(plugin, new, print) and None, forget, looks())


def test_by_hand(run: Run, notes: Path, tmp_path: Path) -> None:
    plugin, nowhere = tmp_path / "p", "ws://127.0.0.1:9"
    sentence(run("remember", "A note.", "--watch", notes, "--plugin", plugin), 2, "and nothing else to remember")
    sentence(run("remember", "--watch", tmp_path / "none", "--plugin", plugin), 2, "must be given a folder")
    assert "2 texts" in run("remember", "--watch", notes, "--plugin", plugin, "--preview").stdout
    command = [sys.executable, "-m", "sideplug", "remember", "--watch", str(notes), "--plugin", str(plugin)]
    env = {**os.environ, "SIDEPLUG_CACHE": str(tmp_path / "cache")}

    def hears() -> None:  # a shell's job in the background ignores Ctrl-C, and so would what it starts
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    said = tmp_path / "said"
    with (
        said.open("w", encoding="utf-8") as output,
        subprocess.Popen([*command, "--cloud", nowhere], env=env, stdout=output, preexec_fn=hears) as process,
    ):
        try:
            eventually(lambda: len(notes_of(plugin)) == 2, 30)
            (notes / "c.md").write_text("The tin is under the bench.")
            eventually(lambda: "The tin is under the bench." in notes_of(plugin), 30)
            (notes / "a.md").unlink()
            eventually(lambda: "1 entry is forgotten: the files have that no more" in said.read_text(), 30)
            assert len(notes_of(plugin)) == 2
        finally:
            process.send_signal(signal.SIGINT)
        process.wait(30)
    assert process.returncode == 0
    assert said.read_text().splitlines()[-1] == f"{plugin} stays as it is"


def test_a_document_without_text_forgets_nothing(notes: Path, tmp_path: Path) -> None:
    """What can't be read is told; that it "has no text" does not mean that the folder has nothing."""
    plugin = tmp_path / "p"
    gone: list[int] = []

    def found(root: Path) -> list[Entry]:
        if (notes / "scan").exists():
            raise DataError("scan.pdf has no text: its pages are pictures")
        return [Entry(each.question, each.reply, each.where) for each in read(root)]

    def looks() -> Iterator[None]:
        yield
        (notes / "scan").write_text("x")
        yield

    follow(notes, plugin, found, lambda new: book.remember(plugin, new, print) and None, gone.extend, looks())
    assert gone == []
    assert len(notes_of(plugin)) == 2
