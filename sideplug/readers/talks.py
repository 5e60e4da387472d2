"""Conversations of people: of a chat, a mailbox, an assistant's export. One's own lines are replies, others' prompts.

    Anna: are you at the mill?        → prompt
    Bo:   since noon                  → reply, where Bo is the person
    Bo:   bring the nails

What one says in a row is one turn. A turn of one's own is learnt behind the turns before it; one that begins the talk,
or comes after a silence, is a text without a prompt. Whose words are learnt (`me`) is given, or guessed where the file
shows it, and told. Test: pytest tests/readers/test_talks.py
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from sideplug.contract.errors import DataError
from sideplug.contract.text import Prompt
from sideplug.readers.base import Example, printable
from sideplug.readers.passages import PASSAGE_BYTES, passages_of
from sideplug.readers.report import Report

BEFORE = 4  # turns before a reply that stand in its prompt, at most …
BEFORE_CHARACTERS = 1500  # … and characters of them, but for the last turn's own
SILENCE = timedelta(hours=8)  # behind which a talk begins anew
MAILS = 3  # of a mailbox whose most frequent sender is taken for the person, at least
LISTED = 8  # people who are named in a sentence
OTHERS, NONE_OF_YOURS = "messages of others, which stand in prompts or nowhere", "conversations without lines of yours"
_ADDRESS = re.compile(r"<([^<>\s]+@[^<>\s]+)>")


class WhoseWords(DataError):
    """It is not known which of the people the person is. people: who write, those who write most first."""

    def __init__(self, sentence: str, people: Sequence[str]) -> None:
        super().__init__(sentence)
        self.people = tuple(people)


@dataclass(frozen=True)
class Said:
    """A message: by whom, what, its line in the file, and when, where that is known. is_quoted: in another's mail."""

    who: str
    text: str
    line: int
    at: datetime | None = None
    is_quoted: bool = False


@dataclass(frozen=True)
class Talk:
    """A conversation. me: which of its people the person is, where the file shows that; "" where it does not. is_mail:
    a mail with what it quotes; name: of its file."""

    said: tuple[Said, ...]
    me: str = ""
    is_mail: bool = False
    name: str = ""


def names_of(who: str) -> set[str]:
    """The names by which somebody may be meant: all of it, and of a mail's address the name and the address."""
    address = _ADDRESS.search(who)
    names = {who, *((address[1], who[: address.start()].strip(' "')) if address else ())}
    return {name.strip().casefold() for name in names if name.strip()}


def is_me(me: str, who: str) -> bool:
    """Whether this is the person who is called `me`: by the whole name or address, or by the first name."""
    wanted, names = me.strip().casefold(), names_of(who)
    return wanted in names or any(name.split()[0] == wanted for name in names if " " in name)


def examples_of(talks: Sequence[Talk], report: Report) -> list[Example]:
    """The examples of one's own turns in all talks of a reading. Who writes, and what is left, is noted in the report.

    Who the person is, was given, or the file shows it; else it is who wrote most of the mails, or alone wrote all.
    Raises WhoseWords where that is not to be seen, or where nobody is called so.
    """
    writers = Counter(said.who for talk in talks for said in talk.said if not said.is_quoted)
    report.writers.update(writers)
    if report.me and talks and not any(is_me(report.me, who) for who in writers):
        sentence = f"nobody is called {printable(report.me)!r} here: there write {people(writers)}"
        raise WhoseWords(sentence, ranked(writers))
    guessed = _guess(talks)
    unknown = [talk for talk in talks if not (report.me or talk.me or guessed)]
    if unknown:
        asked = Counter(said.who for talk in unknown for said in talk.said if not said.is_quoted)
        sentence = f"whose words are to be learnt? There write {people(asked)}: give --me with one of these names"
        raise WhoseWords(sentence, ranked(asked))
    return [example for talk in talks for example in _examples(talk, report.me or talk.me or guessed, report)]


