"""Days as people write them, and questions that ask for a day's notes and nothing else.

English month names, and YYYY-MM-DD. Test: pytest tests/memory/test_days.py
"""

from __future__ import annotations

import re
from datetime import date as Date

from sideplug.memory.words import words

_MONTHS = "January February March April May June July August September October November December"
MONTHS = _MONTHS.split()
_MONTH = "|".join(f"{name[:3]}(?:{name[3:]})?" if name != "May" else name for name in MONTHS)
_DAY = re.compile(
    r"\b(?P<iso>\d{4}-\d{2}-\d{2})\b"
    rf"|\b(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<month>{_MONTH})\b\.?(?:,? (?P<year>\d{{4}})\b)?"
    rf"|\b(?P<month2>{_MONTH})\b\.? (?P<day2>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,? (?P<year2>\d{{4}})\b)?",
    re.IGNORECASE,
)
# What a question for a day's notes has beside the day
_WORDS = (
    "what was were is did do i my me on the happen happened for about note notes noted write wrote diary entry have"
)
_REST = frozenset(f"{_WORDS} had there anything tell show of from that day we in".split())


def is_day(text: str) -> bool:
    """Return whether a text is a day as YYYY-MM-DD."""
    try:
        return Date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def in_words(date: str) -> str:
    """Return a day YYYY-MM-DD as people write it, then as it is; "" for none."""
    if not date:
        return ""
    day = Date.fromisoformat(date)
    return f"{day.day} {MONTHS[day.month - 1]} {day.year} {date}"


def asked_for(question: str) -> str:
    """Return the end of the date (YYYY-MM-DD, or -MM-DD without a year) whose notes a question asks for; else ""."""
    found = _DAY.search(question)
    if found is None or not set(words(question[: found.start()] + " " + question[found.end() :])) <= _REST:
        return ""
    if found["iso"]:
        return found["iso"]
    month, day, year = (found[name] or found[f"{name}2"] for name in ("month", "day", "year"))
    number = next(n for n, name in enumerate(MONTHS, 1) if name.lower().startswith(month[:3].lower()))
    return f"{year or ''}-{number:02}-{int(day):02}"
