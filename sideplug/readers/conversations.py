"""Conversations: a list of messages, in OpenAI's format or ShareGPT's. Each turn of the assistant is an example.

    {"messages": [{"role", "content"}, …], "system"?}
    {"conversations": [{"from", "value"}, …], "system"?}

Either pair of keys may stand under either name. Calls and results of tools are passed over, and counted.
It does not know files. Test: pytest tests/readers/test_records.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sideplug.contract import message
from sideplug.contract.errors import DataError, InputError
from sideplug.contract.message import ChatMessage, kind_of, read_message
from sideplug.contract.text import Prompt
from sideplug.readers.base import Example, Record, count_unused, list_of, text_of
from sideplug.readers.report import Report

LISTS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "chat")
SYSTEM = ("system", "system_prompt")
LEARNT = (
    "weight",
    "loss",
    "train",
)  # fields of a message: 0 or false, and it is context only (OpenAI, ms-swift, axolotl)
UNANSWERED = "last messages without a reply"
CONTEXT_ONLY = "replies that are marked as context"


class Conversations:
    """OpenAI's format and ShareGPT's."""

    def fits(self, record: Record) -> bool:
        """See Format."""
        return any(record.get(name) is not None for name in LISTS)

    def examples(self, record: Record, where: str, report: Report) -> Iterator[Example]:
        """See Format."""
        name = next((name for name in LISTS if record.get(name) is not None), LISTS[0])
        found = list(turns(system_of(record, where), list_of(record, name, where), where, report))
        count_unused(record, (name, *SYSTEM), report)
        yield from found


def system_of(record: Record, where: str) -> list[dict[str, str]]:
    """Return the system message of a record's own field, in a list; none where there is none. Raises DataError."""
    name = next((name for name in SYSTEM if record.get(name)), None)
    return [{"role": "system", "content": text_of(record, name, where)}] if name else []


def turns(before: Sequence[dict[str, str]], given: list[Any], where: str, report: Report) -> Iterator[Example]:
    """Yield an example for each turn of the assistant that another turn precedes. Raises DataError."""
    messages = list(before)
    replies = 0
    for number, each in enumerate(given, 1):
        name = f"{where}: message {number}"
        read = read_checked(each, name)
        count_unused(each, (*message.FIELDS, *LEARNT), report, "a message's ")
        for what in read.passed_over:
            report.left[what] += 1
        if read.content is None:
            continue
        if read.role == "system" and messages and messages[0] == {"role": "system", "content": read.content}:
            continue  # it stands in a field of its own too
        if read.role == "assistant" and messages:
            if not read.content.strip():
                raise DataError(f"{name} must not be empty: it is a reply of the assistant")
            replies += 1
            if _is_learnt(each, name):
                yield Example(Prompt(messages=tuple(messages)), read.content, where)
            else:
                report.left[CONTEXT_ONLY] += 1
        messages.append({"role": read.role, "content": read.content})
    if not replies:
        raise DataError(f"{where}: there must be an assistant's message after another one")
    report.left[UNANSWERED] += messages[-1]["role"] == "user"
    report.left = +report.left


def read_checked(each: object, name: str) -> ChatMessage:
    """Return a message as role and words. Raises DataError, in whose sentence it is called `name`."""
    try:
        return read_message(each, name)
    except InputError as error:
        raise DataError(str(error)) from error


def _is_learnt(each: Record, name: str) -> bool:
    for key in LEARNT:
        value = each.get(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise DataError(f"{name}'s {key} must be 0 or 1, false or true, got {kind_of(value)}")
        if not value:
            return False
    return True
