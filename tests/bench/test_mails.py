"""Mails: whose words are whose, who is a person, and what is learnt of them. No real mail is read here."""

from __future__ import annotations

import io
import json
import tarfile
import urllib.error
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psutil", reason="pip install 'sideplug[bench]'")
pytestmark = pytest.mark.twin

from sideplug.bench import mails, tasks  # noqa: E402
from sideplug.bench.mail_words import words_of  # noqa: E402
from sideplug.bench.mails import Mail, examples_of, mails_of, numbered  # noqa: E402
from sideplug.contract.errors import NoNetwork, SideplugError  # noqa: E402
from sideplug.readers import read  # noqa: E402

OWN = "The roof leaks, and the nails are gone."


@pytest.mark.parametrize(
    ("body", "own", "quoted"),
    [
        (OWN, OWN, ""),
        (f"On Monday, Anna Berg wrote:\n> Is it far?\n\n{OWN}\n", OWN, "Is it far?"),
        (f"On Mon, 2 Sep 2002 at 10:15,\nAnna Berg <anna@example.org> wrote:\n> Is it far?\n{OWN}", OWN, "Is it far?"),
        (f"Anna Berg <anna@example.org> writes:\n\n{OWN}", OWN, ""),
        (f"[Anna Berg]\n> Is it far?\n\n{OWN}", OWN, "Is it far?"),
        (f"Anna:\n> Is it far?\n> > No.\n> Bo wrote:\n{OWN}", OWN, "Is it far?"),
        (f"    Anna> Is it far?\n    Anna> Or near?\n\n{OWN}", OWN, "Is it far?\nOr near?"),
        (f"| Is it far?\n{OWN}", OWN, "Is it far?"),
        (f"{OWN}\n\n-- \nAnna Berg\nThe mill", OWN, ""),
        (f"{OWN}\n--\nAnna", OWN, ""),
        (f"{OWN}\n\n-----Original Message-----\nFrom: Bo\nTo: Anna\nSubject: roof\n\nIs it far?", OWN, "Is it far?"),
        (f"----- Original Message -----\nFrom: Bo\n\n> Is it far?\n\n{OWN}", OWN, "Is it far?"),
        (
            f"{OWN}\n--- begin forwarded text\nDate: today\nNot mine.\n--- end forwarded text\nCheers",
            f"{OWN}\nCheers",
            "",
        ),
        (f"{OWN}\n\n---------- Forwarded message ----------\nNot mine.", OWN, ""),
        (f"{OWN}\n\n_______________________________________\nRPM-List mailing list", OWN, ""),
        (f"{OWN}\n\nhttp://example.org/mailman/listinfo/talk", OWN, ""),
        (f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA1\n\n{OWN}\n-----BEGIN PGP SIGNATURE-----\nx1", OWN, ""),
        (f"{OWN} Write to <bo@example.org>.", f"{OWN} Write to .", ""),
        ("She said:\nit is far.\n\n\n\nSo.", "She said:\nit is far.\n\nSo.", ""),  # own words that only look like it
        ("a -> b\nBut <tag> stays", "a -> b\nBut <tag> stays", ""),
    ],
)
def test_own_words_and_what_they_answer(body: str, own: str, quoted: str) -> None:
    words = words_of(body)
    assert (words.own, words.quoted) == (own, quoted)


def a_mail(sender: str, text: str, day: int = 1, **headers: str) -> str:
    message = EmailMessage()
    message["From"], message["Date"] = sender, f"{day % 28 + 1:02} Sep 2002 10:00:00 +0000"
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    message.set_content(text)
    return message.as_string()


def test_machines_are_no_writers() -> None:
    kept = a_mail("Anna Berg <anna@example.org>", OWN)
    dropped = [
        a_mail("boingboing <rssfeeds@example.org>", OWN),
        a_mail("The Daily <newsletter@example.org>", OWN),
        a_mail("bugzilla-daemon@example.org", OWN),
        a_mail("Bo <bo@example.org>", OWN, List_Id="<talk-commits.example.org>"),
        a_mail("Bo <bo@example.org>", "too short"),
        a_mail("Bo <bo@example.org>", "word " * 401),
        *(
            a_mail("Use <use@example.org>", f"Daily headline mailer\n\nNews of day {day} of this month.")
            for day in range(9)
        ),
    ]
    page = EmailMessage()
    page["From"], page["Date"] = "Bo <bo@example.org>", "01 Sep 2002 10:00:00 +0000"
    page.set_content(f"<html>{OWN}</html>", subtype="html")
    assert [mail.own for mail in mails_of([kept, *dropped, page.as_string(), kept])] == [OWN]


def test_a_person_is_one_by_address_or_full_name() -> None:
    senders = (
        "Anna Berg <anna@example.org>",
        "anna@example.org",
        "Anna Berg <berg@mill.example>",
        "Anna <other@example.org>",
        "Bo <bo@example.org>",
    )
    found = mails_of(a_mail(sender, f"{OWN} Number {number}.") for number, sender in enumerate(senders))
    first, second, third, namesake, bo = (mail.writer for mail in found)
    assert first == second == third
    assert len({first, namesake, bo}) == 3
    assert not any(word in mail.writer for mail in found for word in ("anna", "berg", "bo@", "example"))


def test_what_a_writer_puts_below_each_mail_is_cut() -> None:
    texts = [f"Mail {n} says that {'x' * n} is so.\n\nAnna, of the old mill\nCheers" for n in range(6)]
    found = mails_of(a_mail("Anna <anna@example.org>", text) for text in texts)
    assert [mail.own for mail in found] == [f"Mail {n} says that {'x' * n} is so.\n\nCheers" for n in range(6)]


def many(writer: str, count: int, start: int = 0) -> list[Mail]:
    first = datetime(2002, 9, 1, tzinfo=UTC) + timedelta(hours=start)
    return [
        Mail(first + timedelta(days=n), f"{writer} wrote mail {n}.", "Why?" if n % 2 else "", writer)
        for n in range(count)
    ]


def test_writers_are_numbered_and_split_by_time() -> None:
    people = [*many("b", 20, 1), *many("a", 100), *many("c", 19), *reversed(many("d", 20))]
    first, second, third = numbered(people, 20)
    assert [writer.name for writer in (first, second, third)] == ["writer-01", "writer-02", "writer-03"]
    assert [len(writer.train) for writer in (first, second, third)] == [88, 16, 16]
    assert [len(writer.test) for writer in (first, second, third)] == [12, 4, 4]
    for writer in (first, second, third):
        assert max(mail.at for mail in writer.train) < min(mail.at for mail in writer.test)


def test_a_reply_stands_behind_what_it_answers_and_a_long_mail_is_passages() -> None:
    long = " ".join(f"Sentence number {n} of this mail is here." for n in range(60))
    short = Mail(datetime(2002, 9, 1, tzinfo=UTC), OWN, "", "a")
    answer = Mail(datetime(2002, 9, 2, tzinfo=UTC), long, "Why? " * 200, "a")
    opening, first, *further = examples_of([short, answer])
    assert (opening.prompt.text, opening.reply) == ("", OWN)
    assert first.prompt.messages is not None
    assert len(first.prompt.messages[0]["content"].split()) == mails.QUOTED_WORDS
    assert len(further) > 1
    assert {example.prompt.text for example in further} == {""}
    assert " ".join("".join(e.reply for e in (first, *further)).split()) == long
    _, same, *rest = examples_of([short, answer], further=tasks.continued)
    assert same == first
    assert all(len((example.prompt.text or "").split()) == tasks.OPENING_WORDS for example in rest)


@pytest.fixture
def corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three writers with many mails, and one with few."""
    everybody = [*many("a", 30), *many("b", 25, 1), *many("c", 20, 2), *many("d", 5, 3)]
    monkeypatch.setattr(mails, "_everybody", lambda: tuple(everybody))
    mails.writers.cache_clear()
    yield
    mails.writers.cache_clear()


@pytest.mark.usefixtures("corpus")
def test_who_is_drawn_is_nobody_who_is_kept_apart() -> None:
    drawn, apart = mails.drawn(2), mails.kept_apart(2)
    assert sorted(writer.name for writer in (*drawn, *apart)) == ["writer-01", "writer-02", "writer-03"]
    assert mails.drawn(2) == drawn
    assert [example.reply for example in mails.others()] == [f"d wrote mail {n}." for n in range(5)]


@pytest.mark.usefixtures("corpus")
def test_the_task_of_mails(tmp_path: Path) -> None:
    task = tasks.mail_writers(2, 6, 2, tmp_path)
    assert task.quality_only
    assert task.others is not None
    assert len(task.others()) == 5
    for user in task.users:
        assert user.name.startswith("writer-")
        assert len(user.train) == 6
        assert len(user.test) == 2
        again = read(user.file)
        assert [(e.prompt, e.reply) for e in again] == [(e.prompt, e.reply) for e in user.train]
    assert {example.prompt.messages is None for user in task.users for example in user.train} == {True, False}


def a_package(texts: list[str]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for number, text in enumerate(texts):
            for folder in ("easy-ham-1", "spam-1"):
                content = json.dumps({"text": f"{folder}: {text}"}).encode()
                member = tarfile.TarInfo(f"package/data/{folder}/{number:05}.json")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


def test_the_package_is_fetched_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, asked = a_package(["one", "two"]), list[str]()

    def answer(url: str, **more: Any) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(package)

    monkeypatch.setenv("SIDEPLUG_CACHE", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", answer)
    with pytest.raises(SideplugError, match="it has another"):
        mails._ham()
    monkeypatch.setattr(mails, "SHA256", __import__("hashlib").sha256(package).hexdigest())
    file = mails._ham()
    assert [json.loads(line) for line in file.read_text().splitlines()] == ["easy-ham-1: one", "easy-ham-1: two"]
    assert mails._ham() == file
    assert len(asked) == 2

    def refuse(url: str, **more: Any) -> Any:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    file.unlink()
    with pytest.raises(NoNetwork, match="could not be fetched"):
        mails._ham()
