"""A table of a report: what its columns are, its rows as text, and a note that says what the figures are of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Table:
    """`note` says what the figures are of."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""
