"""Mail: .eml files and .mbox archives. The words of each message are learnt as text, without what it quotes.

Test: pytest tests/readers/test_tables_and_pages.py
"""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Iterator
from email.message import EmailMessage, MIMEPart

from sideplug.contract.errors import DataError
from sideplug.readers.base import Passage, Row
from sideplug.readers.html_page import text_of_html
from sideplug.readers.report import Report
from sideplug.readers.text import plain_passages

HEADERS, ATTACHMENTS, QUOTED, SIGNATURES, WORDLESS = (
    "heads of mails",
    "attachments",
    "quoted lines of mails",
    "signatures of mails",
    "mails without words",
)
_BETWEEN = re.compile(rb"(?:\A|\r?\n\r?\n)From [^\n]*\n")  # two messages of an mbox
_ESCAPED = re.compile(rb"^>(>*From )", re.MULTILINE)
_SIGNATURE = re.compile(r"^-- ?\n", re.MULTILINE)


class Mail:
    """Files of one message."""

    suffixes = (".eml",)

    def read(self, data: bytes, name: str, report: Report) -> Iterator[Row | Passage]:
        """See FileFormat."""
        yield from _words(data, 1, name, report)


class Mailbox:
    """Archives of messages, as Thunderbird and Google's Takeout have them."""

    suffixes = (".mbox", ".mbx")

    def read(self, data: bytes, name: str, report: Report) -> Iterator[Row | Passage]:
        """See FileFormat."""
        starts = list(_BETWEEN.finditer(data))
        if not starts or starts[0].start():
            raise DataError(f"{name}:1: an mbox must begin with a line 'From …'")
        ends = [match.start() for match in starts[1:]] + [len(data)]
        line, counted = 1, 0
        for start, end in zip((match.end() for match in starts), ends, strict=True):
            line, counted = line + data.count(b"\n", counted, start), start
            yield from _words(_ESCAPED.sub(rb"\1", data[start:end]), line, name, report)


def _words(data: bytes, line: int, name: str, report: Report) -> Iterator[Passage]:
    """Yield the passages of a message, all at its first line."""
    message = email.message_from_bytes(data, policy=email.policy.default)
    if not isinstance(message, EmailMessage) or not (message.keys() or message.get_payload()):
        raise DataError(f"{name}:{line}: a mail must begin with its head, such as From: and Subject:")
    report.left[HEADERS] += 1
    report.left[ATTACHMENTS] += sum(1 for _ in message.iter_attachments())
    body = message.get_body(("plain", "html"))
    text = _content(body) if body is not None else ""
    kept, signature = (*_SIGNATURE.split(text, maxsplit=1), "")[:2]
    own = [each for each in kept.split("\n") if not each.startswith(">")]
    report.left[QUOTED] += kept.count("\n") + 1 - len(own)
    report.left[SIGNATURES] += bool(signature.strip())
    found = list(plain_passages("\n".join(own)))
    report.left[WORDLESS] += not found
    report.left = +report.left
    yield from (Passage(line, passage.text) for passage in found)


def _content(body: MIMEPart) -> str:
    """Return a body's text; characters that its encoding does not have are shown as such."""
    try:
        text = str(body.get_content())
    except (LookupError, KeyError, AssertionError):  # an unknown charset
        text = (body.get_payload(decode=True) or b"").decode("utf-8", "replace")  # type: ignore[union-attr]
    text = text.replace("\r\n", "\n")
    return text_of_html(text) if body.get_content_subtype() == "html" else text
