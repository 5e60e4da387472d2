"""LaMP: questions with their outputs, profiles as examples, and whose each is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sideplug.bench import tasks
from sideplug.contract.errors import DataError, InputError
from sideplug.readers import lamp_users, read
from sideplug.readers.base import Example

TASKS: dict[
    str, tuple[str, dict[str, Any], tuple[str, str]]
] = {  # the question, an entry of the profile, what it teaches
    "LaMP-1": (
        'For an author who has written the paper with the title "T", which reference is related? [1]: "A" [2]: "B"',
        {"id": "1", "title": "Rows", "abstract": "We water."},
        ("", "Rows\n\nWe water."),
    ),
    "LaMP-2": (
        "Which tag does this movie relate to among the following tags? Just answer with the tag name. tags: [a, b] "
        "description: A film.",
        {"id": "1", "tag": "classic", "description": "A dry row."},
        ("… description: A dry row.", "classic"),
    ),
    "LaMP-2N": (
        "Which category does this article relate to among the following categories? Just answer with the category name "
        "without further explanation. categories: [a, b] article: News.",
        {"id": "1", "text": "A dry row.", "title": "Dry", "category": "garden"},
        ("… article: A dry row.", "garden"),
    ),
    "LaMP-3": (
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without "
        "further explanation. review: Fine.",
        {"id": "1", "text": "A dry row.", "score": 2},
        ("… review: A dry row.", "2"),
    ),
    "LaMP-4": (
        "Generate a headline for the following article: News.",
        {"id": "1", "text": "A dry row.", "title": "Dry"},
        ("Generate a headline for the following article: A dry row.", "Dry"),
    ),
    "LaMP-5": (
        "Generate a title for the following abstract of a paper: We show.",
        {"id": "1", "title": "Rows", "abstract": "We water."},
        ("Generate a title for the following abstract of a paper: We water.", "Rows"),
    ),
    "LaMP-7": (
        "Paraphrase the following tweet without any explanation before or after it: a tweet",
        {"id": "1", "text": "row two is dry again"},
        ("", "row two is dry again"),
    ),
}


def content(example: Example) -> str:
    return example.prompt.messages[0]["content"] if example.prompt.messages else ""


@pytest.mark.parametrize(("asks", "entry", "teaches"), TASKS.values(), ids=TASKS.keys())
def test_a_profile_is_learnt_in_the_questions_words(
    tmp_path: Path, asks: str, entry: dict[str, Any], teaches: tuple[str, str]
) -> None:
    (tmp_path / "x_questions.json").write_text(json.dumps([{"id": "11", "input": asks, "profile": [entry]}]))
    (tmp_path / "x_outputs.json").write_text(json.dumps({"task": "LaMP", "golds": [{"id": "11", "output": "gold"}]}))
    told: list[str] = []
    profile, question = read(tmp_path, tell=told.append)
    assert (content(question), question.reply, told) == (asks, "gold", [])
    asked, reply = teaches
    assert profile.reply == reply
    assert content(profile).endswith(asked.removeprefix("…"))
    assert content(profile)[:30] == (asks[:30] if asked else "")


def test_questions_and_outputs(tmp_path: Path) -> None:
    asked = [{"id": "11", "input": "Which tag?", "profile": []}, {"id": "12", "input": "And this?", "profile": []}]
    golds = [{"id": "12", "output": "classic"}, {"id": 11, "output": "comedy"}]
    (tmp_path / "dev_questions.json").write_text(json.dumps(asked))
    (tmp_path / "dev_outputs.json").write_text(json.dumps({"task": "LaMP_2", "golds": golds}))
    for path in (tmp_path, tmp_path / "dev_questions.json"):
        assert [example.reply for example in read(path)] == ["comedy", "classic"]
    (tmp_path / "dev_outputs.json").write_text(json.dumps({"golds": golds[:1]}))
    with pytest.raises(DataError, match="dev_outputs.json has no output for the id '11'"):
        read(tmp_path)
    (tmp_path / "dev_outputs.json").write_text("[]")
    with pytest.raises(DataError, match="as LaMP has it"):
        read(tmp_path)


BAD = [
    ({"profile": "me"}, "profile must be a list, got text"),
    ({"profile": ["me"]}, "the profile's entry 1 must be an object, got text"),
    ({"profile": [{"id": 1}]}, "the profile's entry 1 must have text, abstract or description; it has id"),
    ({"output": ["a"]}, "output must be text, got a list"),
    ({"input": 3}, "input must be text, got a number"),
]


@pytest.mark.parametrize(("change", "says"), BAD)
def test_malformed(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"input": "q", "output": "r", "profile": [], **change}))
    with pytest.raises(DataError, match=f"a.jsonl:1: {says}"):
        read(tmp_path / "a.jsonl")


def record(user: str, number: int, **more: Any) -> dict[str, Any]:
    profile = [{"id": str(i), "text": f"Article {i} of {user}.", "title": f"{user} {i}"} for i in range(3)]
    asks = f"Generate a headline for the following article: {user}'s {number}."
    return {"id": f"{user}{number}", "input": asks, "output": f"{user} {number}", "profile": profile, **more}


@pytest.mark.parametrize("by_id", [True, False])
def test_whose_it_is(tmp_path: Path, by_id: bool) -> None:
    """By an id, or by the profile: two questions of one user are of one."""
    rows = [record(u, n, **({"user_id": u} if by_id else {})) for u, n in (("ana", 1), ("rui", 1), ("ana", 2))]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ana, rui = lamp_users(tmp_path / "a.jsonl")
    assert [q.reply for q in ana.questions] == ["ana 1", "ana 2"]
    assert [p.reply for p in ana.profile] == ["ana 0", "ana 1", "ana 2"], "a profile that is repeated is learnt once"
    assert [q.reply for q in rui.questions] == ["rui 1"]
    assert not by_id or [ana.name, rui.name] == ["ana", "rui"]


def test_the_benchmark_makes_a_plugin_a_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [record(u, n, user_id=u) for u in ("ana", "../rui") for n in range(3)]
    rows.append({**record("eva", 1, user_id="eva"), "profile": []})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tasks.from_file(tmp_path / "a.jsonl", 2, tmp_path / "scratch", users=10)
    assert [user.name for user in task.users] == ["ana", "---rui"]
    assert "2 of 3 users, those with the longest profiles" in capsys.readouterr().err
    for user, name in zip(task.users, ("ana", "../rui"), strict=True):
        assert [example.reply for example in read(user.file)] == [f"{name} {i}" for i in range(3)]
        assert user.file.parent == tmp_path / "scratch" / "own"
        assert len(user.test) == 2
        assert all(example.reply.startswith(name) for example in user.test)
    assert task.measures == ("exact", "loss")
    assert len(tasks.from_file(tmp_path / "a.jsonl", 2, tmp_path / "scratch", users=1).users) == 1
    (tmp_path / "b.jsonl").write_text(json.dumps({**rows[0], "profile": []}))
    with pytest.raises(InputError, match="must have users whose profile has at least 2 entries"):
        tasks.from_file(tmp_path / "b.jsonl", 2, tmp_path)


def test_what_is_not_lamp_has_no_users(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{oops\n')
    (tmp_path / "b.txt").write_text("Words.")
    for path in (tmp_path / "a.jsonl", tmp_path / "b.txt", tmp_path):
        assert lamp_users(path) == []
