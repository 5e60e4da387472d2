"""Every format, detected and forced; every way to be malformed, with file and line."""

import json
from pathlib import Path

import pytest

from sideplug.contract.errors import DataError
from sideplug.contract.text import Prompt
from sideplug.readers import parse, read

ALPACA = {"instruction": "Say hi", "input": "", "output": "hi"}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
}
SHAREGPT = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}


def put(folder: Path, name: str, content: object) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lines(*records: object) -> str:
    return "".join(json.dumps(r) + "\n" for r in records)


def test_alpaca_in_an_array_in_lines_and_with_a_bom(tmp_path: Path) -> None:
    with_input = {**ALPACA, "input": "in French"}
    for name, content in (
        ("a.json", json.dumps([ALPACA, with_input], indent=2)),
        ("a.jsonl", lines(ALPACA, with_input)),
        ("b.json", b"\xef\xbb\xbf" + lines(ALPACA, with_input).encode()),
    ):
        first, second = read(put(tmp_path, name, content))
        assert first.prompt == Prompt.user("Say hi")
        assert second.prompt == Prompt.user("Say hi\n\nin French")
        assert first.reply == "hi"
    assert [e.where.rsplit(":")[-1] for e in read(tmp_path / "a.json")] == ["2", "7"]
    assert [e.where.rsplit(":")[-1] for e in read(tmp_path / "a.jsonl")] == ["1", "2"]


def test_messages_each_assistant_turn_is_an_example(tmp_path: Path) -> None:
    first, second = read(put(tmp_path, "m.jsonl", lines(MESSAGES)))
    assert (first.reply, second.reply) == ("b", "d")
    assert [m["role"] for m in second.prompt.messages or ()] == ["system", "user", "assistant", "user"]


def test_sharegpt(tmp_path: Path) -> None:
    (only,) = read(put(tmp_path, "s.json", [SHAREGPT]))
    assert (only.prompt, only.reply) == (Prompt.user("a"), "b")


def test_line_separators_inside_strings_are_no_line_ends(tmp_path: Path) -> None:
    record = json.dumps({**ALPACA, "output": "a\u2028b\u0085c"}, ensure_ascii=False)
    (only,) = read(put(tmp_path, "a.jsonl", record + "\n"))
    assert only.reply == "a\u2028b\u0085c"
    assert len(read(put(tmp_path, "b.jsonl", f"{record}\n{record}\n"))) == 2


def test_the_plugins_own_folder_is_not_its_data(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "Words.")
    (tmp_path / "out" / "tape").mkdir(parents=True)
    put(tmp_path / "out", "adapter_config.json", "{}")
    put(tmp_path / "out" / "tape", "train.json", "{}")
    assert len(read(tmp_path, skip=tmp_path / "out")) == 1


def test_a_folder_is_its_files(tmp_path: Path) -> None:
    put(tmp_path, "b.txt", "Second.")
    put(tmp_path, "a.md", "First.")
    put(tmp_path, "c.jsonl", lines(ALPACA))
    put(tmp_path, "ignored.png", b"\x89PNG")
    put(tmp_path, ".hidden.txt", "no")
    assert [e.reply for e in read(tmp_path)] == ["First.", "Second.", "hi"]


MALFORMED = {
    "empty": ("e.jsonl", "  \n", "is empty"),
    "not json": ("x.jsonl", lines(ALPACA) + "{oops\n", "x.jsonl:2: this line is not JSON"),
    "array cut off": ("x.json", '[\n{"text": "a"},\n', "x.json:3: the array is cut off"),
    "array broken": ("x.json", '[\n{"text": "a"},\n{"text": }]', "x.json:3: not JSON from here on"),
    "array without comma": ("x.json", '[{"text": "a"}\n{"text": "b"}]', "x.json:2: the array must go on"),
    "not utf-8": ("x.txt", b"one\ntwo \xff\n", "x.txt:2: must be UTF-8"),
    "not an object": ("x.jsonl", "1\n", "x.jsonl:1: an example must be a JSON object, got a number"),
    "unknown keys": ("x.jsonl", lines({"q": 1}), "x.jsonl:1: an example must have instruction and output"),
    "alpaca without instruction": ("x.jsonl", lines({"output": "a"}), "instruction must be text, got nothing"),
    "empty output": ("x.jsonl", lines(ALPACA, {**ALPACA, "output": " "}), "x.jsonl:2: output must not be empty"),
    "input no text": ("x.jsonl", lines({**ALPACA, "input": 5}), "input must be text, got a number"),
    "no assistant": ("x.jsonl", lines({"messages": MESSAGES["messages"][:2]}), "there must be an assistant's message"),
    "no messages": ("x.jsonl", lines({"messages": []}), "messages must be a list"),
    "role": ("x.jsonl", lines({"messages": [{"role": "clown", "content": "a"}]}), "message 1's role must be one of"),
    "content": (
        "x.jsonl",
        lines({"messages": [{"role": "user", "content": None}]}),
        "message 1's content must be text, got nothing",
    ),
    "message no object": ("x.jsonl", lines({"messages": ["hi"]}), "message 1 must be an object"),
    "empty text": ("x.jsonl", lines({"text": ""}), "text must not be empty"),
}


@pytest.mark.parametrize(("name", "content", "says"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(tmp_path: Path, name: str, content: object, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
    with pytest.raises(DataError) as caught:
        read(path)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_forced_and_unknown_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        read(tmp_path / "nothing")
    with pytest.raises(DataError, match="has no .json.*; it has nothing"):
        read(tmp_path)
    text = put(tmp_path, "t.txt", "Just words.")
    with pytest.raises(DataError, match="must be JSON for --format alpaca, got plain text"):
        read(text, "alpaca")
    with pytest.raises(DataError, match="--format must be one of"):
        read(text, "csv")
    with pytest.raises(DataError, match="messages must be a list"):
        read(put(tmp_path, "a.jsonl", lines(ALPACA)), "sharegpt")


def test_a_text_is_read_as_a_file_of_its_name(tmp_path: Path) -> None:
    """What a page hands over: no file is there."""
    for name, text in (
        ("a.jsonl", lines(ALPACA, MESSAGES, SHAREGPT)),
        ("a.json", json.dumps([ALPACA, {"text": "One.\n\nTwo."}])),
        ("a.md", "First.\n\nSecond."),
        ("noext", lines(ALPACA)),
    ):
        path = put(tmp_path, name, text)
        assert parse(text, str(path)) == read(path)
    with pytest.raises(DataError, match=r"^notes\.jsonl:2: this line is not JSON"):
        parse(lines(ALPACA) + "{oops", "notes.jsonl")
    with pytest.raises(DataError, match=r"^notes\.md is empty$"):
        parse(" \n", "notes.md")
    with pytest.raises(DataError, match="--format must be one of"):
        parse("x", "notes.md", "csv")
