"""The Alpaca format: {"instruction", "input"?, "output"}. LongLaMP's records have an input and no instruction.

It does not know files. Test: pytest tests/readers/test_files.py
"""

from __future__ import annotations

from collections.abc import Iterator

from sideplug.contract.errors import DataError
from sideplug.contract.text import Prompt
from sideplug.readers.base import Example, Record, text_of


class Alpaca:
    """Each record is one question and its answer."""

    name = "alpaca"

    def fits(self, record: Record) -> bool:
        """See Format."""
        return "output" in record

    def examples(self, record: Record, where: str) -> Iterator[Example]:
        """See Format."""
        has_input_only = "instruction" not in record and "input" in record
        instruction = text_of(record, "input" if has_input_only else "instruction", where)
        reply = text_of(record, "output", where)
        extra_input = "" if has_input_only else record.get("input") or ""
        if not isinstance(extra_input, str):
            raise DataError(f"{where}: input must be text, got {str(extra_input)[:40]!r}")
        if not reply.strip():
            raise DataError(f"{where}: output must not be empty")
        question = f"{instruction}\n\n{extra_input}" if extra_input.strip() else instruction
        yield Example(Prompt.user(question), reply, where)
