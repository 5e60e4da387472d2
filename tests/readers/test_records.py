"""Every format of records, under every name of its fields."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from sideplug.contract.errors import DataError
from sideplug.readers.base import Example, Row
from sideplug.readers.pairs import ANSWERS, QUESTIONS
from sideplug.readers.records import UnknownRecord, examples_of
from sideplug.readers.report import Report

U, A, S = "user", "assistant", "system"


def learnt(*records: Any, form: str = "auto") -> tuple[list[Example], Report]:
    report = Report()
    rows: Iterable[Row] = [Row(line, record) for line, record in enumerate(records, 1)]
    return list(examples_of(rows, "a.jsonl", form, report)), report


def said(example: Example) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in example.prompt.messages or ()] + [("→", example.reply)]


def messages(*turns: tuple[str, str], keys: tuple[str, str] = ("role", "content")) -> list[dict[str, str]]:
    return [dict(zip(keys, turn, strict=True)) for turn in turns]


CHAT = messages((U, "a"), (A, "b"), (U, "c"), (A, "d"))
RECORDS: dict[str, tuple[dict[str, Any], list[list[tuple[str, str]]]]] = {
    **{
        f"{question} and {answer}": ({question: "q", answer: "r"}, [[(U, "q"), ("→", "r")]])
        for question in QUESTIONS
        for answer in ANSWERS
    },
    "capitals": ({"Question": "q", " Answer ": "r"}, [[(U, "q"), ("→", "r")]]),
    "alpaca's input": ({"instruction": "q", "input": "i", "output": "r"}, [[(U, "q\n\ni"), ("→", "r")]]),
    "dolly": ({"instruction": "q", "context": "c", "response": "r", "category": "x"}, [[(U, "q\n\nc"), ("→", "r")]]),
    "system": ({"instruction": "q", "system": "s", "output": "r"}, [[(S, "s"), (U, "q"), ("→", "r")]]),
    "history": (
        {"instruction": "q", "output": "r", "history": [["a", "b"], ["c", "d"]]},
        [[(U, "a"), (A, "b"), (U, "c"), (A, "d"), (U, "q"), ("→", "r")]],
    ),
    "history of messages": (
        {"instruction": "q", "output": "r", "history": messages((U, "a"), (A, "b"))},
        [[(U, "a"), (A, "b"), (U, "q"), ("→", "r")]],
    ),
    "system and history": (
        {"prompt": "q", "system_prompt": "s", "completion": "r", "history": [["a", "b"]]},
        [[(S, "s"), (U, "a"), (A, "b"), (U, "q"), ("→", "r")]],
    ),
    "null fields": ({"instruction": "q", "input": None, "output": "r", "history": None}, [[(U, "q"), ("→", "r")]]),
    "a preference": ({"prompt": "q", "chosen": "r", "rejected": "x"}, [[(U, "q"), ("→", "r")]]),
    "a preference of messages": (
        {"chosen": messages((U, "q"), (A, "r")), "rejected": messages((U, "q"), (A, "x"))},
        [[(U, "q"), ("→", "r")]],
    ),
    "a prompt of messages": (
        {"prompt": messages((S, "s"), (U, "q")), "completion": messages((A, "r"))},
        [[(S, "s"), (U, "q"), ("→", "r")]],
    ),
    "a wanted answer": ({"prompt": "q", "completion": "r", "label": True}, [[(U, "q"), ("→", "r")]]),
    "an unwanted answer": ({"prompt": "q", "completion": "r", "label": False}, []),
    **{
        f"{name} with {keys}": (
            {name: messages((U, "a"), (A, "b"), (U, "c"), (A, "d"), keys=keys)},
            [[(U, "a"), ("→", "b")], [(U, "a"), (A, "b"), (U, "c"), ("→", "d")]],
        )
        for name in ("messages", "conversations", "conversation")
        for keys in (("role", "content"), ("from", "value"))
    },
    "a conversation's system": (
        {"system": "s", "conversations": messages(("human", "a"), ("gpt", "b"), keys=("from", "value"))},
        [[(S, "s"), (U, "a"), ("→", "b")]],
    ),
    "a system that stands twice": (
        {"system": "s", "messages": messages((S, "s"), (U, "a"), (A, "b"))},
        [[(S, "s"), (U, "a"), ("→", "b")]],
    ),
    "developer": ({"messages": messages(("developer", "s"), (U, "a"), (A, "b"))}, [[(S, "s"), (U, "a"), ("→", "b")]]),
    **{
        f"{field} {value}": (
            {"messages": [*CHAT[:1], {**CHAT[1], field: value}, *CHAT[2:]]},
            [[(U, "a"), (A, "b"), (U, "c"), ("→", "d")]],
        )
        for field in ("weight", "loss", "train")
        for value in (0, False)
    },
    "tools": (
        {
            "messages": [
                {"role": U, "content": "rain?"},
                {"role": A, "content": None, "tool_calls": [{"id": "1"}]},
                {"role": "tool", "tool_call_id": "1", "content": "dry"},
                {"role": A, "content": "It is dry."},
            ]
        },
        [[(U, "rain?"), ("→", "It is dry.")]],
    ),
    "text": ({"text": "Words."}, [[("→", "Words.")]]),
}


@pytest.mark.parametrize(("record", "turns"), RECORDS.values(), ids=RECORDS.keys())
def test_read(record: dict[str, Any], turns: list[list[tuple[str, str]]]) -> None:
    examples, report = learnt(record)
    assert [said(example) for example in examples] == turns
    assert report.bad == []


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an empty output": ({"instruction": "q", "output": " "}, "a.jsonl:2: output must not be empty"),
    "an empty message": (
        {"messages": messages((U, "q"), (A, ""))},
        "a.jsonl:2: message 2 must not be empty: it is a reply of the assistant",
    ),
    "a message of null": (
        {"messages": [*messages((U, "q")), {"role": A, "content": None}]},
        "a.jsonl:2: message 2 must not",
    ),
    "a number": ({"instruction": "q", "output": 6}, "a.jsonl:2: output must be text, got a number"),
    "nothing": ({"instruction": "q", "output": None}, "a.jsonl:2: output must be text, got nothing"),
    "a history of words": (
        {"instruction": "q", "output": "r", "history": ["a"]},
        "a.jsonl:2: history must be a list of [question, answer], got text in it",
    ),
    "a history with a clown": (
        {"instruction": "q", "output": "r", "history": [{"role": "clown", "content": "a"}]},
        "a.jsonl:2: history's message 1's role must be one of ",
    ),
    "a system of numbers": ({"system": 3, "messages": CHAT}, "a.jsonl:2: system must be text, got a number"),
    "no reply": ({"messages": messages((U, "q"))}, "a.jsonl:2: there must be an assistant's message after another one"),
    "a picture": (
        {"messages": [{"role": U, "content": [{"type": "image_url"}]}, {"role": A, "content": "r"}]},
        "a.jsonl:2: message 1's content must be text: pictures",
    ),
    "a weight of a half": (
        {"messages": [*CHAT[:1], {**CHAT[1], "weight": 0.5}]},
        "a.jsonl:2: message 2's weight must be 0 or 1, false or true, got a number",
    ),
    "half of a character": (
        {"instruction": "q", "output": "\ud800"},
        "a.jsonl:2: must be text, has half of a character",
    ),
    "half of a character in a prompt": ({"messages": messages((U, "\udfff"), (A, "r"))}, "a.jsonl:2: must be text"),
    "no format": ({"x": 1}, "a.jsonl:2: an example must have instruction and output"),
}


@pytest.mark.parametrize(("record", "says"), BAD.values(), ids=BAD.keys())
def test_a_bad_row_is_told_and_the_others_stay(record: dict[str, Any], says: str) -> None:
    good = {"instruction": "q", "output": "r"}
    examples, report = learnt(good, record, good)
    assert [example.where for example in examples] == ["a.jsonl:1", "a.jsonl:3"]
    (sentence,) = report.bad
    assert sentence.startswith(says)
    assert report.rows == 3


def test_all_bad_rows_are_told_at_once_in_their_order() -> None:
    _, report = learnt({"x": 1}, {"text": "a"}, {"text": ""}, 7, {"messages": []}, {"instruction": "q", "output": ""})
    assert [sentence.split(" ")[0] for sentence in report.bad] == [f"a.jsonl:{i}:" for i in (1, 3, 4, 5, 6)]
    with pytest.raises(DataError) as caught:
        report.refuse_bad(skip_bad=False)
    text = str(caught.value)
    assert text.startswith("5 of 6 rows can't be learnt: a.jsonl:1: ")
    assert "a.jsonl:4: " in text
    assert "a.jsonl:5: " not in text
    assert "; and 2 more (correct or remove them; --skip-bad leaves such rows out)" in text
    report.refuse_bad(skip_bad=True)
    assert next(report.sentences()).startswith("left out: 5 of 6 rows: a.jsonl:1: ")


def test_a_name_out_of_a_file_can_not_steer_a_terminal() -> None:
    _, report = learnt({"instruction": "q", "output": "r", "\x1b]0;x\x07\n" + "y" * 99: "z"})
    (line,) = report.sentences()
    assert line == "fields that are not used: \ufffd]0;x\ufffd\ufffd" + "y" * 33 + " (1 row)"
    with pytest.raises(UnknownRecord) as caught:
        learnt({"\x1b[2J": 1})
    assert "\x1b" not in str(caught.value)


def test_a_file_of_nothing_known() -> None:
    with pytest.raises(UnknownRecord, match=r"^a\.jsonl:1: an example must have .*; its keys: x, y$"):
        learnt({"x": 1, "y": 2}, {"z": 1})
