"""Text cut into passages, in any script: at blank lines, else line breaks, sentence ends, spaces, at last anywhere.

A passage is a slice of the text, so its line breaks and indentation are the person's. Only prose whose lines an editor
broke is joined again. It does not know files. Test: pytest tests/readers/test_passages.py
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator

# Of a passage, in UTF-8: some 150 English words, 300 Chinese characters. No tokenizer of bytes makes more tokens of it.
PASSAGE_BYTES = 900
WRAPPED_WIDTH = 40  # columns: prose whose lines an editor broke is at least so wide
# Unicode's Sentence_Terminal (PropList.txt), and the ellipsis. Behind those of the first group follows a space.
_SPACED = (
    ".!?…\u203c\u203d\u2047-\u2049\u2cf9-\u2cfb\u2e2e\u2e3c\u2e53\u2e54\u0589\u061d-\u061f\u06d4\u0700-\u0702\u07f9"
    "\u0837\u0839\u083d\u083e\u0964\u0965\u1362\u1367\u1368\u166e\u1735\u1736\u1803\u1809\u1944\u1945\u1b5a\u1b5b\u1b5e"
    "\u1b5f\u1b7d\u1b7e\u1c3b\u1c3c\u1c7e\u1c7f\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f\uaaf0\uaaf1"
    "\uabeb\U00010a56\U00010a57\U00010f55-\U00010f59\U00010f86-\U00010f89\U00011047\U00011048\U000110be-\U000110c1"
    "\U00011141-\U00011143\U000111c5\U000111c6\U000111cd\U000111de\U000111df\U00011238\U00011239\U0001123b\U0001123c"
    "\U000112a9\U0001144b\U0001144c\U000115c2\U000115c3\U000115c9-\U000115d7\U00011641\U00011642\U0001173c-\U0001173e"
    "\U00011944\U00011946\U00011a42\U00011a43\U00011a9b\U00011a9c\U00011c41\U00011c42\U00011ef7\U00011ef8\U00011f43"
    "\U00011f44\U00016a6e\U00016a6f\U00016af5\U00016b37\U00016b38\U00016b44\U00016e98\U0001bc9f\U0001da88"
)
_UNSPACED = (
    "\u3002\uff01\uff1f\uff61\uff0e\ufe12\ufe15\ufe16\ufe52\ufe56\ufe57\u104a\u104b\u17d4\u17d5\u1aa8-\u1aab\ua9c8\ua9c9"
    "\uaa5d-\uaa5f\u0f0d-\u0f11\u1801"
)
_CLOSING = "\"'”’»›)\\]}」』】）》〉〕"
_BREAKS = (  # where a text is cut, the best places first: each piece ends with what matches
    re.compile(r"\n(?:[ \t]*\n)+"),
    re.compile(r"\n"),
    re.compile(rf"[{_SPACED}]+[{_CLOSING}]*\s+|[{_UNSPACED}]+[{_CLOSING}]*\s*"),
    re.compile(r"[;:,—\u060c\u061b]\s+|[、，；：]\s*"),
    re.compile(r"\s+"),
)
_MARKED = re.compile(r"\s|[-*+>#|•–]|\d+[.)]|\[|```|~~~|\w+::?\s*$")  # begins a line that stands for itself
_FENCE = re.compile(r"^(```|~~~)", re.MULTILINE)


def passages_of(text: str, size: int = PASSAGE_BYTES) -> Iterator[tuple[int, str]]:
    """Yield (offset in the text, passage) of passages of at most `size` bytes. Nothing but blank ends is left out.

    Behind a passage that the text goes on after, one character of the white space between stays: the text does not end
    there, and a plugin must not learn that it does.
    """
    at, end = 0, len(text.rstrip())
    for run in _packed(_pieces(joined(text), size, 0), size):
        passage = run.rstrip()
        if at + len(passage) < end:
            passage = run[: len(passage) + 1]
        start = re.match(r"(?:[^\S\n]*\n)*", passage)  # blank lines before it, not its indentation
        skipped = start.end() if start else 0
        if passage.strip():
            yield at + skipped, passage[skipped:]
        at += len(run)


def joined(text: str) -> str:
    """Return the text with the lines of wrapped prose joined by spaces; it has the same length."""
    parts, at, is_code = list[str](), 0, False
    for match in _BREAKS[0].finditer(text + "\n\n"):
        paragraph = text[at : match.start()]
        fences = len(_FENCE.findall(paragraph))
        lines = paragraph.strip("\n")
        is_prose = not is_code and not fences and _is_wrapped(lines)
        parts.append(paragraph.replace(lines, lines.replace("\n", " ")) if is_prose else paragraph)
        parts.append(text[match.start() : match.end()])
        is_code ^= fences % 2 == 1
        at = match.end()
    return "".join(parts)


def _is_wrapped(paragraph: str) -> bool:
    """Return whether an editor broke these lines: none has room for the first word of the next."""
    lines = paragraph.split("\n")
    width = max(map(len, lines))
    if len(lines) < 2 or width < WRAPPED_WIDTH or any(_MARKED.match(line) for line in lines):
        return False
    if any(line.endswith(("  ", "\\")) for line in lines[:-1]):  # Markdown's hard breaks
        return False
    return all(len(line) + 1 + len(after.split(maxsplit=1)[0]) > width for line, after in itertools.pairwise(lines))


def _pieces(text: str, size: int, level: int) -> Iterator[str]:
    """Yield the text in pieces of at most `size` bytes, which together are the text."""
    if len(text.encode()) <= size:
        yield text
    elif level == len(_BREAKS):
        yield from _characters(text, size)
    else:
        at = 0
        for match in _BREAKS[level].finditer(text):
            yield from _pieces(text[at : match.end()], size, level + 1)
            at = match.end()
        if at < len(text):
            yield from _pieces(text[at:], size, level + 1)


def _characters(text: str, size: int) -> Iterator[str]:
    """Yield pieces of a text without spaces; a mark stays with the character before it."""
    piece, count = "", 0
    for character in text:
        length = len(character.encode())
        if count + length > size and not unicodedata.category(character).startswith("M") and character != "\u200d":
            yield piece
            piece, count = "", 0
        piece, count = piece + character, count + length
    yield piece


def _packed(pieces: Iterator[str], size: int) -> Iterator[str]:
    """Yield runs of these pieces, in order, of at most `size` bytes."""
    run, count = list[str](), 0
    for piece in pieces:
        length = len(piece.rstrip().encode())
        if run and count + length > size:
            yield "".join(run)
            run, count = [], 0
        run.append(piece)
        count += len(piece.encode())
    if run:
        yield "".join(run)
