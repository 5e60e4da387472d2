"""The result of each reader: examples, each a prompt and the reply that the person would want.

A new format of records is a module here with a `Format`, and an entry in files.py. It does not know tokens: the cloud's
tokenizer counts them. Test: pytest tests/readers/test_files.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from sideplug.contract.errors import DataError
from sideplug.contract.text import Prompt

Record = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One example to learn. where: its "file:line", for error messages."""

    prompt: Prompt
    reply: str
    where: str
    greedy_tokens: int = 0  # for the retain set: the base writes the reply, at most this many tokens

    def to_json(self) -> Record:
        """Return the example as plain values, without `where`."""
        greedy = {"greedy_tokens": self.greedy_tokens} if self.greedy_tokens else {}
        return {**self.prompt.to_json(), "reply": self.reply, **greedy}


class Format(Protocol):
    """A format of JSON records."""

    name: str

    def fits(self, record: Record) -> bool:
        """Return whether a record looks like this format."""
        ...

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """Yield the examples of a record. Raises DataError, with `where` in its message."""
        ...


def text_of(record: Record, key: str, where: str) -> str:
    """Return the text of a key. Raises DataError if it is missing or no text."""
    value = record.get(key)
    if not isinstance(value, str):
        got = "none" if value is None else type(value).__name__
        raise DataError(f"{where}: {key} must be text, got {got}")
    return value


def list_of(record: Record, key: str, where: str) -> list[Any]:
    """Return the list of messages of a key. Raises DataError if it is missing, empty or no list."""
    value = record.get(key)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {key} must be a list with messages in it")
    return value
