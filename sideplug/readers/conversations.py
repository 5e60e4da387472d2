"""Conversations: {"messages": [{"role", "content"}, …]} as OpenAI has it, {"conversations": [{"from", "value"}, …]} as
ShareGPT has it. Each assistant's turn is an example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sideplug.contract.errors import DataError
from sideplug.contract.text import Prompt
from sideplug.readers.base import Example, Record, list_of

_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Messages:
    """OpenAI's."""

    name = "messages"

    def fits(self, record: Record) -> bool:
        """See Format."""
        return "messages" in record

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """See Format."""
        yield from _turns(list_of(record, "messages", where), "role", "content", where)


class ShareGPT:
    """ShareGPT's."""

    name = "sharegpt"

    def fits(self, record: Record) -> bool:
        """See Format."""
        return "conversations" in record

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """See Format."""
        yield from _turns(list_of(record, "conversations", where), "from", "value", where)


def _turns(turns: list[Any], role_key: str, content_key: str, where: str) -> Iterator[Example]:
    messages: list[dict[str, str]] = []
    replies = 0
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise DataError(f"{where}: message {number} must be an object, got {type(turn).__name__}")
        role = _SHAREGPT_ROLES.get(str(turn.get(role_key)))
        content = turn.get(content_key)
        if role is None:
            raise DataError(
                f"{where}: message {number}'s {role_key} must be one of {', '.join(_SHAREGPT_ROLES)}, "
                f"got {str(turn.get(role_key))[:40]!r}"
            )
        if not isinstance(content, str):
            raise DataError(f"{where}: message {number}'s {content_key} must be text, got {type(content).__name__}")
        if role == "assistant" and messages and turn.get("weight") != 0:  # OpenAI's: 0 is context, not to be learnt
            replies += 1
            yield Example(Prompt(messages=tuple(messages)), content, where)
        messages = [*messages, {"role": role, "content": content}]
    if not replies:
        raise DataError(f"{where}: there must be an assistant's message after another one")
