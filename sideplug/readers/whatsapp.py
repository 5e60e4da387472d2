"""WhatsApp's export of a chat: lines of text, whose dates are written as the phone's language writes them.

    [31/12/2023, 21:41:07] Anna: happy new year          an iPhone's
    31.12.23, 21:41 - Anna: happy new year               an Android phone's

Which number is the day is seen by the numbers that can be no month. Where none shows it, days are not kept.
Test: pytest tests/readers/test_talks.py
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import PurePath

from sideplug.contract.errors import DataError
from sideplug.readers.report import Report
from sideplug.readers.talks import Said, Talk

NO_TEXT = "pictures and other files of chats"
MARKS = "\u200e\u200f\u202a-\u202e\u2066-\u2069"
_STAMP = re.compile(
    rf"[{MARKS}]*\[?(?P<day>\d{{1,4}}[./-]\s?\d{{1,2}}[./-]\s?\d{{2,4}})\.?[^\d\n\[\]]{{0,12}}?"
    r"(?P<hour>\d{1,2})[:.h](?P<minute>\d{2})(?:[:.]\d{2})?(?P<half>[^\n\]:]{0,12}?)(?:\] ?| [-–] )(?P<rest>[^\n]*)"
)
_WHO = re.compile(rf"[{MARKS}~\u202f\u00a0 ]*(?P<who>[^\n:]{{1,60}}?): (?P<text>.*)", re.DOTALL)
_OMITTED = re.compile(
    rf"[{MARKS}]*(?:<[^<>\n]{{1,40}}>|[^\n]{{1,24}} omitted|[^\n]{{1,60}}\.\w{{2,4}} \([^\n()]{{3,30}}\))[{MARKS}]*"
)
_ATTACHED = re.compile(rf"[{MARKS}]+|<(?:attached|Anhang|adjunto|pièce jointe): ")
_NAMED = re.compile(r"_?whats\s?app", re.IGNORECASE)  # how such a file's name begins


def is_whatsapp(text: str, name: str) -> bool:
    """Whether most of the first lines begin with a moment and a name. Raises DataError for a chat of unknown dates."""
    lines = [line for line in text[:8000].split("\n") if line.strip()][:60]
    stamped = [match for match in map(_STAMP.match, lines) if match]
    said = sum(bool(_WHO.fullmatch(match["rest"])) for match in stamped)
    if len(lines) > 1 and said >= 2 and 2 * len(stamped) > len(lines):
        return True
    if _NAMED.match(PurePath(name).name) and lines and not stamped:
        raise DataError(
            f"{name}:1: a WhatsApp chat must begin its lines with a day and a time in digits, got "
            f"{lines[0][:40]!r}: export it with the phone set to English, or give --format text"
        )
    return False


def talk_of(text: str, name: str, report: Report) -> Talk:
    """The talk of a chat's export. In a chat of two that is named after one, the person is the other."""
    found = list[tuple[re.Match[str], int, list[str]]]()
    for number, line in enumerate(text.split("\n"), 1):
        stamp = _STAMP.match(line)
        if stamp:
            found.append((stamp, number, [stamp["rest"]]))
        elif found:
            found[-1][2].append(line)
    is_day_first = _day_first([stamp["day"] for stamp, _, _ in found])
    said = list[Said]()
    for stamp, number, lines in found:
        message = _WHO.fullmatch("\n".join(lines))
        if message is None:
            continue  # the program's own: who was added, that messages are encrypted
        words = message["text"].strip().strip("\u200e\u200f")
        if not words or _OMITTED.fullmatch(message["text"].strip()) or _ATTACHED.match(message["text"]):
            report.left[NO_TEXT] += 1
            continue
        said.append(Said(" ".join(message["who"].split()), words, number, _moment(stamp, is_day_first)))
    return Talk(tuple(said), _me(said, PurePath(name).name))


def _me(said: list[Said], name: str) -> str:
    people = {each.who for each in said}
    named = {who for who in people if re.search(rf"(?<!\w){re.escape(who)}(?!\w)", name)}
    return next(iter(people - named)) if len(people) == 2 and len(named) == 1 else ""


def _day_first(days: list[str]) -> bool | None:
    """Whether the day stands before the month; None where nothing shows it."""
    numbers = [[int(part) for part in re.findall(r"\d+", day)] for day in days]
    if any(first > 31 for first, _, _ in numbers):
        return False  # the year is first, and the month behind it
    if any(first > 12 for first, _, _ in numbers):
        return True
    if any(second > 12 for _, second, _ in numbers):
        return False
    return True if days and all("." in day for day in days) else None


def _moment(stamp: re.Match[str], is_day_first: bool | None) -> datetime | None:
    first, second, third = (int(part) for part in re.findall(r"\d+", stamp["day"]))
    half = stamp["half"].replace(".", "").replace("\u202f", " ").strip().casefold()
    hour = int(stamp["hour"]) % 12 + 12 * (half == "pm") if half in ("am", "pm") else int(stamp["hour"])
    if first > 31:
        year, month, day = first, second, third
    elif is_day_first is None:
        return None
    else:
        day, month, year = (first, second, third) if is_day_first else (second, first, third)
    try:
        return datetime(year + 2000 * (year < 100), month, day, hour, int(stamp["minute"]))
    except ValueError:
        return None
