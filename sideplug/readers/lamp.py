"""LaMP and LongLaMP: each record is a user's question, its output, and the user's profile: what that user wrote before.

LaMP has its outputs in a second file, X_outputs.json beside X_questions.json. The profile's entries are examples too:
in the question's own words where it has some of the kind ("Generate a headline for the following article: …"), else as
text. `users` tells whose an example is. Test: pytest tests/readers/test_lamp.py
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sideplug.contract.errors import DataError
from sideplug.contract.message import kind_of
from sideplug.contract.text import Prompt
from sideplug.readers.base import Example, Record, Row, count_unused, printable, text_of
from sideplug.readers.passages import passages_of
from sideplug.readers.report import Report

PROFILE, USER = "profile", ("user_id", "user", "author")
_ITEMS = ("text", "description", "reviewText", "abstract")  # of an entry: what is asked about
_LABELS = ("category", "tag", "score", "title", "summary", "overall")  # of an entry: what the user made of it
# What comes before the item in a question: "… for the following article: <the article>".
_ASKS = re.compile(
    r"(.*?\b(?:description|article|review|paper|abstract|email|e-mail|tweet|post|text)\b[^:.?\n]{0,60}:)\s", re.DOTALL
)


@dataclass
class LampUser:
    """One user: examples from the profile, to learn from, and the questions with their outputs, to be judged by."""

    name: str
    profile: list[Example] = field(default_factory=list)
    questions: list[Example] = field(default_factory=list)


class Lamp:
    """Records with a profile."""

    def fits(self, record: Record) -> bool:
        """See Format."""
        return PROFILE in record and "input" in record

    def examples(self, record: Record, where: str, report: Report) -> Iterator[Example]:
        """See Format."""
        question = _question(record, where)
        count_unused(record, ("id", "input", "output", PROFILE, *USER), report)
        yield from _profile(record, where)
        yield question


def users(rows: Iterable[tuple[str, Row]]) -> list[LampUser]:
    """Return the users of LaMP's records, of (where, row): by their id, or by equal profiles. Raises DataError."""
    found: dict[str, LampUser] = {}
    for where, row in rows:
        record = row.value
        who = next((str(record[key]) for key in USER if record.get(key) is not None), None)
        if who is None:
            said = json.dumps(record[PROFILE], sort_keys=True) if record[PROFILE] else where
            who = hashlib.sha256(said.encode()).hexdigest()[:8]
        user = found.setdefault(who, LampUser(who))
        known = [example.to_json() for example in user.profile]
        user.profile += [each for each in _profile(record, where) if each.to_json() not in known]
        user.questions.append(_question(record, where))
    return list(found.values())


def _question(record: Record, where: str) -> Example:
    reply = record.get("output")
    reply = str(reply) if isinstance(reply, (int, float)) and not isinstance(reply, bool) else reply
    if not isinstance(reply, str):
        raise DataError(f"{where}: output must be text, got {kind_of(reply)}")
    return Example(Prompt.user(text_of(record, "input", where)), reply, where)


def _profile(record: Record, where: str) -> Iterator[Example]:
    """Yield an example for each entry of a record's profile. Raises DataError."""
    entries = record[PROFILE]
    if entries is not None and not isinstance(entries, list):
        raise DataError(f"{where}: profile must be a list, got {kind_of(entries)}")
    asks = _ASKS.match(text_of(record, "input", where))
    for number, entry in enumerate(entries or [], 1):
        if not isinstance(entry, dict):
            raise DataError(f"{where}: the profile's entry {number} must be an object, got {kind_of(entry)}")
        item = next((str(entry[key]) for key in _ITEMS if entry.get(key)), "")
        label = next((str(entry[key]) for key in _LABELS if entry.get(key) not in (None, "")), "")
        if not (item or label):
            keys = ", ".join(map(printable, list(entry)[:6])) or "none"
            raise DataError(
                f"{where}: the profile's entry {number} must have text, abstract or description; it has {keys}"
            )
        if asks and item and label:
            yield Example(Prompt.user(f"{asks[1]} {item}"), label, where)
        else:
            for _, passage in passages_of("\n\n".join(part for part in (label, item) if part)):
                yield Example(Prompt(text=""), passage, where)


def outputs_of(file: Path) -> Path | None:
    """Return the path of X_outputs.json if `file` is X_questions.json and both exist, else None."""
    other = file.with_name(file.name.replace("questions", "outputs"))
    return other if file.suffix.lower() == ".json" and other != file and other.is_file() else None


def golds(file: Path) -> dict[str, Any]:
    """Return the outputs of an outputs file by id. Raises DataError."""
    try:
        return {str(gold["id"]): gold["output"] for gold in json.loads(file.read_bytes())["golds"]}
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f'{file} must be {{"golds": [{{"id", "output"}}, …]}}, as LaMP has it') from error


def with_output(row: Row, outputs: dict[str, Any], outputs_name: str, where: str) -> Row:
    """Return a question's row with its output. Raises DataError where there is none of its id."""
    if not isinstance(row.value, dict):
        return row
    key = str(row.value.get("id"))
    if key not in outputs:
        return Row(row.line, DataError(f"{where}: {outputs_name} has no output for the id {key[:40]!r}"))
    return Row(row.line, {PROFILE: [], **row.value, "output": outputs[key]})
