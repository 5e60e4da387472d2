"""Plain text: {"text"} records or a text file, divided into passages of whole paragraphs.

It does not know files. Test: pytest tests/readers/test_files.py
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from sideplug.contract.errors import DataError
from sideplug.contract.text import Prompt
from sideplug.readers.base import Example, Record, text_of

PASSAGE_WORDS = 150


class Text:
    """Records of text to be continued."""

    name = "text"

    def fits(self, record: Record) -> bool:
        """See Format."""
        return "text" in record

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """See Format."""
        text = text_of(record, "text", where)
        if not text.strip():
            raise DataError(f"{where}: text must not be empty")
        for passage in passages_of(text):
            yield Example(Prompt(text=""), passage, where)


def plain_text(text: str, name: str) -> Iterator[Example]:
    """Yield the passages of a text file as examples, each with its line."""
    at = 0
    for passage in passages_of(text):
        at = max(at, text.find(passage[:40].split("\n")[0], at))
        yield Example(Prompt(text=""), passage, f"{name}:{text.count(chr(10), 0, at) + 1}")


def passages_of(text: str, words: int = PASSAGE_WORDS) -> Iterator[str]:
    """Yield passages of about `words` words: whole paragraphs if they fit; long ones are divided between sentences."""
    for passage in _packed(_pieces(text, words), words):
        yield "\n\n".join(passage)


def _pieces(text: str, words: int) -> Iterator[str]:
    """Yield each paragraph in pieces of whole sentences, of at most `words` words unless one sentence is longer."""
    for paragraph in re.split(r"\n\s*\n", text):
        sentences = re.split(r"(?<=[.!?;:])\s+", re.sub(r"\s+", " ", paragraph).strip())
        for piece in _packed(sentences, words):
            yield " ".join(piece)


def _packed(texts: Iterable[str], words: int) -> Iterator[list[str]]:
    """Yield runs of these texts, in order, of at most `words` words unless one text is longer; empty ones are left."""
    run: list[str] = []
    count = 0
    for text in texts:
        size = len(text.split())
        if not size:
            continue
        if run and count + size > words:
            yield run
            run, count = [], 0
        run.append(text)
        count += size
    if run:
        yield run
