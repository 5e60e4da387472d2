"""Records of a question and its answer: Alpaca, prompt and completion, question and answer, and their kin.

    {"instruction", "input"?, "output", "system"?, "history"?}     Alpaca, LLaMA-Factory
    {"prompt", "completion"}                                       OpenAI's older format, TRL (also lists of messages)
    {"prompt", "chosen", "rejected"}                               preferences: the chosen answer is learnt
    {"question", "answer"}, {"instruction", "context", "response"} tables, Dolly

It does not know files. Test: pytest tests/readers/test_records.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sideplug.contract.errors import DataError
from sideplug.contract.message import kind_of
from sideplug.contract.text import Prompt
from sideplug.readers.base import Example, Record, count_unused, date_of, text_of
from sideplug.readers.conversations import SYSTEM, read_checked, system_of, turns
from sideplug.readers.report import Report

QUESTIONS = ("instruction", "prompt", "question", "query", "request", "input", "q")  # the first one there is taken
ANSWERS = ("output", "completion", "answer", "response", "reply", "chosen", "a")
MORE = ("input", "context")  # what an instruction is about
HISTORY = "history"
UNWANTED = "answers that are marked as unwanted"


class Pairs:
    """Each record is one question and its answer."""

    def fits(self, record: Record) -> bool:
        """See Format."""
        alone = "output" in record or isinstance(record.get("chosen"), list)
        return alone or (_first(record, ANSWERS) is not None and _first(record, QUESTIONS) is not None)

    def examples(self, record: Record, where: str, report: Report) -> Iterator[Example]:
        """See Format."""
        question, answer = _first(record, QUESTIONS) or "instruction", _first(record, ANSWERS) or "output"
        more = next((key for key in MORE if key != question and record.get(key)), "")
        is_chat = isinstance(record.get(question), list) or isinstance(record.get(answer), list)
        date = "" if is_chat else date_of(record)
        used = (question, answer, more, HISTORY, "label", *SYSTEM, *(("date",) if date else ()))
        count_unused(record, used, report)
        if record.get("label") is False:  # KTO's
            report.left[UNWANTED] += 1
            return
        if "label" in record and record["label"] is not True:
            report.fields["label"] += 1
        before = [*system_of(record, where), *_history(record.get(HISTORY), where)]
        if is_chat:
            messages = [
                *_as_messages(record, question, "user", where),
                *_as_messages(record, answer, "assistant", where),
            ]
            yield from turns(before, messages, where, report)
            return
        asked, reply = text_of(record, question, where), text_of(record, answer, where)
        if not reply.strip():
            raise DataError(f"{where}: {answer} must not be empty")
        about = text_of(record, more, where) if more else ""
        content = f"{asked}\n\n{about}" if about.strip() else asked
        yield Example(Prompt(messages=(*before, {"role": "user", "content": content})), reply, where, date=date)


def _first(record: Record, names: tuple[str, ...]) -> str | None:
    """Return the first of these fields that holds something, else the first that is there."""
    there = [name for name in names if name in record]
    return next((name for name in there if record[name] is not None), there[0] if there else None)


def _as_messages(record: Record, key: str, role: str, where: str) -> list[Any]:
    """Return the messages of a field that holds a list of them or one text. A preference's answer has them all."""
    value = record.get(key, [])
    return value if isinstance(value, list) else [{"role": role, "content": text_of(record, key, where)}]


def _history(history: object, where: str) -> list[dict[str, str]]:
    """Return earlier turns: a list of [question, answer], or of messages. Raises DataError."""
    messages = list[dict[str, str]]()
    for number, turn in enumerate(history if isinstance(history, list) else [history] if history else [], 1):
        if isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn):
            messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
            continue
        if not isinstance(turn, dict):
            raise DataError(f"{where}: history must be a list of [question, answer], got {kind_of(turn)} in it")
        read = read_checked(turn, f"{where}: history's message {number}")
        messages += [{"role": read.role, "content": read.content}] if read.content else []
    return messages
