"""JSON files: an array of records, JSON lines, objects one after the other, or an object with a list of records in it.

It does not know formats of records. Test: pytest tests/readers/test_tables_and_pages.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from sideplug.contract.errors import DataError
from sideplug.readers.base import Passage, Row, count_unused, printable
from sideplug.readers.chat_json import talks_of
from sideplug.readers.decoding import decode
from sideplug.readers.exports import refuse_export
from sideplug.readers.records import holds_records, is_known
from sideplug.readers.report import Report
from sideplug.readers.talks import Talk

_SPACES = re.compile(r"\s*")
_DECODER = json.JSONDecoder()


class JsonFile:
    """Files of JSON."""

    suffixes = (".json", ".jsonl", ".ndjson", ".jsonlines")

    def read(self, data: bytes, name: str, report: Report) -> Iterator[Row | Passage | Talk]:
        """See FileFormat."""
        text = decode(data, name)
        found = list(rows(text, name))
        chats = talks_of(found, report)
        if chats is not None:
            yield from chats
            return
        value = found[0].value if len(found) == 1 and text.lstrip().startswith("{") else None
        if isinstance(value, dict) and (not is_known(value) or holds_records(value)):
            refuse_export(value, name)
            lists = [
                key for key, held in value.items() if isinstance(held, list) and held and isinstance(held[0], dict)
            ]
            if len(lists) > 1:
                names = ", ".join(map(printable, lists[:6]))
                raise DataError(f"{name} holds several lists ({names}): give each in a file of its own")
            if lists:  # {"data": […]}
                count_unused(value, (lists[0],), report)
                yield from elements(text, dict(members(text))[lists[0]], name)  # of equal keys the last, as JSON has it
                return
        yield from found


def rows(text: str, name: str) -> Iterator[Row]:
    """Yield each record with its line; an error in the place of what is not JSON."""
    start = _skip(text, 0)
    if text[start : start + 1] == "[":
        yield from elements(text, start, name)
        return
    values = _stream(text)
    if values is not None:
        yield from values
        return
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also cut inside JSON strings
        if line.strip():
            try:
                yield Row(number, json.loads(line))
            except (ValueError, RecursionError) as error:
                yield Row(number, DataError(f"{name}:{number}: this line is not JSON: {_reason(error)}"))


def elements(text: str, at: int, name: str) -> Iterator[Row]:
    """Yield the elements of the array that begins at `at`; an error, and no more, where it is broken."""
    at, line, counted = _skip(text, at + 1), 1, 0
    while at < len(text) and text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", line)
            yield Row(line, DataError(f"{name}:{line}: not JSON from here on: {_reason(error)}"))
            return
        yield Row(line, value)
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif at < len(text) and text[at] != "]":
            line = text.count("\n", 0, at) + 1
            yield Row(line, DataError(f"{name}:{line}: the array must go on with a comma or end with ]"))
            return
    if at >= len(text):
        line = text.count("\n") + 1
        yield Row(line, DataError(f"{name}:{line}: the array is cut off: it must end with ]"))


def members(text: str) -> Iterator[tuple[str, int]]:
    """Yield (key, where its value begins) of the object that a text is."""
    at = _skip(text, _skip(text, 0) + 1)
    while text[at : at + 1] == '"':
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # the colon
        yield key, at
        _, at = _DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # the comma, or the end


def _stream(text: str) -> list[Row] | None:
    """Return the values that follow one another, over lines of their own or not; None where one is not JSON."""
    found, at, line, counted = list[Row](), _skip(text, 0), 1, 0
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        found.append(Row(line, value))
        at = _skip(text, at)
    return found


def _skip(text: str, at: int) -> int:
    match = _SPACES.match(text, at)
    return match.end() if match else at


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