def _guess(talks: Sequence[Talk]) -> str:
    """Who the person is in the talks that do not show it: who sent mails of the same mailbox, or wrote all, or most."""
    sent = Counter(talk.me for talk in talks if talk.is_mail and talk.me)
    if sent and all(talk.is_mail or talk.me for talk in talks):
        return sent.most_common(1)[0][0]
    open_ = [talk for talk in talks if not talk.me]
    count = Counter(said.who for talk in open_ for said in talk.said if not said.is_quoted)
    if not count:
        return ""
    who, most = count.most_common(1)[0]
    mailbox = all(talk.is_mail for talk in open_) and len(open_) >= MAILS and 2 * most > len(open_)
    return who if len(count) == 1 or mailbox else ""


def _examples(talk: Talk, me: str, report: Report) -> Iterator[Example]:
    turns = list(_turns(talk.said, me))
    mine = sum(turn.is_mine for turn in turns)
    report.rows += mine
    report.left[OTHERS] += sum(turn.count for turn in turns if not (turn.is_mine or turn.is_quoted))
    report.left[NONE_OF_YOURS] += not mine and not talk.is_mail
    report.left = +report.left
    crowd = len({turn.who for turn in turns if not turn.is_mine}) > 1
    for number, turn in enumerate(turns):
        if not turn.is_mine:
            continue
        report.mine[turn.who] += turn.count
        before = _before(turns[:number], turn, crowd)
        where, date = f"{talk.name}:{turn.line}", turn.at.date().isoformat() if turn.at else ""
        for count, (_, passage) in enumerate(passages_of(turn.text)):
            asked = Prompt(messages=before) if before and not count else Prompt(text="")
            yield Example(asked, passage.strip(), where, date=date, is_talk=True)


@dataclass(frozen=True)
class _Turn:
    who: str
    is_mine: bool
    text: str
    count: int
    line: int
    at: datetime | None
    until: datetime | None
    is_quoted: bool


def _turns(said: Iterable[Said], me: str) -> Iterator[_Turn]:
    """What each says in a row, as one turn; a silence ends it too."""
    run, runs = list[Said](), list[list[Said]]()
    for each in said:
        if run and (each.who != run[-1].who or _is_silence(run[-1].at, each.at)):
            runs.append(run)
            run = []
        run.append(each)
    for row in [*runs, run] if run else runs:
        text = "\n".join(one.text.strip() for one in row)
        first = row[0]
        is_mine = not first.is_quoted and is_me(me, first.who)
        yield _Turn(first.who, is_mine, text, len(row), first.line, first.at, row[-1].at, first.is_quoted)


def _is_silence(before: datetime | None, after: datetime | None) -> bool:
    return before is not None and after is not None and after - before > SILENCE


def _before(turns: Sequence[_Turn], reply: _Turn, crowd: bool) -> tuple[dict[str, str], ...]:
    """The messages before a reply: none behind a silence, or where it begins the talk."""
    chosen, size, after = list[_Turn](), 0, reply.at
    for turn in reversed(turns[-BEFORE:]):
        size += len(turn.text)
        if _is_silence(turn.until, after) or (chosen and size > BEFORE_CHARACTERS):
            break
        chosen.insert(0, turn)
        after = turn.at
    while chosen and chosen[0].is_mine:
        chosen.pop(0)
    messages = list[dict[str, str]]()
    for is_mine, run in groupby(chosen, key=lambda turn: turn.is_mine):
        texts = [f"{turn.who}: {turn.text}" if crowd and not is_mine else turn.text for turn in run]
        messages.append({"role": "assistant" if is_mine else "user", "content": _cut("\n".join(texts))})
    return tuple(messages) if messages and messages[-1]["role"] == "user" else ()


def _cut(text: str) -> str:
    """A text's last passages, where it is long: what a reply is about stands at the end."""
    data = text.encode()
    if len(data) <= 2 * PASSAGE_BYTES:
        return text
    return "… " + data[-2 * PASSAGE_BYTES :].decode("utf-8", "ignore").lstrip()


def ranked(writers: Counter[str]) -> list[str]:
    """Who writes, those who write most first."""
    return [printable(who) for who, _ in writers.most_common()]


def people(writers: Counter[str]) -> str:
    """Who writes, as a sentence names them: "Anna (120 messages), Bo (80)"."""
    shown = [f"{printable(who)} ({count:,})" for who, count in writers.most_common(LISTED)]
    more = [f"{len(writers) - LISTED} more"] if len(writers) > LISTED else []
    return ", ".join([*shown, *more])
