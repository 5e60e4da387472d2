"""Files that a person drops on the gateway's page: read as the command reads them, with a look at them beforehand.

What the page has as a field, the command has as an option; sentences name the field here.
Test: pytest tests/readers/test_dropped.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol

from sideplug.contract.errors import DataError, InputError
from sideplug.readers.base import Example
from sideplug.readers.files import read_files
from sideplug.readers.talks import WhoseWords

Files = Sequence[tuple[str, bytes]]  # the name of a file, and what it holds
SHOWN = 12  # examples that a look shows
CHARACTERS = 400  # of each
FIELDS = {"--me": "“You are”", "--skip-bad": "“Leave out rows that can't be read”"}


def read_dropped(
    files: Files, choices: Mapping[str, object], tell: Callable[[str], None] = lambda line: None
) -> list[Example]:
    """The examples of files. choices: me, redact and skip_bad, as `read` has them. tell: hears what is passed over.

    Raises DataError, InputError.
    """
    if not files:
        raise InputError("there is nothing to learn from: give at least one file")
    for name, value in choices.items():
        kinds = {"me": str, "skip_bad": bool, "redact": list}
        is_right = type(value) is kinds.get(name)
        if not is_right or (isinstance(value, list) and not all(isinstance(each, str) for each in value)):
            raise InputError(f"files are read by me, skip_bad and redact, got {str(name)[:40]!r}")
    named = [(PurePath(name).name or "text.txt", data) for name, data in files]
    chosen: dict[str, Any] = dict(choices)
    try:
        return read_files(named, tell=lambda line: tell(_on_the_page(line)), **chosen)
    except WhoseWords as error:
        raise WhoseWords(_on_the_page(str(error)), error.people) from error
    except DataError as error:
        raise DataError(_on_the_page(str(error))) from error


class Shown(Protocol):
    """What becomes of an example: it itself, or an entry of a memory."""

    @property
    def question(self) -> str:
        """What is asked; "" for a text."""
        ...

    @property
    def reply(self) -> str:
        """What is learnt."""
        ...


def preview(
    files: Files, choices: Mapping[str, object], becomes: Callable[[Example], Shown] = lambda example: example
) -> dict[str, Any]:
    """What is read of files, as JSON; nothing is kept of it. becomes: what is made of an example.

    questions, texts, characters: how much; items: the first, {question, reply} each; notes: what is passed over. Or
    error: why they can't be read so; people: who write, most first, where it is not known who the person is. Raises
    InputError.
    """
    notes = list[str]()
    try:
        found = [becomes(example) for example in read_dropped(files, choices, notes.append)]
    except DataError as error:
        people = list(error.people) if isinstance(error, WhoseWords) else []
        return {"error": str(error), "people": people, "notes": notes}
    return {
        "questions": sum(bool(each.question) for each in found),
        "texts": sum(not each.question for each in found),
        "characters": sum(len(each.question) + len(each.reply) for each in found),
        "items": [{"question": _cut(each.question), "reply": _cut(each.reply)} for each in found[:SHOWN]],
        "notes": notes,
    }


def _on_the_page(sentence: str) -> str:
    for option, field in FIELDS.items():
        sentence = sentence.replace(option, field)
    return sentence


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else text[: CHARACTERS - 1] + "…"
