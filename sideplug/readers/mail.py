"""Mail: .eml files and .mbox archives. A mail is what its sender wrote, behind the mail that it answers and quotes.

What is quoted of older mails, signatures, and what was forwarded is cut, by mail-parser-reply.
Test: pytest tests/readers/test_mail.py
"""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterator
from datetime import datetime
from email.message import EmailMessage, MIMEPart
from email.utils import parseaddr, parsedate_to_datetime

from mailparser_reply.parser import EmailMessage as Parsed

from sideplug.contract.errors import DataError
from sideplug.readers.base import Passage, Row
from sideplug.readers.html_page import text_of_html
from sideplug.readers.report import Report
from sideplug.readers.talks import Said, Talk

HEADERS, ATTACHMENTS, QUOTED, SIGNATURES, WORDLESS, LONG = (
    "heads of mails",
    "attachments",
    "quoted mails",
    "signatures of mails",
    "mails without words",
    "ends of long mails",
)
LANGUAGES = ["en", "de", "fr", "es", "it", "nl", "sv", "da", "pl", "cs", "ja", "ko", "zh"]  # of "On …, … wrote:"
MOST = 8000  # characters of a mail that are looked at: the patterns of quotes take quadratic time
WHO_WROTE = 120  # characters of a line such as "Once upon a time, Rui wrote:"
NOBODY = "an unnamed sender"
# Gmail's label of what one has sent, in the languages that an export may name it in
SENT = frozenset(["sent", "gesendet", "messages envoyés", "enviados", "posta inviata", "verzonden"])
_BETWEEN = re.compile(rb"(?:\A|\r?\n\r?\n)From [^\n]*\n")  # two messages of an mbox
_ESCAPED = re.compile(rb"^>(>*From )", re.MULTILINE)
_SIGNATURE = re.compile(r"^-- ?\n", re.MULTILINE)
_MARK = re.compile(r"^(?:[A-Z]{0,3}> ?)+", re.MULTILINE)
_FORWARDED = re.compile(
    r"\n*^[ >]*(?:-{3,}[^\n]{3,60}-{3,}|[^\n]{0,30}forwarded message[^\n]{0,5}:) *\Z", re.MULTILINE | re.IGNORECASE
)


class Mail:
    """Files of one message."""

    suffixes = (".eml",)

    def read(self, data: bytes, name: str, report: Report) -> Iterator[Row | Passage | Talk]:
        """See FileFormat."""
        yield from _talk(data, 1, name, report)


class Mailbox:
    """Archives of messages, as Thunderbird and Google's Takeout have them."""

    suffixes = (".mbox", ".mbx")

    def read(self, data: bytes, name: str, report: Report) -> Iterator[Row | Passage | Talk]:
        """See FileFormat."""
        starts = list(_BETWEEN.finditer(data))
        if not starts or starts[0].start():
            raise DataError(f"{name}:1: an mbox must begin with a line 'From …'")
        ends = [match.start() for match in starts[1:]] + [len(data)]
        line, counted = 1, 0
        for start, end in zip((match.end() for match in starts), ends, strict=True):
            line, counted = line + data.count(b"\n", counted, start), start
            yield from _talk(_ESCAPED.sub(rb"\1", data[start:end]), line, name, report)


def _talk(data: bytes, line: int, name: str, report: Report) -> Iterator[Talk]:
    """Yield a message as a talk: what it quotes, and what its sender says to that."""
    try:
        message = email.message_from_bytes(data, policy=email.policy.default)
        if not isinstance(message, EmailMessage) or not (message.keys() or message.get_payload()):
            raise DataError(f"{name}:{line}: a mail must begin with its head, such as From: and Subject:")
        report.left[HEADERS] += 1
        report.left[ATTACHMENTS] += sum(1 for _ in message.iter_attachments())
        body = message.get_body(("plain", "html"))
        text = _content(body) if body is not None else ""
        who, at = _sender(message), _day(message)
    except RecursionError:
        raise DataError(f"{name}:{line}: the mail is nested too deeply") from None
    own, quoted = _parted(text, report)
    if own.strip():
        before = [Said(f"the mail that {who} answers", quoted, line, None, is_quoted=True)] if quoted.strip() else []
        yield Talk((*before, Said(who, own, line, at)), who if _was_sent(message) else "", is_mail=True)
    else:
        report.left[WORDLESS] += 1
    report.left = +report.left


def _parted(text: str, report: Report) -> tuple[str, str]:
    """(what the sender wrote, the mail that it quotes)."""
    kept, signature = (*_SIGNATURE.split(text, maxsplit=1), "")[:2]
    report.left[SIGNATURES] += bool(signature.strip())
    report.left[LONG] += len(kept) > MOST
    short = re.sub(r"\n\s*\n\s*\n+", "\n\n", kept[:MOST])
    first, *older = Parsed(short, list(LANGUAGES), keep_hyphen_lists=True).read().replies
    report.left[SIGNATURES] += bool(first.signatures) and not signature.strip()
    own = _without_quotes(first.body.split("\n"))
    quotes = [[line for line in each.body.split("\n") if _MARK.match(line)] for each in (first, *older)]
    marked = next((lines for lines in quotes if lines), [])
    report.left[QUOTED] += bool(older or marked)
    if _FORWARDED.search(first.content):
        return _FORWARDED.sub("", "\n".join(own)), ""  # what was forwarded was not written to the sender
    unmarked = next((each.body for each in older if each.body.strip()), "")
    return "\n".join(own), _MARK.sub("", "\n".join(marked)) if marked else unmarked


def _without_quotes(lines: list[str]) -> list[str]:
    """The lines that are not quoted, without those that say who wrote the quote behind them."""
    kept = list[str]()
    for number, line in enumerate(lines):
        behind = next((each for each in lines[number + 1 :] if each.strip()), "")
        says_who = line.rstrip().endswith((":", "\uff1a")) and len(line) <= WHO_WROTE and _MARK.match(behind)
        if not _MARK.match(line) and not says_who:
            kept.append(line)
    return kept


def _sender(message: EmailMessage) -> str:
    """Who wrote it, as "Name <address>"."""
    try:
        name, address = parseaddr(str(message.get("from", "")))
    except Exception:  # a head that the library can't parse
        return NOBODY
    address = address.lower()
    return f"{' '.join(name.split())} <{address}>" if name and address else name or address or NOBODY


def _was_sent(message: EmailMessage) -> bool:
    """Whether Gmail's export says that the person has sent it."""
    try:
        labels = str(message.get("x-gmail-labels", ""))
    except Exception:  # a head that the library can't parse
        return False
    return any(label.strip(' "').casefold() in SENT for label in labels.split(","))


def _day(message: EmailMessage) -> datetime | None:
    try:
        return parsedate_to_datetime(str(message.get("date", ""))).replace(tzinfo=None)
    except (TypeError, ValueError, IndexError):
        return None


def _content(body: MIMEPart) -> str:
    """Return a body's text; characters that its encoding does not have are shown as such."""
    try:
        text = str(body.get_content())
    except (LookupError, KeyError, AssertionError):  # an unknown charset
        text = (body.get_payload(decode=True) or b"").decode("utf-8", "replace")  # type: ignore[union-attr]
    text = text.replace("\r\n", "\n")
    return text_of_html(text) if body.get_content_subtype() == "html" else text
