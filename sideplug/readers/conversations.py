"""Conversations in OpenAI's format and in ShareGPT's. Each turn of the assistant is an example.

    OpenAI      {"messages": [{"role", "content"}, …]}
    ShareGPT    {"conversations": [{"from", "value"}, …]}

It does not know files. Test: pytest tests/readers/test_files.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sideplug.contract.errors import DataError
from sideplug.contract.text import Prompt
from sideplug.readers.base import Example, Record, list_of

_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Messages:
    """OpenAI's format."""

    name = "messages"

    def fits(self, record: Record) -> bool:
        """See Format."""
        return "messages" in record

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """See Format."""
        yield from _turns(list_of(record, "messages", where), "role", "content", where)


class ShareGPT:
    """ShareGPT's format."""

    name = "sharegpt"

    def fits(self, record: Record) -> bool:
        """See Format."""
        return "conversations" in record

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """See Format."""
        yield from _turns(list_of(record, "conversations", where), "from", "value", where)


def _turns(turns: list[Any], role_key: str, content_key: str, where: str) -> Iterator[Example]:
    """Yield an example for each turn of the assistant that another turn precedes. Raises DataError."""
    messages: list[dict[str, str]] = []
    replies = 0
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise DataError(f"{where}: message {number} must be an object, got {str(turn)[:40]!r}")
        role = _SHAREGPT_ROLES.get(str(turn.get(role_key)))
        content = turn.get(content_key)
        if role is None:
            raise DataError(
                f"{where}: message {number}'s {role_key} must be one of {', '.join(_SHAREGPT_ROLES)}, "
                f"got {str(turn.get(role_key))[:40]!r}"
            )
        if not isinstance(content, str):
            raise DataError(f"{where}: message {number}'s {content_key} must be text, got {str(content)[:40]!r}")
        if role == "assistant" and messages and turn.get("weight") != 0:  # OpenAI's 0: context only
            replies += 1
            yield Example(Prompt(messages=tuple(messages)), content, where)
        messages = [*messages, {"role": role, "content": content}]
    if not replies:
        raise DataError(f"{where}: there must be an assistant's message after another one")
