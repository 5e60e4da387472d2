"""Tables: .csv and .tsv, whose first line names the columns. Each row is a record, as JSON has them.

Test: pytest tests/readers/test_tables_and_pages.py
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from sideplug.contract.errors import DataError
from sideplug.readers.base import Passage, Row
from sideplug.readers.decoding import decode
from sideplug.readers.report import Report

_SEPARATORS = ",;\t|"


class Table:
    """Files of comma-separated values, or separated by semicolons, tabs or bars."""

    suffixes = (".csv", ".tsv", ".tab")

    def read(self, data: bytes, name: str, report: Report) -> Iterator[Row | Passage]:
        """See FileFormat."""
        text = decode(data, name)
        head = next((line for line in text.split("\n") if line.strip()), "")
        separator = max(_SEPARATORS, key=head.count)
        csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        columns, end = list[str](), 0
        while True:
            line = end + 1
            try:
                fields = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(line, DataError(f"{name}:{line}: the table is broken from here on: {error}"))
                return
            end = lines.line_num
            if not any(field.strip() for field in fields):
                continue
            if not columns:
                columns = [field.strip() for field in fields]
                if len(set(columns)) < len(columns) or not all(columns):
                    raise DataError(f"{name}:{line}: the first line must name the columns, each once")
            elif len(fields) != len(columns):
                count = f"{len(columns)} fields, as the first line has"
                yield Row(line, DataError(f"{name}:{line}: the row must have {count}, got {len(fields)}"))
            else:
                yield Row(line, dict(zip(columns, fields, strict=True)))
