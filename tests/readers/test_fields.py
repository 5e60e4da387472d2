"""The rule: each field, file, line or option of a person's data is used, refused or told. One table of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sideplug.contract.errors import DataError
from sideplug.readers import read

PAIR = {"instruction": "Where is row two?", "output": "Behind the bench."}
TEXT = {"text": "Row two is behind the bench."}
CHAT = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Behind the bench."}]
USED = [  # what stands in what is learnt
    ("input", {**PAIR, "input": "MARK"}),
    ("context", {**PAIR, "context": "MARK"}),
    ("system", {**PAIR, "system": "MARK"}),
    ("system_prompt", {**PAIR, "system_prompt": "MARK"}),
    ("history", {**PAIR, "history": [["MARK", "Yes."]]}),
    ("history of messages", {**PAIR, "history": [{"role": "user", "content": "MARK"}]}),
    ("system of messages", {"messages": CHAT, "system": "MARK"}),
    ("system of conversations", {"conversations": CHAT, "system": "MARK"}),
    ("developer", {"messages": [{"role": "developer", "content": "MARK"}, *CHAT]}),
    ("parts", {"messages": [{"role": "user", "content": [{"type": "text", "text": "MARK"}]}, *CHAT[1:]]}),
    ("refusal", {"messages": [CHAT[0], {"role": "assistant", "content": None, "refusal": "MARK"}]}),
]
TOLD = [  # what is not learnt, and the words that say so
    *[
        (name, {**PAIR, name: "MARK"}, f"fields that are not used: {name} (1 row)")
        for name in ("id", "category", "source", "tools", "rejected", "answer", "completion", "question")
    ],
    ("a field of text", {**TEXT, "title": "MARK"}, "fields that are not used: title (1 row)"),
    ("a label", {**TEXT, "label": 1}, "fields that are not used: label (1 row)"),
    ("an object", {**PAIR, "metadata": {"a": "MARK"}}, "fields that are not used: metadata (1 row)"),
    (
        "tools of messages",
        {"messages": CHAT, "tools": [{"type": "function"}]},
        "fields that are not used: tools (1 row)",
    ),
    ("a second list", {"messages": CHAT, "conversations": CHAT}, "fields that are not used: conversations (1 row)"),
    ("a message's name", {"messages": [{**CHAT[0], "name": "MARK"}, CHAT[1]]}, "a message's name (1 row)"),
    (
        "reasoning",
        {"messages": [CHAT[0], {**CHAT[1], "reasoning_content": "MARK"}]},
        "a message's reasoning_content (1 row)",
    ),
    (
        "tool calls",
        {"messages": [*CHAT, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        "not learnt: tool calls (1)",
    ),
    ("tool results", {"messages": [*CHAT, {"role": "tool", "content": "MARK"}]}, "not learnt: tool results (1)"),
    ("a last question", {"messages": [*CHAT, CHAT[0]]}, "not learnt: last messages without a reply (1)"),
    ("a weight", {"messages": [*CHAT, {**CHAT[1], "weight": 0}]}, "replies that are marked as context (1)"),
    ("unwanted", [PAIR, {**PAIR, "label": False}], "answers that are marked as unwanted (1)"),
    ("a wrapper's field", {"data": [PAIR], "version": "MARK"}, "fields that are not used: version (1 row)"),
    ("two rows", [{**PAIR, "id": 1}, {**PAIR, "id": 2}], "fields that are not used: id (2 rows)"),
]
TOLD += [  # a day is told by whoever does not keep it
    (f"date {value!r}", {**row, "date": value}, "fields that are not used: date (1 row)")
    for row in (PAIR, TEXT)
    for value in ("3 May 2024", "2024-5-3", "2024-02-30", "20240503", 2024)
]
TOLD.append(("the date of a chat", {"messages": CHAT, "date": "2024-05-03"}, "fields that are not used: date (1 row)"))
UNTOLD = [  # what holds nothing
    {**PAIR, "input": "", "history": [], "system": None, "extra": {}, "note": ""},
    {"messages": [{**CHAT[0], "name": None}, {**CHAT[1], "refusal": None, "tool_calls": [], "weight": 1}]},
]
REFUSED = [
    ({**PAIR, "input": 5}, "input must be text, got a number"),
    ({**PAIR, "system": ["MARK"]}, "system must be text, got a list"),
    ({**PAIR, "history": {"a": "MARK"}}, "history's message 1's role must be one of"),
    ({"messages": [{"role": "clown", "content": "MARK"}, *CHAT]}, "message 1's role must be one of"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, *CHAT]},
        "pictures, sound and files can't be read",
    ),
    ({"messages": [CHAT[0], {**CHAT[1], "weight": "half"}]}, "weight must be 0 or 1"),
    ({"train": [PAIR], "test": [PAIR]}, r"holds several lists \(train, test\): give each in a file of its own"),
]


def learnt(tmp_path: Path, value: Any) -> tuple[str, list[str]]:
    """(all that is learnt, what is told)."""
    file = tmp_path / "a.json"
    file.write_text(json.dumps(value))
    lines: list[str] = []
    return json.dumps([example.to_json() for example in read(file, tell=lines.append)]), lines


@pytest.mark.parametrize(("name", "value"), USED)
def test_used(tmp_path: Path, name: str, value: Any) -> None:
    text, lines = learnt(tmp_path, value)
    assert "MARK" in text
    assert lines == []


@pytest.mark.parametrize(("name", "value", "says"), TOLD)
def test_told(tmp_path: Path, name: str, value: Any, says: str) -> None:
    text, lines = learnt(tmp_path, value)
    assert "MARK" not in text
    assert len(lines) == 1
    assert says in lines[0]


@pytest.mark.parametrize("value", UNTOLD)
def test_what_holds_nothing_is_not_told(tmp_path: Path, value: Any) -> None:
    assert learnt(tmp_path, value)[1] == []


@pytest.mark.parametrize(("value", "says"), REFUSED)
def test_refused(tmp_path: Path, value: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        learnt(tmp_path, value)


def test_a_text_of_its_own_is_used_whatever_it_begins_with(tmp_path: Path) -> None:
    """Lines of text files: all stand in what is learnt, JSON or not."""
    for text in (
        "[[Garden]] has a dry row.\nRow two.",
        "{\\bf Garden} has\n\nrows.",
        "[x] done\n[ ] not done",
        '{"a": 1}',
        "[1] a footnote",
        "[",
        '{"text": "x"',
        '["a", "b"]',
        '[{"x": 1}] is JSON',
    ):
        for name in ("a.txt", "b.MD", "c"):
            file = tmp_path / name
            file.write_text(text)
            replies = "\n\n".join(example.reply for example in read(file))
            assert replies.replace("Garden has", "[[Garden]] has") == text.replace("Garden has", "[[Garden]] has")
    file.write_text("".join(json.dumps(PAIR) + "\n" for _ in range(3)) + json.dumps({**PAIR, "output": ""}))
    with pytest.raises(DataError, match=":4: output must not be empty"):
        read(file)


@pytest.mark.parametrize("row", [PAIR, TEXT])
def test_a_day_is_kept_beside_what_is_learnt(tmp_path: Path, row: dict[str, str]) -> None:
    (tmp_path / "a.json").write_text(json.dumps({**row, "date": "2024-05-03"}))
    lines: list[str] = []
    (example,) = read(tmp_path / "a.json", tell=lines.append)
    assert (example.date, lines, "2024" in json.dumps(example.to_json())) == ("2024-05-03", [], False)
