"""Mails: what their sender wrote, behind what they answer; the rest is cut, and counted."""

from __future__ import annotations

import json
from email.message import EmailMessage
from pathlib import Path

import pytest

from sideplug.contract.errors import DataError
from sideplug.readers import Example, read

INES, RUI = "Ines Prado <ines@example.org>", "Rui <rui@example.org>"


def a_mail(body: str, subtype: str = "plain", who: str = INES, charset: str = "utf-8", **more: str) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = who, "rui@example.org", "SUBJECT"
    for name, value in more.items():
        mail[name] = value
    mail.set_content(body, subtype=subtype, charset=charset)
    return mail


def a_box(path: Path, *mails: EmailMessage) -> Path:
    heads = b"From ines@example.org Mon Mar  4 10:00:00 2024\n"
    path.write_bytes(b"".join(heads + mail.as_bytes() + b"\n" for mail in mails))
    return path


def asked(example: Example) -> list[str]:
    return [each["content"] for each in example.prompt.messages or ()]


def test_a_reply_stands_behind_what_it_answers(tmp_path: Path) -> None:
    body = "Olá Rui,\n\na linha dois está seca.\n\n> Which row?\n> Two?\n-- \nInes, gardener\n"
    mail = a_mail(body, charset="iso-8859-1", Date="Tue, 05 Mar 2024 09:15:00 +0100")
    mail.add_attachment(b"ATTACHED", maintype="image", subtype="png", filename="row.png")
    (tmp_path / "a.EML").write_bytes(mail.as_bytes())
    told: list[str] = []
    (example,) = read(tmp_path / "a.EML", tell=told.append)
    assert example.reply == "Olá Rui,\n\na linha dois está seca."
    assert asked(example) == ["Which row?\nTwo?"]
    assert example.date == "2024-03-05"
    for what in ("heads of mails (1)", "attachments (1)", "quoted mails (1)", "signatures of mails (1)"):
        assert what in told[-1]
    assert "the messages of Ines Prado" in told[0]


QUOTES = {
    "On Tue, 5 Mar 2024 at 09:15, Rui <rui@example.org> wrote:\n> Which row?\n": "Which row?",
    "Am 5. März 2024 um 09:15 schrieb Rui <rui@example.org>:\n> Which row?\n": "Which row?",
    "Le mar. 5 mars 2024 à 09:15, Rui <rui@example.org> a écrit :\n> Which row?\n": "Which row?",
    "-----Original Message-----\nFrom: Rui\nSent: Tuesday\nTo: Ines\nSubject: rows\n\nWhich row?\n": "Which row?",
    "On Tue, Rui wrote:\n> Which row?\n>\n> On Mon, Ines wrote:\n>> The seeds came.\n": "Which row?",
    "---------- Forwarded message ---------\nFrom: Rui <r@x.org>\nDate: Tue\nSubject: rows\n\nWhich row?\n": "",
}


@pytest.mark.parametrize(("quoted", "before"), QUOTES.items())
def test_ways_of_quoting(tmp_path: Path, quoted: str, before: str) -> None:
    body = f"Row two is dry:\n- the ferns\n- the moss\n\nBest regards,\nInes\n\n{quoted}"
    (tmp_path / "a.eml").write_bytes(a_mail(body).as_bytes())
    (example,) = read(tmp_path / "a.eml")
    assert example.reply == "Row two is dry:\n- the ferns\n- the moss"
    assert asked(example) == ([before] if before else [])


def test_habits_of_quoting(tmp_path: Path) -> None:
    body = "Once upon a time, Rui wrote :\n\nR> Which row?\nR> Two?\n\nRow two. My list:\n\nferns\n"
    (tmp_path / "a.eml").write_bytes(a_mail(body).as_bytes())
    (example,) = read(tmp_path / "a.eml")
    assert (example.reply, asked(example)) == ("Row two. My list:\n\nferns", ["Which row?\nTwo?"])


def test_a_page_as_a_mail(tmp_path: Path) -> None:
    (tmp_path / "b.eml").write_bytes(a_mail("<p>Row <b>two</b></p><p>is dry.</p>", "html").as_bytes())
    assert [each.reply for each in read(tmp_path / "b.eml")] == ["Row two\n\nis dry."]


def test_nothing_of_the_sender_s(tmp_path: Path) -> None:
    (tmp_path / "c.eml").write_bytes(a_mail("> quoted alone\n").as_bytes())
    with pytest.raises(DataError, match="c.eml"):
        read(tmp_path / "c.eml")


