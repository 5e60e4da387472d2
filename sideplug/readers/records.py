"""The formats of records, and which of them a record is in.

A new format of records is a module with a `Format` and its place here. Test: pytest tests/readers/test_records.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from sideplug.contract.errors import DataError
from sideplug.contract.message import kind_of
from sideplug.readers.base import Example, Format, Record, Row, printable
from sideplug.readers.conversations import LISTS, Conversations
from sideplug.readers.exports import refuse_export
from sideplug.readers.lamp import Lamp
from sideplug.readers.pairs import Pairs
from sideplug.readers.report import Report
from sideplug.readers.text import Text

AUTO = "auto"
_TRIED: tuple[Format, ...] = (Conversations(), Lamp(), Pairs(), Text())  # for "auto", in this order
_NAMED: dict[str, Format] = {
    "alpaca": Pairs(),
    "messages": Conversations(),
    "sharegpt": Conversations(),
    "text": Text(),
}
FORMATS = (AUTO, *_NAMED)


class UnknownRecord(DataError):
    """A record of no known format."""


def check_format(form: str) -> None:
    """Raises DataError for a format that does not exist."""
    if form not in FORMATS:
        raise DataError(f"--format must be one of {', '.join(FORMATS)}, got {form!r}")


def is_known(record: Record) -> bool:
    """Return whether a record is in a known format."""
    return any(each.fits(_with_small_keys(record)) for each in _TRIED)


def holds_records(record: Record) -> bool:
    """Return whether what looks like a conversation is a list of them: {"conversations": [{"messages": […]}, …]}."""
    lists = [record[name] for name in LISTS if isinstance(record.get(name), list)]
    return any(isinstance(each, dict) and is_known(each) for held in lists for each in held[:1])


def examples_of(rows: Iterable[Row], name: str, form: str, report: Report) -> Iterator[Example]:
    """Yield the examples of rows. What can't be learnt is counted in the report, each row with its line.

    Raises NotRead for a program's export, UnknownRecord where no row at all is in a known format.
    """
    bad, unknown, count = list[DataError](), 0, 0
    for number, row in enumerate(rows):
        where = f"{name}:{row.line}"
        if not number and form == AUTO:
            refuse_export(row.value, name)
        count += 1
        try:
            if isinstance(row.value, DataError):
                raise row.value
            check_characters(row.value, where)
            found = list(_examples(row.value, where, form, report))
            for example in found:
                check_example(example)
        except DataError as error:
            bad.append(error)
            unknown += isinstance(error, UnknownRecord)
        else:
            yield from found
    if unknown and unknown == count:
        raise bad[0]
    report.rows += count
    report.bad += map(str, bad)


def check_example(example: Example) -> None:
    """Raises DataError for an empty reply, and for a text that can't be sent."""
    if not example.reply.strip() and not example.greedy_tokens:
        raise DataError(f"{example.where}: the reply must not be empty")
    check_characters(example.to_json(), example.where)


def check_characters(value: object, where: str) -> None:
    """Raises DataError where a text in a JSON value has half of a character, which can't be sent."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: must be text, has half of a character (a lone \\ud800 to \\udfff)") from error


def _examples(value: object, where: str, form: str, report: Report) -> Iterator[Example]:
    if not isinstance(value, dict):
        raise UnknownRecord(f"{where}: an example must be a JSON object, got {kind_of(value)}")
    record = _with_small_keys(value)
    chosen = _NAMED.get(form) or next((each for each in _TRIED if each.fits(record)), None)
    if chosen is None:
        keys = ", ".join(map(printable, list(value)[:6])) or "none"
        raise UnknownRecord(
            f"{where}: an example must have instruction and output (or prompt and completion, question and answer), "
            f"messages, conversations or text; its keys: {keys}"
        )
    yield from chosen.examples(record, where, report)


def _with_small_keys(record: Record) -> Record:
    """Return a record with its keys in small letters: "Question" is question. Keys that would be one stay."""
    small = {str(key).strip().lower(): value for key, value in record.items()}
    return small if len(small) == len(record) else record
