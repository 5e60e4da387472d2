"""Files of other programs: tables, mail, web pages, JSON in its shapes, and the exports that are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sideplug.contract.errors import DataError
from sideplug.readers import read
from sideplug.readers.exports import WAYS_OUT
from sideplug.readers.html_page import text_of_html

PAIR = {"question": "Where is row two?", "answer": "Behind the bench."}


def learnt(path: Path, **options: Any) -> tuple[list[str], list[str]]:
    """(the replies with their lines, what is told)."""
    lines: list[str] = []
    found = read(path, tell=lines.append, **options)
    return [f"{example.where.rpartition(':')[2]} {example.reply}" for example in found], lines


TABLES = {
    "commas": "question,answer\nWhere?,There.\n",
    "semicolons": "Question;Answer\nWhere?;There.\n",
    "tabs": "question\tanswer\nWhere?\tThere.\n",
    "bars": "question|answer\nWhere?|There.\n",
    "quotes": '"prompt","completion"\n"Where?","There."\n',
    "blank lines": "\nquestion,answer\n\nWhere?,There.\n\n",
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES.keys())
def test_tables(tmp_path: Path, text: str) -> None:
    for name in ("a.csv", "b.TSV"):
        (tmp_path / name).write_text(text)
        replies, told = learnt(tmp_path / name)
        assert [reply.split(" ", 1)[1] for reply in replies] == ["There."]
        assert told == []


def test_a_tables_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(
        'question,answer,date\n"Where,\nplease?","There, and\n""here"".",\ntoday\nWhy?,,2024\nWhen?,Now.,\n'
    )
    with pytest.raises(
        DataError, match=r"^2 of 4 rows .*:5: the row must have 3 fields, .*, got 1; .*:6: answer must not be"
    ):
        read(file)
    replies, told = learnt(file, skip_bad=True)
    assert replies == ['2 There, and\n"here".', "7 Now."]
    assert told[0] == "fields that are not used: date (1 row)"
    file.write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="a.csv:1: the first line must name the columns, each once"):
        read(file)
    file.write_text('question,answer\n"Where?,There.\n')
    with pytest.raises(DataError, match="a.csv:2: the table is broken from here on"):
        read(file)
    file.write_text("text\n" + "long " * 60_000)
    assert len(read(file)) > 100, "a field may be long"


PAGES = {
    "<p>a</p><p>b</p>": "a\n\nb",
    "<head><title>T</title><style>s</style></head><body>a<script>x()</script></body>": "a",
    "a<br>b<br/>c": "a\nb\nc",
    "<ul><li>a</li><li>b</li></ul>c": "- a\n- b\n\nc",
    "<pre>def f():\n    x</pre>": "def f():\n    x",
    "a  \n\n  b &amp; c&nbsp;d &lt;e&gt;": "a b & c\xa0d <e>",
    "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>": "a b\nc",
    "<head><title>T</title><body><p>a": "a",
    "<svg><text>x</text></svg><h1>A</h1>b<p>c</div>": "A\n\nb\n\nc",
    "a<b>b</b>c": "abc",
    "": "",
}


@pytest.mark.parametrize(("source", "text"), PAGES.items())
def test_what_a_page_shows(source: str, text: str) -> None:
    assert text_of_html(source) == text


def test_a_page(tmp_path: Path) -> None:
    page = '<html><head><meta charset="iso-8859-1"></head><body><p>Um café.</p></body></html>'
    (tmp_path / "a.HTM").write_bytes(page.encode("latin-1"))
    assert learnt(tmp_path / "a.HTM") == (["1 Um café."], [])
    (tmp_path / "b.html").write_bytes(page.replace("iso-8859-1", "none-such").encode("latin-1"))
    with pytest.raises(DataError, match="b.html says that it is none-such, but it is not"):
        read(tmp_path / "b.html")


LINES = "".join(json.dumps(PAIR) + "\n" for _ in range(2))
SHAPES = {
    "lines": (LINES, ["1", "2"]),
    "lines with blank ones": (LINES.replace("\n", "\n\n"), ["1", "3"]),
    "an array": (json.dumps([PAIR, PAIR], indent=1), ["2", "6"]),
    "one object": (json.dumps(PAIR, indent=1), ["1"]),
    "objects over lines": (json.dumps(PAIR, indent=1) * 2, ["1", "4"]),
    "a wrapper": (json.dumps({"version": 1, "data": [PAIR, PAIR]}, indent=1), ["4", "8"]),
    "a wrapper in the middle": (json.dumps({"a": "[{", "rows": [PAIR], "b": []}), ["1"]),
    "a wrapper that looks like a conversation": (json.dumps({"conversations": [PAIR, PAIR]}), ["1", "1"]),
    "an array of one, with a list in it": (json.dumps([{**PAIR, "tags": [{"a": 1}]}]), ["1"]),
    "a key that stands twice": ('{"data": 1, "data": ' + json.dumps([PAIR]) + "}", ["1"]),
    "an empty array and a record": (json.dumps({**PAIR, "tags": []}), ["1"]),
}


@pytest.mark.parametrize(("text", "lines"), SHAPES.values(), ids=SHAPES.keys())
def test_shapes_of_json(tmp_path: Path, text: str, lines: list[str]) -> None:
    for name in ("a.json", "b.JSONL"):
        (tmp_path / name).write_text(text)
        assert learnt(tmp_path / name)[0] == [f"{line} {PAIR['answer']}" for line in lines]


def test_deep_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match="a.json:1: not JSON from here on"):
        read(tmp_path / "a.json")


EXPORTS: dict[str, Any] = {
    "Discord's export": {"guild": {}, "channel": {}, "messages": [{"content": "a"}]},
    "Facebook's or Instagram's export": {"participants": [], "messages": [{"sender_name": "A", "content": "a"}]},
    "Google Chat's export": {"messages": [{"creator": {"name": "A"}, "text": "a"}]},
    "Google's export of Gemini": [{"header": "Gemini Apps", "title": "a", "titleUrl": "u", "time": "t"}],
    "Google Keep's note": {"textContent": "a", "title": "x", "userEditedTimestampUsec": 1},
    "Day One's journal": {"metadata": {}, "entries": [{"text": "a", "creationDate": "d"}]},
    "X's export": [{"tweet": {"full_text": "a"}}],
    "a table of people's messages": [{"date": "d", "from": "Ana", "text": "a"}],
}


@pytest.mark.parametrize(("name", "value"), EXPORTS.items(), ids=EXPORTS.keys())
def test_exports_are_refused_by_name(tmp_path: Path, name: str, value: Any) -> None:
    file = tmp_path / "result.json"
    file.write_text(json.dumps(value))
    with pytest.raises(DataError, match=f"result.json is {name}, which is not read yet: "):
        read(file)
    (tmp_path / "a.md").write_text("Row one.")
    replies, told = learnt(tmp_path)
    assert replies == ["1 Row one."]
    assert told[0] == "1 file read; 1 passed over: 1 .json"
    assert name in told[1]


def test_a_tables_messages_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "chat.csv").write_text("date,from,text\n2024-03-01,Ana,Row 1 is dry.\n")
    with pytest.raises(DataError, match="chat.csv is a table of people's messages, which is not read yet"):
        read(tmp_path / "chat.csv")
    assert len(read(tmp_path / "chat.csv", "text")) == 1


def test_a_diary_is_no_whatsapp(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("12/03/2024: row one\n13/03/2024, 09:15 row two\n14/03/2024 - row three: dry\n" * 4)
    assert len(read(tmp_path / "a.txt")) == 1


@pytest.mark.parametrize("suffix", WAYS_OUT)
def test_other_files_are_refused_with_the_way_out(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"notes{suffix.upper()}"
    file.write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match=rf"files of the type \{suffix} are not read yet: \w"):
        read(file)
