"""Formats that are known and not read: each is refused by its name, with the way out.

Test: pytest tests/readers/test_tables_and_pages.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sideplug.readers.base import NotRead

_TEXT = "save it as text (.txt, .md) or as a web page (.html) in its program"
_CHATS = 'make a line of JSON of each conversation, {"messages": [{"role", "content"}, …]}'
WAYS_OUT = {
    **dict.fromkeys((".doc", ".odt", ".rtf", ".pages", ".wpd"), _TEXT),
    **dict.fromkeys((".epub", ".mobi", ".azw3"), "convert it to text (.txt), for example with pandoc or Calibre"),
    **dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), "save its sheet as .csv, with columns question and answer"),
    **dict.fromkeys((".parquet", ".arrow", ".feather"), "save it as JSON lines (.jsonl)"),
    **dict.fromkeys((".zip", ".gz", ".tgz", ".tar", ".7z", ".rar", ".bz2", ".xz", ".zst", ".jex"), "unpack it first"),
    **dict.fromkeys((".pst", ".ost", ".msg"), "export it as .mbox or .eml in its program"),
    **dict.fromkeys((".enex", ".one", ".bear2bk", ".apkg"), "export its notes as Markdown (.md) or .html"),
    ".ipynb": "save it as Markdown, for example with jupyter nbconvert --to markdown",
    **dict.fromkeys((".sqlite", ".sqlite3", ".db", ".crypt14", ".crypt15"), _CHATS),
    ".xml": "save it as text (.txt) or .html",
    ".js": _CHATS,
}


@dataclass(frozen=True)
class Export:
    """A program's export of JSON. shows: whether a record, or the object that the file is, is of it."""

    name: str
    shows: Callable[[dict[str, Any]], bool]
    way_out: str = _CHATS


def _has(*keys: str) -> Callable[[dict[str, Any]], bool]:
    return lambda record: all(key in record for key in keys)


def _holds(name: str, *keys: str) -> Callable[[dict[str, Any]], bool]:
    """Whether a list under this name begins with an object that has these keys."""

    def shows(record: dict[str, Any]) -> bool:
        items = record.get(name)
        first = items[0] if isinstance(items, list) and items else None
        return isinstance(first, dict) and all(key in first for key in keys)

    return shows


_WHO, _WHEN = {"from", "sender", "sender_name", "speaker"}, {"date", "time", "timestamp", "datetime", "ts"}
_WORDS = {"text", "message", "body", "content"}
EXPORTS = (
    Export("Google's export of Gemini", _has("titleUrl", "time")),
    Export("Google's export of activities", _has("header", "title", "time")),
    Export("Discord's export", _has("guild", "channel", "messages")),
    Export("Facebook's or Instagram's export", _holds("messages", "sender_name")),
    Export("Google Chat's export", _holds("messages", "creator")),
    Export("Google Keep's note", _has("textContent", "userEditedTimestampUsec"), "export it as .html, which is read"),
    Export("Matrix's export", lambda record: record.get("type") == "m.room.message"),
    Export("Day One's journal", _holds("entries", "text", "creationDate"), "export it as plain text (.txt)"),
    Export("X's export", lambda record: isinstance(record.get("tweet"), dict), 'make lines of JSON, {"text": …}'),
    Export(
        "a table of people's messages", lambda record: all(names & record.keys() for names in (_WHO, _WHEN, _WORDS))
    ),
)


def refuse_suffix(suffix: str, name: str) -> None:
    """Raises NotRead for a file whose suffix says that it is of a format that is known and not read."""
    if suffix in WAYS_OUT:
        raise NotRead(f"{name}: files of the type {suffix} are not read yet: {WAYS_OUT[suffix]}")


def refuse_export(value: object, name: str) -> None:
    """Raises NotRead for a program's export, which a record or a whole file is."""
    record = {str(key).lower(): held for key, held in value.items()} if isinstance(value, dict) else {}
    record = {**record, **value} if isinstance(value, dict) else {}
    known = next((export for export in EXPORTS if export.shows(record)), None)
    if known:
        raise NotRead(f"{name} is {known.name}, which is not read yet: {known.way_out}")


def refuse_chat_text(text: str, name: str) -> None:
    """Raises NotRead for X's export, a script."""
    if text.startswith("window.YTD."):
        raise NotRead(f"{name} is X's export, which is not read yet: {_CHATS}")
