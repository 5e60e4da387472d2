"""What became of the files and rows that a person gave, beside the examples: nothing of them disappears silently.

It does not know formats. Test: pytest tests/readers/test_fields.py
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sideplug.contract.errors import DataError

Tell = Callable[[str], None]  # is given a sentence for the person
SHOWN = 3  # bad rows that are named, files of a kind that are named
KINDS = 8  # reasons or fields in one line


@dataclass
class Report:
    """What is told of a reading. Each counter counts by the words that are shown.

    files: that were read. rows: records, texts and files that were looked at. bad: a sentence, with file and line, for
    each that can't be learnt. passed: files that were not read, by why. unread: sentences on files of a format that is
    not read. fields: fields that are not used. left: what of the rows is not learnt.

    Of conversations: me: who the person is, where that was said. writers: messages by who wrote them. mine: those of
    the person. names: of accounts, by their ids. talks: what is yet to be turned into examples.
    """

    files: int = 0
    rows: int = 0
    bad: list[str] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)
    unread: list[str] = field(default_factory=list)
    fields: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    me: str = ""
    writers: Counter[str] = field(default_factory=Counter)
    mine: Counter[str] = field(default_factory=Counter)
    talks: list[Any] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def beside(self, **more: Any) -> Report:
        """A report of its own for one of many files, which is added later."""
        return Report(me=self.me, names=self.names, **more)

    def add(self, other: Report) -> None:
        """Add what another report has."""
        self.files, self.rows = self.files + other.files, self.rows + other.rows
        self.bad += other.bad
        self.unread += other.unread
        self.talks += other.talks
        for name in ("passed", "fields", "left", "writers", "mine"):
            getattr(self, name).update(getattr(other, name))

    def refuse_bad(self, skip_bad: bool) -> None:
        """Raises DataError where rows can't be learnt, unless those are to be left out."""
        if self.bad and not skip_bad:
            raise DataError(refusal(self.bad, self.rows))

    def sentences(self) -> Iterator[str]:
        """Yield what is to be told, a line each; nothing where all that was given is learnt."""
        passed = self.passed.total()
        if passed:
            read = f"{self.files} file{'s' * (self.files != 1)} read"
            yield f"{read}; {passed} passed over: {_listed(f'{n} {why}' for why, n in self.passed.most_common())}"
        yield from self.unread[:SHOWN]
        if len(self.unread) > SHOWN:
            yield f"and {len(self.unread) - SHOWN} more such files"
        if self.fields:
            used = _listed(f"{name} ({n} row{'s' * (n != 1)})" for name, n in self.fields.most_common())
            yield f"fields that are not used: {used}"
        if self.mine:
            whose = _listed(f"{name} ({n:,})" for name, n in self.mine.most_common())
            yield f"your own words are the messages of {whose}, of {self.writers.total():,} in all; --me changes that"
        if self.left:
            yield f"not learnt: {_listed(f'{what} ({n})' for what, n in self.left.most_common())}"
        if self.bad:
            yield f"left out: {len(self.bad)} of {self.rows} rows: {first_of(self.bad)}"


def refusal(bad: list[str], rows: int) -> str:
    """Return the sentence that refuses `bad` rows, of so many."""
    way_out = "correct or remove this; --skip-bad leaves such rows out"
    if len(bad) == 1:
        return f"{bad[0]} ({way_out})"
    return f"{len(bad)} of {rows} rows can't be learnt: {first_of(bad)} ({way_out.replace('this', 'them')})"


def first_of(bad: list[str]) -> str:
    """Return the first few sentences as one."""
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return "; ".join(bad[:SHOWN]) + more


def _listed(parts: Iterator[str]) -> str:
    shown = list(parts)
    more = [f"{len(shown) - KINDS} more kinds"] if len(shown) > KINDS else []
    return ", ".join([*shown[:KINDS], *more])
