"""Plain text and notes: where a passage stands, what of a note is not prose."""

from __future__ import annotations

import pytest

from sideplug.readers.report import Report
from sideplug.readers.text import Markdown, PlainText, without_links


def note(text: str) -> tuple[list[tuple[int, str]], Report]:
    report = Report()
    return [(p.line, p.text) for p in Markdown().read(text.encode(), "a.md", report)], report  # type: ignore[union-attr]


FRONT = {
    "YAML": "---\ntitle: Rows\ntags: [garden, dry]\naliases:\n  - the rows\n# why\nurl: https://x.example\n---\n",
    "YAML with dots": "---\ntitle: Rows\n...\n",
    "TOML": "+++\ntitle = 'Rows'\n[extra]\na = 1\n+++\n",
    "empty": "---\n---\n",
    "Windows": "---\r\ntitle: Rows\r\n---\r\n",
}


@pytest.mark.parametrize("front", FRONT.values(), ids=FRONT.keys())
def test_front_matter_is_not_learnt(front: str) -> None:
    found, report = note(f"{front}\nRow two is dry.\n")
    assert found == [(front.count("\n") + 2, "Row two is dry.")]
    assert list(report.sentences()) == ["not learnt: front matter of notes (1)"]


@pytest.mark.parametrize(
    "text",
    [
        "---\nRow two is dry.\n---\n\nMore.",
        "--- title: x\n---\nText.",
        "Text.\n\n---\ntitle: x\n---",
        "---\ntitle: x\nno end",
    ],
)
def test_a_line_is_no_front_matter(text: str) -> None:
    found, report = note(text)
    assert "\n\n".join(passage for _, passage in found) == text
    assert list(report.sentences()) == []


def test_a_note_of_front_matter_alone_has_nothing() -> None:
    assert note("---\ntitle: x\n---\n")[0] == []


LINKS = [
    ("[[Garden]] is dry.", "Garden is dry."),
    ("See [[Garden|the garden]].", "See the garden."),
    ("See [[places/Garden#Row two]].", "See places/Garden > Row two."),
    ("See [[Garden#Row two#Left|there]] and [[#Rows]].", "See there and Rows."),
    ("See [[Garden#^a1b2]].", "See Garden."),
    ("![[Garden]] ![[row.png]]![[row.JPG|300]] [[row.png]]", "Garden  row.png"),
    ("`[[code]]` and [[Garden]]", "`[[code]]` and Garden"),
    ("```\n[[1, 2], [3, 4]]\na = [[x]]\n```\n[[Garden]]", "```\n[[1, 2], [3, 4]]\na = [[x]]\n```\nGarden"),
    ("[words](https://x.example) [x] [[]] [[ ]]", "[words](https://x.example) [x] [[]] "),
]


@pytest.mark.parametrize(("text", "words"), LINKS)
def test_a_wiki_link_is_its_words(text: str, words: str) -> None:
    assert without_links(text, Report()) == words


def test_embedded_files_are_counted() -> None:
    assert list(note("A ![[a.png]] ![[b.pdf]]")[1].sentences()) == ["not learnt: embedded files of notes (2)"]


def test_plain_text_is_as_it_is() -> None:
    report = Report()
    text = "---\ntitle: x\n---\n[[Garden]]"
    (only,) = PlainText().read(text.encode(), "a.txt", report)
    assert (only.line, only.text) == (1, text)  # type: ignore[union-attr]


def test_lines_are_told() -> None:
    text = "\n".join(["Row.", "", *("Words and words. " * 60, "")] * 2)
    found = [(p.line, p.text[:4]) for p in PlainText().read(text.encode(), "a.txt", Report())]  # type: ignore[union-attr]
    assert found[0] == (1, "Row.")
    assert {line for line, start in found if start == "Word"} <= {3, 7}
