"""Encodings: what has a mark is read, what has none and is not UTF-8 is refused with the way out."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from sideplug.contract.errors import DataError
from sideplug.readers import read

TEXT = "Um café na horta.\n\nE água."
MARKED = {
    "UTF-8": TEXT.encode(),
    "UTF-8 with its mark": TEXT.encode("utf-8-sig"),
    "UTF-16": codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
    "UTF-16, big end first": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "UTF-32": codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
    "UTF-32, big end first": codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
    "Windows' ends of lines": TEXT.replace("\n", "\r\n").encode("utf-16"),
    "an old Macintosh's": TEXT.replace("\n", "\r").encode(),
}
REFUSED = {
    "Latin-1": (TEXT.encode("latin-1"), r":1: must be UTF-8 text, got the byte 0xe9: .*iconv -f WINDOWS-1252 -t UTF-8"),
    "line 3": (b"one\n\ntwo \xff\n", r":3: must be UTF-8 text, got the byte 0xff"),
    "UTF-16 without its mark": (
        "plain words".encode("utf-16-le"),
        r":1: must be text, got a zero byte: .*iconv -f UTF-16LE",
    ),
    "UTF-16 cut off": (codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le")[:-1], "must be whole UTF-16"),
    "a PDF": (b"%PDF-1.7 \xe2\xe3", "is not text: it is a PDF; export it as text first"),
    "a zip archive": (b"PK\x03\x04\x14\x00", "is not text: it is a zip archive"),
}


@pytest.mark.parametrize("data", MARKED.values(), ids=MARKED.keys())
def test_read(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    (only,) = read(tmp_path / "a.txt")
    assert only.reply == TEXT


@pytest.mark.parametrize(("data", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=says):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_and_tables_too(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"question": "Água?", "answer": "Sim."}\n'.encode(encoding))
    (tmp_path / "b.csv").write_bytes("question,answer\nÁgua?,Sim.\n".encode(encoding))
    for name in ("a.jsonl", "b.csv"):
        (only,) = read(tmp_path / name)
        assert ((only.prompt.messages or ())[0]["content"], only.reply) == ("Água?", "Sim.")
