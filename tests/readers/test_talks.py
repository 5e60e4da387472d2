"""Chats: whose words are learnt, behind which of the others'; exports of five programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sideplug.contract.errors import DataError
from sideplug.readers import Example, read


def asked(example: Example) -> list[tuple[str, str]]:
    return [(each["role"], each["content"]) for each in example.prompt.messages or ()]


def replies(path: Path, me: str = "") -> list[str]:
    return [example.reply for example in read(path, me=me)]


WHATSAPP = {
    "an iPhone": "[{d}/{m}/2023, {h}:{min}:07] {who}: {text}",
    "an American iPhone": "[{m}/{d}/23, {h12}:{min}:07\u202f{half}] {who}: {text}",
    "an Android phone": "{d:02}/{m:02}/2023, {h}:{min} - {who}: {text}",
    "a German phone": "{d:02}.{m:02}.23, {h}:{min} - {who}: {text}",
    "a Finnish phone": "{d}.{m}.2023 klo {h}.{min} - {who}: {text}",
    "a Spanish phone": "{d}/{m}/23 {h}:{min} - {who}: {text}",
    "a Japanese phone": "2023/{m:02}/{d:02} {h}:{min} - {who}: {text}",
    "marks of direction": "\u200e[{d}/{m}/2023, {h}:{min}:07] \u200e~\u202f{who}: {text}",
}
SAID = [
    (3, 9, 15, "Anna", "are the nails there?"),
    (3, 9, 16, "Bo", "since noon: three boxes"),
    (3, 9, 17, "Bo", "come by"),
    (3, 9, 18, "Anna", "<Media omitted>"),
    (3, 9, 20, "Anna", "I will (at four)\nor five"),
    (3, 9, 21, "Bo", "good"),
    (25, 18, 5, "Bo", "did you nail the roof?"),
]


def a_chat(form: str) -> str:
    lines = []
    for day, hour, minute, who, text in SAID:
        half = "PM" if hour >= 12 else "AM"
        values = {"d": day, "m": 11, "h": f"{hour:02}", "h12": (hour - 1) % 12 + 1, "half": half}
        lines.append(form.format(**values, min=f"{minute:02}", who=who, text=text))
    first = lines[0].split("Anna")[0].rstrip("~\u202f\u200e ")
    return f"{first} Messages are end-to-end encrypted.\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize("form", WHATSAPP.values(), ids=WHATSAPP.keys())
def test_whatsapp(tmp_path: Path, form: str) -> None:
    file = tmp_path / "_chat.txt"
    file.write_text(a_chat(form), "utf-8")
    told: list[str] = []
    found = read(file, me="Bo", tell=told.append)
    assert [each.reply for each in found] == ["since noon: three boxes\ncome by", "good", "did you nail the roof?"]
    assert asked(found[0]) == [("user", "are the nails there?")]
    assert asked(found[1]) == [
        ("user", "are the nails there?"),
        ("assistant", "since noon: three boxes\ncome by"),
        ("user", "I will (at four)\nor five"),
    ]
    assert asked(found[2]) == [], "it comes after a silence of weeks"
    assert [each.date for each in found] == ["2023-11-03", "2023-11-03", "2023-11-25"]
    assert found[1].where.endswith(":8")
    assert told[0] == "your own words are the messages of Bo (4), of 6 in all; --me changes that"
    assert "pictures and other files of chats (1)" in told[1]


def test_a_chat_of_two_is_named_after_the_other(tmp_path: Path) -> None:
    (tmp_path / "WhatsApp Chat with Anna.txt").write_text(a_chat(WHATSAPP["an Android phone"]), "utf-8")
    assert replies(tmp_path)[-1] == "did you nail the roof?"
    (tmp_path / "WhatsApp Chat with Anna.txt").rename(tmp_path / "_chat.txt")
    with pytest.raises(DataError, match=r"There write Bo \(4\), Anna \(2\): give --me with one of these names"):
        read(tmp_path)


def test_a_month_that_may_be_a_day(tmp_path: Path) -> None:
    text = a_chat(WHATSAPP["a Spanish phone"]).replace("25/11", "5/11")
    (tmp_path / "a.txt").write_text(text, "utf-8")
    assert {each.date for each in read(tmp_path / "a.txt", me="Bo")} == {""}


def test_dates_in_words_are_said(tmp_path: Path) -> None:
    file = tmp_path / "WhatsApp Chat with Anna.txt"
    file.write_text("third of March, a quarter past nine - Anna: are the nails there?\n" * 3)
    with pytest.raises(DataError, match="must begin its lines with a day and a time in digits, got 'third of March"):
        read(file)
    assert len(read(file, "text")) == 1


def a_line(role: str, text: Any, at: float = 1.7e9) -> dict[str, Any]:
    return {"author": {"role": role}, "content": {"content_type": "text", "parts": [text]}, "create_time": at}


CHATGPT = [
    {
        "title": "Ferns",
        "current_node": "d",
        "mapping": {
            "root": {"message": None, "parent": None},
            "a": {"message": a_line("system", ""), "parent": "root"},
            "b": {"message": a_line("user", "Which fern likes lime?"), "parent": "a"},
            "x": {"message": a_line("assistant", "An answer that was made anew."), "parent": "b"},
            "c": {"message": a_line("assistant", "Maidenhair does."), "parent": "b"},
            "d": {"message": a_line("user", "Then I plant that one by the wall."), "parent": "c"},
        },
    }
]
CLAUDE = [
    {
        "uuid": "1",
        "name": "Ferns",
        "chat_messages": [
            {"sender": "human", "text": "Which fern likes lime?", "created_at": "2024-03-05T09:15:00Z"},
            {"sender": "assistant", "text": "", "content": [{"type": "text", "text": "Maidenhair does."}]},
            {"sender": "human", "text": "Then I plant that one by the wall.", "created_at": "2024-03-05T09:16:00Z"},
        ],
    }
]


@pytest.mark.parametrize("value", [CHATGPT, CLAUDE], ids=["ChatGPT", "Claude"])
def test_what_was_said_to_an_assistant(tmp_path: Path, value: Any) -> None:
    (tmp_path / "conversations.json").write_text(json.dumps(value))
    found = read(tmp_path)
    assert [each.reply for each in found] == ["Which fern likes lime?", "Then I plant that one by the wall."]
    assert asked(found[0]) == []
    assert asked(found[1]) == [("user", "Maidenhair does.")]
    assert found[0].date


def told(number: int, who: str, text: Any, at: str = "2024-03-05T09:15:00") -> dict[str, Any]:
    account = f"user{len(who)}"
    return {"id": number, "type": "message", "date": at, "from": who, "from_id": account, "text": text}


CHAT = {
    "name": "Rui",
    "type": "personal_chat",
    "id": 7,
    "messages": [
        {"id": 1, "type": "service", "date": "2024-03-05T09:00:00", "actor": "Rui"},
        told(2, "Rui", "Which row?"),
        told(3, "Ines", ["Row ", {"type": "bold", "text": "two"}, " is dry."]),
        told(4, "Ines", ""),
    ],
}


def test_telegram(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(CHAT))
    (example,) = read(tmp_path)
    assert (asked(example), example.reply) == ([("user", "Which row?")], "Row two is dry.")
    assert example.date == "2024-03-05"
    group = {**CHAT, "name": "Garden", "type": "private_group"}
    everything = {"personal_information": {"user_id": 4}, "chats": {"list": [group, {"messages": []}]}}
    (tmp_path / "result.json").write_text(json.dumps(everything))
    assert replies(tmp_path) == ["Row two is dry."]
    (tmp_path / "result.json").write_text(json.dumps(group))
    with pytest.raises(DataError, match="give --me"):
        read(tmp_path)


def test_slack(tmp_path: Path) -> None:
    channel = tmp_path / "garden"
    channel.mkdir()
    (tmp_path / "users.json").write_text(
        json.dumps(
            [{"id": f"U{n}", "name": name, "profile": {"real_name": name}} for n, name in ((1, "Rui"), (2, "Ines"))]
        )
    )
    (tmp_path / "channels.json").write_text(json.dumps([{"id": "C1", "name": "garden", "members": ["U1"]}]))
    day = [
        {"type": "message", "subtype": "channel_join", "user": "U1", "text": "<@U1> has joined", "ts": "1709629000.1"},
        {"type": "message", "user": "U1", "text": "Which row, <@U2>?", "ts": "1709629100.1"},
        {
            "type": "message",
            "user": "U2",
            "text": "two &amp; three, see <https://x.org|the plan>",
            "ts": "1709629200.1",
        },
    ]
    (channel / "2024-03-05.json").write_text(json.dumps(day))
    (example,) = read(tmp_path, me="ines")
    assert (asked(example), example.reply) == ([("user", "Which row, @Ines?")], "two & three, see the plan")
    assert example.date == "2024-03-05"
    with pytest.raises(DataError, match=r"There write Rui \(1\), Ines \(1\)"):
        read(tmp_path)


def test_in_a_crowd_others_are_named(tmp_path: Path) -> None:
    lines = [("Anna", "who has nails?"), ("Cid", "not I"), ("Bo", "I have")]
    text = "".join(f"03.11.23, 09:1{n} - {who}: {text}\n" for n, (who, text) in enumerate(lines))
    (tmp_path / "a.txt").write_text(text)
    (example,) = read(tmp_path, me="bo")
    assert asked(example) == [("user", "Anna: who has nails?\nCid: not I")]


def test_a_long_message_is_learnt_in_passages(tmp_path: Path) -> None:
    long = " ".join(f"The {n}th nail is bent." for n in range(200))
    (tmp_path / "a.txt").write_text(f"03.11.23, 09:10 - Anna: {long}\n03.11.23, 09:11 - Bo: {long}\n")
    found = read(tmp_path, me="Bo")
    assert len(found) > 3
    assert asked(found[0])[0][1].startswith("… ")
    assert len(asked(found[0])[0][1]) < 2000
    assert not any(map(asked, found[1:]))


HOSTILE: dict[str, Any] = {
    "a circle": [{"mapping": {"a": {"message": a_line("user", "x"), "parent": "a"}}, "current_node": "a"}],
    "no messages": [{"mapping": {}, "current_node": 3}],
    "odd parts": [{"mapping": {"a": {"message": a_line("user", {"x": 1})}}}],
    "odd senders": [{"chat_messages": [{"sender": [], "text": 3}, 7]}],
    "odd times": {"messages": [{"id": 1, "type": "message", "date": 1e300, "from": ["x"], "text": {}}]},
    "odd records": [{"type": "message", "ts": None, "user": 7}, 3, None],
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_no_program_writes(tmp_path: Path, value: Any) -> None:
    (tmp_path / "a.json").write_text(json.dumps(value))
    try:
        read(tmp_path / "a.json")
    except DataError as error:
        assert "a.json" in str(error)
