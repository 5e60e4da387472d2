"""{"instruction", "input"?, "output"}, as Alpaca has it; LongLaMP's records have an input and no instruction."""

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
        alone = "instruction" not in record and "input" in record
        instruction = text_of(record, "input" if alone else "instruction", where)
        reply = text_of(record, "output", where)
        given = "" if alone else record.get("input") or ""
        if not isinstance(given, str):
            raise DataError(f"{where}: input must be text, got {type(given).__name__}")
        if not reply.strip():
            raise DataError(f"{where}: output must not be empty")
        yield Example(Prompt.user(f"{instruction}\n\n{given}" if given.strip() else instruction), reply, where)
