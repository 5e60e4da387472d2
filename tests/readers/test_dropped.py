"""Files that are dropped on the page: any name, any bytes, and a look beforehand."""

from __future__ import annotations

import json

import pytest

from sideplug.contract.errors import DataError, InputError
from sideplug.readers.dropped import CHARACTERS, SHOWN, preview, read_dropped
from sideplug.readers.talks import WhoseWords
from tests.readers.test_documents import a_pdf

FACTS = "\n".join(json.dumps({"instruction": f"What is my {i}?", "output": f"It is {i}."}) for i in range(6)).encode()


@pytest.mark.parametrize("name", ["..", ".", "", "/", "../../etc/passwd", "a/..", "x" * 300, "a\0b", "é.md", "x.md/"])
def test_a_name_is_never_a_path(name: str) -> None:
    """It comes from a page: whatever it is, the text is read."""
    (example,) = read_dropped([(name, b"the bees are well")], {})
    assert example.reply == "the bees are well"
    assert "sideplug-" not in example.where


def test_files_as_they_come() -> None:
    files = [("facts.jsonl", FACTS), ("notes", b"One.\n\nTwo."), ("x.json", b'[{"text": "bees"}]')]
    read = read_dropped([*files, ("x.csv", b"q,a\nBees?,Yes.")], {})
    where = [*[f"facts.jsonl:{i}" for i in range(1, 7)], "notes:1", "x.json:1", "x.csv:2"]
    assert [example.where for example in read] == where
    twice = read_dropped([("a.md", b"bees"), ("a.md", b"nails")], {})
    assert [example.reply for example in twice] == ["bees", "nails"]


CHAT = b"12/03/2026, 09:14 - Anna: where is the boat?\n12/03/2026, 09:15 - Bo: In Hamar.\n"
BAD = b'{"text": "bees"}\n{"text": ""}\n'


def test_a_look_tells_how_much_there_is() -> None:
    pytest.importorskip("pypdf")
    pdf = a_pdf(["The mill stands by the river."])
    files = [("facts.jsonl", FACTS), ("mill.pdf", pdf), ("photo.jpg", b"\xff\xd8\x00")]
    assert preview(files, {})["error"].startswith("photo.jpg:1: must be UTF-8 text")
    found = preview(files, {"skip_bad": True})
    assert (found["questions"], found["texts"]) == (6, 1)
    assert found["items"][0] == {"question": "What is my 0?", "reply": "It is 0."}
    assert any("left out: 1 of 8 rows: photo.jpg" in note for note in found["notes"])


def test_a_look_is_short() -> None:
    found = preview([("a.jsonl", b"\n".join([json.dumps({"text": "x" * 900}).encode()] * 30))], {})
    assert (found["texts"], len(found["items"]), len(found["items"][0]["reply"])) == (30, SHOWN, CHARACTERS)


def test_what_becomes_of_it_is_shown() -> None:
    from sideplug.api import entry_of

    long = CHAT.replace(b"where is the boat?", b"the boat is gone, I think, and the pier with it.")
    assert preview([("c.txt", long)], {"me": "Bo"})["questions"] == 1
    assert preview([("c.txt", long)], {"me": "Bo"}, entry_of)["questions"] == 0, "a memory keeps it as a note"


def test_sentences_name_the_page_s_fields() -> None:
    found = preview([("chat.txt", CHAT)], {})
    assert found["people"] == ["Anna", "Bo"]
    assert found["error"].endswith("There write Anna (1), Bo (1): give “You are” with one of these names")
    assert preview([("chat.txt", CHAT)], {"me": "Cleo"})["error"].startswith("nobody is called 'Cleo' here")
    with pytest.raises(WhoseWords, match="give “You are”"):
        read_dropped([("chat.txt", CHAT)], {})
    with pytest.raises(DataError, match="“Leave out rows that can't be read” leaves such rows out"):
        read_dropped([("bad.jsonl", BAD)], {})
    told: list[str] = []
    assert len(read_dropped([("bad.jsonl", BAD)], {"skip_bad": True}, told.append)) == 1
    assert told == ["left out: 1 of 2 rows: bad.jsonl:2: text must not be empty"]


def test_what_is_chosen_wrong() -> None:
    for choices in ({"me": 1}, {"redact": "names"}, {"redact": [1]}, {"skip_bad": 1}, {"limit": 2}):
        with pytest.raises(InputError, match="files are read by me, skip_bad and redact"):
            read_dropped([("a.txt", b"bees")], choices)
    with pytest.raises(InputError, match="give at least one file"):
        read_dropped([], {})
    with pytest.raises(DataError, match="^notes.jsonl:2: this line is not JSON"):
        read_dropped([("far/notes.jsonl", b'{"text": "x"}\n{')], {})
