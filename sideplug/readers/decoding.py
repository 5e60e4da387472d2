"""Bytes to text: UTF-8, or what a byte order mark says; other encodings are refused, with how to convert.

Test: pytest tests/readers/test_decoding.py
"""

from __future__ import annotations

import codecs

from sideplug.contract.errors import DataError

_MARKS = (  # the marks of UTF-32 begin with those of UTF-16
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_BINARY = (
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a zip archive (as .docx, .odt and .epub are)"),
    (b"\xd0\xcf\x11\xe0", "an old Office document"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"SQLite format 3", "a database"),
)


def decode(data: bytes, name: str) -> str:
    r"""Return the text of a file, with \n at the ends of its lines. Raises DataError with name and line."""
    for start, what in _BINARY:
        if data.startswith(start):
            raise DataError(f"{name} is not text: it is {what}; export it as text first")
    mark = next((mark for mark in _MARKS if data.startswith(mark[0])), None)
    codec, called = (mark[1], mark[2]) if mark else ("utf-8", "UTF-8")
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as error:
        if mark and codec != "utf-8-sig":
            raise DataError(f"{name} must be whole {called}, as it begins: it is cut off or damaged") from error
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}:{line}: must be UTF-8 text, got the byte 0x{data[error.start]:02x}: save it as UTF-8 in its "
            f"program, or convert it, for example with iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{name}:{line}: must be text, got a zero byte: if it is UTF-16 without its mark, convert it with "
            f"iconv -f UTF-16LE -t UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")
