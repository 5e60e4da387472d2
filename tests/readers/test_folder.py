"""A folder is not a list of files: what is passed over is counted, and nothing in it stops the rest."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from sideplug.contract.errors import DataError
from sideplug.readers import read


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("Row one.")
    (folder / "b.TXT").write_text("Row two.")
    return folder


def told(folder: Path, **options: bool) -> tuple[list[str], list[str]]:
    lines: list[str] = []
    return [example.reply for example in read(folder, tell=lines.append, **options)], lines  # type: ignore[arg-type]


def put(path: Path, text: str = "No.") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def plugin(folder: Path) -> None:
    put(folder / "plugin.json", json.dumps({"format": 3, "parts": ["manner"]}))
    put(folder / "manner" / "adapter_config.json", "{}")
    put(folder / "about.md")


def test_nothing_passed_over_nothing_told(notes: Path) -> None:
    assert told(notes) == (["Row one.", "Row two."], [])


ENTRIES = {
    "hidden folders": (
        lambda folder: [put(folder / name / "x.md") for name in (".trash", ".obsidian", ".git")],
        "3 hidden",
    ),
    "a hidden file": (lambda folder: put(folder / ".x.md"), "1 hidden"),
    "an empty file": (lambda folder: put(folder / "x.md", ""), "1 empty"),
    "a file of spaces": (lambda folder: put(folder / "x.jsonl", " \n\n"), "1 empty"),
    "a mark alone": (lambda folder: (folder / "x.txt").write_bytes(b"\xef\xbb\xbf"), "1 empty"),
    "a note of front matter alone": (lambda folder: put(folder / "x.md", "---\ntitle: x\n---\n"), "1 empty"),
    "a dangling link": (lambda folder: (folder / "x.md").symlink_to("nowhere.md"), "1 dangling"),
    "a link to itself": (lambda folder: (folder / "x.md").symlink_to("x.md"), "1 dangling"),
    "a loop": (lambda folder: (folder / "x").symlink_to("."), "1 seen before"),
    "a second way to a file": (lambda folder: (folder / "x.md").symlink_to("a.md"), "1 seen before"),
    "a pipe": (lambda folder: os.mkfifo(folder / "x.md"), "1 neither file nor folder"),
    "an earlier plugin": (lambda folder: plugin(folder / "p"), "1 of an earlier plugin"),
    "a stopped training": (lambda folder: put(folder / "p" / "tape" / "train.tape"), "1 of an earlier plugin"),
    "pictures": (lambda folder: [put(folder / name) for name in ("a.png", "b.PNG", "c.jpg")], "2 .png, 1 .jpg"),
    "no suffix": (lambda folder: put(folder / "Makefile"), "1 without a suffix"),
}


@pytest.mark.parametrize(("make", "why"), ENTRIES.values(), ids=ENTRIES.keys())
def test_passed_over_and_counted(notes: Path, make: object, why: str) -> None:
    make(notes)  # type: ignore[operator]
    replies, lines = told(notes)
    assert replies == ["Row one.", "Row two."]
    total = sum(int(part.split()[0]) for part in why.split(", "))
    assert lines == [f"2 files read; {total} passed over: {why}"]


def test_a_socket(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(notes)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("x.md")
        assert told(notes)[1] == ["2 files read; 1 passed over: 1 neither file nor folder"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read(notes: Path) -> None:
    put(notes / "x.md")
    (notes / "x.md").chmod(0)
    put(notes / "y" / "z.md")
    (notes / "y").chmod(0)
    assert told(notes)[1] == ["2 files read; 2 passed over: 2 unreadable"]
    (notes / "y").chmod(0o700)


def test_what_the_system_does_not_let_read(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where tests run as root, who may read everything."""
    put(notes / "x.md")
    put(notes / "y" / "z.md")
    access, scandir = os.access, os.scandir

    def refused(path: Path) -> object:
        if Path(path).name == "y":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "x.md" and access(path, mode))
    monkeypatch.setattr(os, "scandir", refused)
    assert told(notes) == (["Row one.", "Row two."], ["2 files read; 2 passed over: 2 unreadable"])


def test_a_folder_that_is_called_like_a_file(notes: Path) -> None:
    put(notes / "x.md" / "c.txt", "Row three.")
    put(notes / "y.json" / "d.md", "Row four.")
    assert told(notes) == (["Row one.", "Row two.", "Row three.", "Row four."], [])


def test_a_linked_folder_is_read(notes: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "c.md", "Row three.")
    (notes / "linked").symlink_to(tmp_path / "elsewhere")
    assert told(notes)[0] == ["Row one.", "Row two.", "Row three."]


def test_a_name_that_is_no_text(notes: Path) -> None:
    name = os.fsencode(notes) + b"/caf\xe9.md"
    with open(name, "w", encoding="utf-8") as file:
        file.write("Row three.")
    examples = read(notes)
    assert len(examples) == 3
    assert "caf\ufffd.md:1" in {example.where.rpartition("/")[2] for example in examples}
    with open(name, "wb") as file:
        file.write(b"\xff")
    with pytest.raises(DataError) as caught:
        read(notes)
    str(caught.value).encode()


def test_json_that_is_no_data_is_passed_over_by_name(notes: Path) -> None:
    put(notes / "package.json", '{"name": "x", "version": "1"}')
    replies, lines = told(notes)
    assert replies == ["Row one.", "Row two."]
    assert lines[0] == "2 files read; 1 passed over: 1 .json"
    assert lines[1].startswith(f"{notes}/package.json:1: an example must have instruction and output")


def test_a_document_is_passed_over_with_the_way_out(notes: Path) -> None:
    for name in ("a.doc", "b.xlsx", "c.DOC"):
        put(notes / name)
    _, lines = told(notes)
    assert lines[0] == "2 files read; 3 passed over: 2 .doc, 1 .xlsx"
    assert any("save it as text (.txt, .md)" in line for line in lines)


def test_a_broken_file_is_a_bad_row(notes: Path) -> None:
    (notes / "c.txt").write_bytes(b"caf\xe9")
    put(notes / "d.jsonl", '{"text": "Row three."}\n{"text": ""}\n')
    with pytest.raises(
        DataError, match=r"^2 of 5 rows can't be learnt: .*c\.txt:1: must be UTF-8 .*; .*d\.jsonl:2: text must"
    ):
        read(notes)
    replies, lines = told(notes, skip_bad=True)
    assert replies == ["Row one.", "Row two.", "Row three."]
    assert lines[0].startswith("left out: 2 of 5 rows: ")


def test_where_nothing_fits_it_says_what_was_there(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", ".x"):
        put(tmp_path / name)
    with pytest.raises(DataError, match=r"has no \.json, .* files; it has 2 \.png, 1 hidden$"):
        read(tmp_path)


def test_a_plugin_is_no_data(tmp_path: Path) -> None:
    plugin(tmp_path / "p")
    with pytest.raises(DataError, match="is a plugin, which can't be learnt"):
        read(tmp_path / "p")
    put(tmp_path / "notes" / "a.md")
    with pytest.raises(DataError, match="can't be the folder of your texts and the plugin's too"):
        read(tmp_path / "notes", skip=tmp_path / "notes")
