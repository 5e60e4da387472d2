"""Plain text and Markdown: files, or records {"text"}, cut into passages that are learnt as continuations.

Of a Markdown note the front matter is not learnt, and a wiki link [[page|words]] becomes its words.
Test: pytest tests/readers/test_text_files.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sideplug.contract.errors import DataError
from sideplug.contract.text import Prompt
from sideplug.readers.base import Example, Passage, Record, Row, count_unused, date_of, text_of
from sideplug.readers.decoding import decode
from sideplug.readers.passages import passages_of
from sideplug.readers.report import Report

FRONT_MATTER, EMBEDDED = "front matter of notes", "embedded files of notes"
_FRONT_MATTER = re.compile(r"(---|\+\+\+)[ \t]*\n(.*?)(?<=\n)(?:\1|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_SETTING = re.compile(r"[\w \"'./-]+\s*[:=]|\s*#|\s+\S|-\s|[\]\[{}]")  # what a line of front matter begins with
_WIKI_LINK = re.compile(r"(!?)\[\[([^\[\]|\n]+)(?:\|([^\[\]\n]*))?\]\]")
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`)", re.DOTALL)
_FILE = re.compile(r"\.(?:png|jpe?g|gif|webp|svg|bmp|avif|pdf|mp[34]|m4a|ogg|wav|webm|mov|mkv|flac|canvas|base)$", re.I)


class Text:
    """Records of text to be continued."""

    def fits(self, record: Record) -> bool:
        """See Format."""
        return "text" in record

    def examples(self, record: Record, where: str, report: Report) -> Iterator[Example]:
        """See Format."""
        text = text_of(record, "text", where)
        if not text.strip():
            raise DataError(f"{where}: text must not be empty")
        date = date_of(record)
        for _, passage in passages_of(text):
            yield Example(Prompt(text=""), passage, where, date=date)
        count_unused(record, ("text", *(("date",) if date else ())), report)


class PlainText:
    """Text files."""

    suffixes = (".txt", ".text", ".org", ".rst")

    def read(self, data: bytes, name: str, report: Report) -> Iterator[Row | Passage]:
        """See FileFormat."""
        yield from plain_passages(decode(data, name))


class Markdown:
    """Notes in Markdown."""

    suffixes = (".md", ".markdown")

    def read(self, data: bytes, name: str, report: Report) -> Iterator[Row | Passage]:
        """See FileFormat."""
        yield from note_passages(decode(data, name), report)


def plain_passages(text: str, first_line: int = 1) -> Iterator[Passage]:
    """Yield the passages of a text, each with its line."""
    line, counted = first_line, 0
    for at, passage in passages_of(text):
        line, counted = line + text.count("\n", counted, at), at
        yield Passage(line, passage)


def note_passages(text: str, report: Report) -> Iterator[Passage]:
    """Yield the passages of a note without its front matter, its links as words."""
    start = front_matter_end(text)
    report.left[FRONT_MATTER] += bool(start)
    for passage in plain_passages(text[start:], text.count("\n", 0, start) + 1):
        words = without_links(passage.text, report)
        if words.strip():
            yield Passage(passage.line, words)
    report.left = +report.left


def front_matter_end(text: str) -> int:
    """Return where a note begins behind its front matter (YAML or TOML); 0 where it has none."""
    match = _FRONT_MATTER.match(text)
    lines = [line for line in match[2].split("\n") if line.strip()] if match else []
    return match.end() if match and all(map(_SETTING.match, lines)) else 0


def without_links(text: str, report: Report) -> str:
    """Return a note's text with each wiki link as its words, but in code. Embedded pictures are counted, and go."""

    def words(match: re.Match[str]) -> str:
        embeds, target, shown = match.groups()
        if embeds and _FILE.search(target.split("#")[0].strip()):
            report.left[EMBEDDED] += 1
            return ""
        if shown and shown.strip() and not embeds:
            return shown.strip()
        page, _, heading = target.partition("#")
        heading = "" if heading.startswith("^") else heading.replace("#", " > ").strip()
        return " > ".join(part for part in (page.strip(), heading) if part)

    parts = _CODE.split(text)  # every other part is code
    return "".join(part if i % 2 else _WIKI_LINK.sub(words, part) for i, part in enumerate(parts))
