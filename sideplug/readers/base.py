"""The result of each reader: examples, each a prompt and the reply that the person would want.

There are two kinds of formats, each a module here: a `Format` of records (JSON objects, rows of a table) with an entry
in records.py, and a `FileFormat` with an entry in files.py. It does not know tokens: the cloud's tokenizer counts them.
Test: pytest tests/readers
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date as Date
from typing import Any, Protocol

from sideplug.contract.errors import DataError
from sideplug.contract.message import kind_of
from sideplug.contract.text import Prompt
from sideplug.readers.report import Report

Record = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One example to learn. where: its "file:line", for error messages."""

    prompt: Prompt
    reply: str
    where: str
    greedy_tokens: int = 0  # for the retain set: the base writes the reply, at most this many tokens
    told: str = ""  # the question in the person's own words, where the prompt has others
    date: str = ""  # YYYY-MM-DD: the day that it is about; a memory keeps it, it is not learnt
    is_talk: bool = False  # what somebody wrote in a conversation of people; its prompt need not be a question

    @property
    def question(self) -> str:
        """Return the question in the person's own words, the last of a conversation; "" for a text."""
        asked = [each["content"] for each in self.prompt.messages or () if each["role"] == "user"]
        return self.told or (asked[-1] if asked else "")

    def to_json(self) -> Record:
        """Return what is learnt of the example as plain values: no `where`, no date."""
        greedy = {"greedy_tokens": self.greedy_tokens} if self.greedy_tokens else {}
        return {**self.prompt.to_json(), "reply": self.reply, **greedy}


class NotRead(DataError):
    """A file in a format that is not read. The sentence says what it is and what to do; a folder's are passed over."""


class Format(Protocol):
    """A format of records."""

    def fits(self, record: Record) -> bool:
        """Return whether a record looks like this format."""
        ...

    def examples(self, record: Record, where: str, report: Report) -> Iterator[Example]:
        """Yield the examples of a record. Raises DataError, with `where` in its message.

        Each field of the record is used, refused, or counted in the report (see `count_unused`).
        """
        ...


class FileFormat(Protocol):
    """A format of files."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Return the ends of its files' names, in small letters."""
        ...

    def read(self, data: bytes, name: str, report: Report) -> Iterator[Row | Passage | Any]:
        """Yield the rows, texts or talks (see talks) of a file. Raises DataError, with `name` and the line in it."""
        ...


@dataclass(frozen=True)
class Row:
    """A record and its line. value: what JSON holds there, or the error that stands in its place."""

    line: int
    value: Any


@dataclass(frozen=True)
class Passage:
    """A text to be continued, of the length that is learnt at once, and its line."""

    line: int
    text: str


def text_of(record: Record, key: str, where: str) -> str:
    """Return the text of a key. Raises DataError if it is missing or no text."""
    value = record.get(key)
    if not isinstance(value, str):
        raise DataError(f"{where}: {key} must be text, got {kind_of(value)}")
    return value


def date_of(record: Record) -> str:
    """Return the day of a record's field `date`, YYYY-MM-DD; "" where it has none that is written so."""
    value = record.get("date")
    try:
        return value if isinstance(value, str) and Date.fromisoformat(value).isoformat() == value else ""
    except ValueError:
        return ""


def list_of(record: Record, key: str, where: str) -> list[Any]:
    """Return the list of messages of a key. Raises DataError if it is missing, empty or no list."""
    value = record.get(key)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {key} must be a list with messages in it")
    return value


def count_unused(record: Record, used: tuple[str, ...], report: Report, of: str = "") -> None:
    """Count the record's fields that are not used and hold something."""
    for name, value in record.items():
        if name not in used and value is not None and value not in ("", [], {}):
            report.fields[of + printable(name)] += 1


def printable(name: object) -> str:
    """Return a name out of a file as a sentence can show it: short, on one line, without control characters."""
    return "".join(each if each.isprintable() else "\ufffd" for each in str(name)[:40])
