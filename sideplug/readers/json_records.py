"""The records of a JSON file, which is an array, JSON lines, or one object over several lines.

It does not know formats of records. Test: pytest tests/readers/test_files.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from sideplug.contract.errors import DataError


def records(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of each element of a JSON array, or of each of the JSON lines. Raises DataError."""
    stripped = text.lstrip()
    if not stripped.startswith("["):
        try:  # one object over several lines is one record
            yield 1, json.loads(text)
            return
        except ValueError:
            pass
        for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also cut inside JSON strings
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise DataError(f"{name}:{number}: this line is not JSON: {error}") from error
        return
    decoder = json.JSONDecoder()
    spaces = re.compile(r"\s*")

    def skip(position: int) -> int:
        return spaces.match(text, position).end()  # type: ignore[union-attr]

    at = skip(text.index("[") + 1)
    number, counted = 1, 0
    while at < len(text) and text[at] != "]":
        number, counted = number + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise DataError(f"{name}:{error.lineno}: not JSON: {error.msg}") from error
        yield number, value
        at = skip(at)
        if text[at : at + 1] == ",":
            at = skip(at + 1)
        elif text[at : at + 1] != "]":
            number = text.count("\n", 0, at) + 1
            raise DataError(f"{name}:{number}: the array must go on with a comma or end with ]")
    if at >= len(text):
        raise DataError(f"{name}:{text.count(chr(10)) + 1}: the array is cut off: it must end with ]")
