"""Documents: the text of .docx and .pdf files, by python-docx and pypdf (the extra `files`).

A document may be anybody's, so it is parsed in a process of its own, with bounds on its size, memory and time.
Test: pytest tests/readers/test_documents.py
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from sideplug.contract.errors import DataError
from sideplug.readers.base import NotRead, Passage, Row
from sideplug.readers.report import Report
from sideplug.readers.text import plain_passages

MOST_BYTES = 64 << 20  # of a document, and of what its archive unpacks to
MOST_MEMORY = 2 << 30
MOST_S = 60  # seconds of the processor
PICTURES = "pages without text"
_REPEATED = 4  # pages from which on a line that most of them have is a head or a foot
_BROKEN = re.compile(r"(?<=\w)[\u00ad\u2010-]\n(?=[a-zà-öø-ÿ])")  # a word that the end of a line breaks


class Document:
    """Files of one program's documents."""

    def __init__(self, suffix: str, package: str) -> None:
        self.suffixes = (suffix,)
        self._package = package

    def read(self, data: bytes, name: str, report: Report) -> Iterator[Row | Passage]:
        """See FileFormat. Raises NotRead where the extra is not installed."""
        if importlib.util.find_spec(self._package) is None:
            raise NotRead(f"{name}: {self.suffixes[0]} files need the extra files: pip install 'sideplug[files]'")
        if len(data) > MOST_BYTES:
            raise DataError(f"{name} must have at most {MOST_BYTES >> 20} MB, got {len(data) >> 20}: save it as text")
        said = _parsed(self.suffixes[0], data, name)
        if "error" in said:
            raise DataError(f"{name} {said['error']}")
        report.left[PICTURES] += int(said.get("empty", 0))
        report.left = +report.left
        yield from (Passage(1, passage.text) for passage in plain_passages(str(said["text"])))


def _parsed(suffix: str, data: bytes, name: str) -> dict[str, Any]:
    """What the process of its own says of a document."""
    command = [sys.executable, "-m", "sideplug.readers.documents", suffix]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=2 * MOST_S, check=False)
        found = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        raise DataError(f"{name} takes more memory or time than a document may: save it as text") from None
    assert isinstance(found, dict)
    return found


def text_of_docx(data: bytes) -> dict[str, object]:
    """The paragraphs of a document, and its tables a row a line, in their order."""
    import docx
    from docx.table import Table

    try:
        size = sum(each.file_size for each in zipfile.ZipFile(io.BytesIO(data)).infolist())
        if size > MOST_BYTES:
            return {"error": f"must unpack to at most {MOST_BYTES >> 20} MB, it would to {size >> 20}: save it as text"}
        document = docx.Document(io.BytesIO(data))
    except Exception:
        return {"error": "is no .docx file, or is damaged or locked with a password"}
    blocks = list[str]()
    for block in document.iter_inner_content():
        if isinstance(block, Table):
            rows = [" ".join(dict.fromkeys(cell.text.strip() for cell in row.cells)) for row in block.rows]
            blocks.append("\n".join(row for row in rows if row.strip()))
        else:
            blocks.append(block.text.strip())
    return {"text": "\n\n".join(block for block in blocks if block)}


def text_of_pdf(data: bytes) -> dict[str, object]:
    """The text of its pages, without the heads and feet that most of them have."""
    import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            return {"error": "is locked with a password: save it without one in a PDF program"}
        pages = [page.extract_text() or "" for page in reader.pages]
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        if "cryptography" in str(error) or "PyCryptodome" in str(error):
            return {"error": "is locked: save it without a password in a PDF program"}
        return {"error": "is no PDF file, or is damaged"}
    empty = sum(not page.strip() for page in pages)
    if empty == len(pages):
        return {"error": "has no text: its pages are pictures; recognise their text first, for example with ocrmypdf"}
    return {"text": "\n\n".join(_without_frames(pages)), "empty": empty}


def _without_frames(pages: list[str]) -> Iterator[str]:
    """The pages without lines at their ends that most pages have, numbers aside; broken words joined."""
    split = [page.strip().split("\n") for page in pages]
    ends = [[_frame(line) for line in (*lines[:2], *lines[-2:])] for lines in split]
    count = Counter(line for lines in ends for line in set(lines) if line)
    frames = {line for line, n in count.items() if len(pages) >= _REPEATED and 2 * n > len(pages)}
    for lines in split:
        last = len(lines) - 2
        kept = [line for n, line in enumerate(lines) if 1 < n < last or _frame(line) not in frames]
        text = _BROKEN.sub("", "\n".join(line.rstrip() for line in kept))
        if text.strip():
            yield text


def _frame(line: str) -> str:
    return re.sub(r"\d+", "#", line.strip())


def main() -> None:
    """Parse standard input, a document of the type that is given, within bounds; say what it holds, as JSON."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_S, MOST_S))
    parsers: dict[str, Callable[[bytes], dict[str, object]]] = {".docx": text_of_docx, ".pdf": text_of_pdf}
    found = parsers[sys.argv[1]](sys.stdin.buffer.read())
    sys.stdout.buffer.write(json.dumps(found).encode())


if __name__ == "__main__":
    main()