def test_a_mailbox_is_of_whom_writes_most(tmp_path: Path) -> None:
    texts = ("Row one.", "Row two.\n\n>From the bench on it is dry.", "", "Row four.")
    file = a_box(tmp_path / "all.mbox", *map(a_mail, texts), a_mail("Which row?", who=RUI))
    told: list[str] = []
    found = read(file, tell=told.append)
    assert [each.reply for each in found] == ["Row one.", "Row two.\n\nFrom the bench on it is dry.", "Row four."]
    assert [int(each.where.rpartition(":")[2]) for each in found][:2] == [2, 12]
    assert told[0] == (
        "your own words are the messages of Ines Prado <ines@example.org> (3), of 4 in all; --me changes that"
    )
    assert "mails without words (1)" in told[1]
    assert [each.reply for each in read(file, me="rui")] == ["Which row?"]
    assert [each.reply for each in read(file, me="RUI@example.org")] == ["Which row?"]


@pytest.mark.parametrize("labels", ["Sent", 'Important,"Gesendet"', "Messages envoyés,Work"])
def test_gmail_s_export_says_what_was_sent(tmp_path: Path, labels: str) -> None:
    """However few of the mails are the person's own; --me still decides."""
    others = [a_mail("Which row?", who=RUI), a_mail("When?", who=RUI), a_mail("Who?", who="Ana <ana@example.org>")]
    file = a_box(tmp_path / "all.mbox", *others, a_mail("Row one.", **{"X-Gmail-Labels": labels}))
    assert [each.reply for each in read(file)] == ["Row one."]
    assert [each.reply for each in read(file, me="Ana")] == ["Who?"]


def test_who_the_person_is_is_asked(tmp_path: Path) -> None:
    file = a_box(tmp_path / "all.mbox", a_mail("Row one."), a_mail("Which row?", who=RUI))
    with pytest.raises(DataError, match=r"whose words are to be learnt\? There write Ines Prado .*Rui .*give --me"):
        read(file)
    with pytest.raises(DataError, match="nobody is called 'Anna' here: there write Ines"):
        read(file, me="Anna")


def test_no_mails(tmp_path: Path) -> None:
    (tmp_path / "x.mbox").write_bytes(b"no mbox")
    with pytest.raises(DataError, match=r"x.mbox:1: an mbox must begin with a line 'From …'"):
        read(tmp_path / "x.mbox")
    (tmp_path / "x.eml").write_bytes(b"")
    with pytest.raises(DataError, match="empty"):
        read(tmp_path / "x.eml")


def test_a_mailbox_that_was_cut_off(tmp_path: Path) -> None:
    """In the middle of a mail: what is there of it is learnt; in its head: there is no text."""
    file = a_box(tmp_path / "all.mbox", a_mail("Row one is dry."), a_mail("Row two is dry and so is row three."))
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rindex(b"and so")])
    assert [each.reply for each in read(file)] == ["Row one is dry.", "Row two is dry"]
    file.write_bytes(whole[: whole.rindex(b"Subject")])
    assert [each.reply for each in read(file)] == ["Row one is dry."]


def test_a_hostile_mail_takes_no_long(tmp_path: Path) -> None:
    """The patterns of quotes take quadratic time: what is looked at of a mail is bounded."""
    for text in ("On " * 50_000, "\n " * 50_000, "> " * 50_000, "- " * 50_000, "From: a\n" * 20_000):
        (tmp_path / "a.eml").write_bytes(a_mail(text + "\nwrote:\nRow one.").as_bytes())
        read(a_box(tmp_path / "all.mbox", a_mail("Row one is dry."), a_mail(text)))


def test_nested_and_named_strangely(tmp_path: Path) -> None:
    deep = b"From: a@x.org\n" + b"Content-Type: multipart/mixed; boundary=b\n\n--b\n" * 400 + b"\nRow one."
    (tmp_path / "deep.eml").write_bytes(deep)
    try:
        read(tmp_path / "deep.eml")
    except DataError as error:
        assert "deep.eml" in str(error)
    (tmp_path / "odd.eml").write_bytes(b"From: =?utf-8?q?=00?= <<a@@x>>\nDate: never\n\nRow one is dry.\n")
    assert [each.reply for each in read(tmp_path / "odd.eml")] == ["Row one is dry."]


def test_a_folder_of_mails_is_one_mailbox(tmp_path: Path) -> None:
    for number, (who, text) in enumerate([(INES, "One."), (INES, "Two."), (RUI, "Which?"), (INES, "Three.")]):
        (tmp_path / f"{number}.eml").write_bytes(a_mail(text, who=who).as_bytes())
    (tmp_path / "more.jsonl").write_text(json.dumps({"question": "Where?", "answer": "There."}))
    assert [each.reply for each in read(tmp_path)] == ["There.", "One.", "Two.", "Three."]
