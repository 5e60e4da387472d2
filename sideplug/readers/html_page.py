"""Web pages: the text of .html files, without what a browser does not show.

Test: pytest tests/readers/test_tables_and_pages.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

from sideplug.contract.errors import DataError
from sideplug.readers.base import Passage, Row
from sideplug.readers.decoding import decode
from sideplug.readers.report import Report
from sideplug.readers.text import plain_passages

_UNSHOWN = ("head", "script", "style", "template", "noscript", "svg", "math", "select", "iframe", "object")
_BLOCKS = (
    *(
        "p",
        "div",
        "section",
        "article",
        "header",
        "footer",
        "main",
        "nav",
        "aside",
        "figure",
        "blockquote",
        "pre",
        "ul",
    ),
    *("ol", "dl", "table", "form", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "body", "address", "details", "fieldset"),
)
_LINES = ("br", "li", "tr", "dt", "dd", "summary", "option", "caption")
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)


class HtmlPage:
    """Web pages that were saved."""

    suffixes = (".html", ".htm", ".xhtml")

    def read(self, data: bytes, name: str, report: Report) -> Iterator[Row | Passage]:
        """See FileFormat."""
        yield from (Passage(1, passage.text) for passage in plain_passages(text_of_html(_decode(data, name))))


def _decode(data: bytes, name: str) -> str:
    """Return the text of a page: UTF-8, or what the page says. Raises DataError."""
    try:
        return decode(data, name)
    except DataError:
        said = _CHARSET.search(data[:4096])
        if said is None:
            raise
        try:
            return data.decode(said[1].decode("ascii"))
        except (LookupError, UnicodeDecodeError, ValueError):
            raise DataError(f"{name} says that it is {said[1].decode()}, but it is not") from None


def text_of_html(source: str) -> str:
    """Return what a browser would show of a page, a paragraph a block."""
    reader = _Reader()
    reader.feed(source)
    reader.close()
    return re.sub(r"\n{3,}", "\n\n", "".join(reader.parts)).strip()


class _Reader(HTMLParser):
    """Collects the shown text in `parts`."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unshown: list[str] = []
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a block or a line, or a part that is not shown."""
        if tag in _UNSHOWN:
            self._unshown.append(tag)
        elif tag == "body":
            self._unshown.clear()  # a head that was not closed
        if tag in _BLOCKS:
            self._break("\n\n")
        elif tag in _LINES:
            self._break("\n")
            if tag == "li":
                self.parts.append("- ")
        elif tag in ("td", "th") and self.parts and not self.parts[-1].endswith("\n"):
            self.parts.append(" ")
        self._pre += tag == "pre"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin and end at once."""
        if tag not in _UNSHOWN:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        """End a block, or a part that is not shown."""
        if tag in self._unshown:
            del self._unshown[self._unshown.index(tag) :]
        if tag in _BLOCKS:
            self._break("\n\n")
        self._pre -= tag == "pre" and self._pre > 0

    def handle_data(self, data: str) -> None:
        """Add text; outside of <pre> its spaces are one."""
        if self._unshown:
            return
        if not self._pre:
            data = re.sub(r"[ \t\n\r\f]+", " ", data)
            if not self.parts or self.parts[-1].endswith(("\n", " ")):
                data = data.lstrip(" ")
        if data:
            self.parts.append(data)

    def _break(self, ends: str) -> None:
        while self.parts and self.parts[-1].strip(" ") == "":
            self.parts.pop()
        if self.parts:
            self.parts[-1] = self.parts[-1].rstrip(" ")
            self.parts.append(ends)
