"""What every reader gives: examples, a prompt and the reply that the person would want. And the table of formats.

A new format of records is one file here with a `Format`, and one line in __init__. It does not know tokens: the cloud's
tokenizer counts them. Test: pytest tests/readers
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
    """One thing to learn. where: its "file:line", for errors."""

    prompt: Prompt
    reply: str
    where: str
    greedy_tokens: int = 0  # of the retain set: the base writes the reply itself, so many tokens at most

    def to_json(self) -> Record:
        """Plain values, for a digest."""
        greedy = {"greedy_tokens": self.greedy_tokens} if self.greedy_tokens else {}
        return {**self.prompt.to_json(), "reply": self.reply, **greedy}


class Format(Protocol):
    """A format of JSON records."""

    name: str

    def fits(self, record: Record) -> bool:
        """Whether a record looks like this format."""
        ...

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """The examples of a record. Raises DataError, with `where`."""
        ...


def text_of(record: Record, key: str, where: str) -> str:
    """The text of a key. Raises DataError."""
    value = record.get(key)
    if not isinstance(value, str):
        got = "none" if value is None else type(value).__name__
        raise DataError(f"{where}: {key} must be text, got {got}")
    return value


def list_of(record: Record, key: str, where: str) -> list[Any]:
    """The list of messages of a key. Raises DataError."""
    value = record.get(key)
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {key} must be a list with messages in it")
    return value
