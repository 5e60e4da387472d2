"""It turns a person's files and folders into examples: `read` takes a path, `read_files` the bytes of files by name.

A folder stands for its files, in the order of their names. Whatever is not learnt of them is told, in sentences.
A new format of files is a module with a `FileFormat` and its place here. Test: pytest tests/readers/test_files.py
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePath

from sideplug.contract.errors import DataError
from sideplug.contract.text import Prompt
from sideplug.readers import lamp, talks
from sideplug.readers.base import Example, FileFormat, NotRead, Passage, Row, printable
from sideplug.readers.chat_json import account_names
from sideplug.readers.decoding import decode
from sideplug.readers.documents import Document
from sideplug.readers.exports import WAYS_OUT, refuse_chat_text, refuse_suffix
from sideplug.readers.folder import EMPTY, files_in, shown
from sideplug.readers.html_page import HtmlPage
from sideplug.readers.json_file import JsonFile
from sideplug.readers.lamp import LampUser
from sideplug.readers.mail import Mail, Mailbox
from sideplug.readers.records import AUTO, UnknownRecord, check_format, examples_of
from sideplug.readers.redact import check_kinds, redacted
from sideplug.readers.report import Report, Tell
from sideplug.readers.table import Table
from sideplug.readers.talks import Talk
from sideplug.readers.text import Markdown, PlainText
from sideplug.readers.whatsapp import is_whatsapp, talk_of

_FILES: tuple[FileFormat, ...] = (JsonFile(), Table(), PlainText(), Markdown(), HtmlPage(), Mail(), Mailbox())
_FILES += (Document(".docx", "docx"), Document(".pdf", "pypdf"))
_BY_SUFFIX = {suffix: each for each in _FILES for suffix in each.suffixes}
SUFFIXES = tuple(_BY_SUFFIX)
_log = logging.getLogger("sideplug.readers")


class Empty(DataError):
    """A file, or all that was given, without anything to learn."""


def read(
    path: Path,
    form: str = AUTO,
    skip: Path | None = None,
    skip_bad: bool = False,
    tell: Tell = _log.warning,
    me: str = "",
    redact: Collection[str] = (),
) -> list[Example]:
    """Return all examples of a file or folder, without those in the folder `skip`.

    skip_bad: leave out rows that can't be learnt. tell: is given a sentence on each kind of thing that is passed over.
    me: whose words of conversations are learnt, by name or address; "": who it is, is seen in the file, or asked for.
    redact: what is put out of sight, of redact.KINDS. Raises DataError with file and line, for all rows that can't be
    learnt at once.

    >>> [example.reply for example in sideplug.read(notes)]
    ['The mill stands by the river.']
    """
    check_format(form)
    check_kinds(redact)
    report = Report(me=me)
    if path.is_dir():
        examples = list(_read_folder(path, form, skip, report))
    elif path.exists():
        report.files += 1
        try:
            examples = list(_read_file(path, form, report))
        except OSError as error:
            raise DataError(f"{shown(path)} can't be read: {error.strerror or error}") from error
    else:
        raise DataError(f"there is no file or folder {shown(path)}")
    examples = _finished(examples, report, skip_bad, redact, tell)
    if not examples:
        raise Empty(_nothing(path, report))
    return examples


def read_files(
    files: Sequence[tuple[str, bytes]],
    form: str = AUTO,
    skip_bad: bool = False,
    tell: Tell = _log.warning,
    me: str = "",
    redact: Collection[str] = (),
) -> list[Example]:
    """Return the examples of (name, bytes), each as `read` would read a file of this name. Raises DataError."""
    check_format(form)
    check_kinds(redact)
    report, examples = Report(me=me), list[Example]()
    for name, data in files:
        if len(files) == 1:
            report.files += 1
            examples += _examples(data, name, form, report)
        else:
            examples += _one_of_many(partial(_examples, data, name, form), name, report)
    examples = _finished(examples, report, skip_bad, redact, tell)
    if not examples:
        names = ", ".join(name for name, _ in files[:3])
        raise DataError(f"{names or 'this'} has no examples: nothing in it can be learnt")
    return examples


def parse(text: str, name: str, form: str = AUTO) -> list[Example]:
    """Return the examples of a text, as `read` would for a file of this name. Raises DataError with name and line."""
    return read_files([(name, text.encode())], form)


def _finished(
    examples: list[Example], report: Report, skip_bad: bool, redact: Collection[str], tell: Tell
) -> list[Example]:
    """All examples of a reading, its talks' too, without what is to be out of sight. Raises DataError."""
    examples += talks.examples_of(report.talks, report)
    report.refuse_bad(skip_bad)
    examples, lines = redacted(examples, check_kinds(redact), report.writers)
    for sentence in (*report.sentences(), *lines):
        tell(sentence)
    return examples


def _nothing(path: Path, report: Report) -> str:
    what = f"the folder {shown(path)}" if path.is_dir() else shown(path)
    if report.files or not path.is_dir():
        return f"{what} has no examples: nothing in it can be learnt"
    found = ", ".join(f"{n} {why}" for why, n in report.passed.most_common(6)) or "nothing"
    return f"{what} has no {', '.join(SUFFIXES)} files; it has {found}"


def _read_folder(root: Path, form: str, skip: Path | None, report: Report) -> Iterator[Example]:
    """Yield the examples of a folder's files."""
    files = list(files_in(root, skip, report))
    outputs = {lamp.outputs_of(file) for file in files}
    report.names.update(_accounts(files))
    for file in files:
        suffix = file.suffix.lower()
        if suffix in _BY_SUFFIX or suffix in WAYS_OUT:
            if file not in outputs:
                yield from _one_of_many(partial(_read_file, file, form), shown(file), report)
        else:
            report.passed[printable(suffix) or "without a suffix"] += 1


def _accounts(files: Sequence[Path]) -> dict[str, str]:
    """The names of accounts that a Slack export's users.json has, by their ids."""
    names = dict[str, str]()
    for file in files:
        if file.name == "users.json":
            with contextlib.suppress(OSError, ValueError, RecursionError):
                names |= account_names(json.loads(file.read_bytes()))
    return names


def _one_of_many(reading: Callable[[Report], Iterator[Example]], name: str, report: Report) -> list[Example]:
    """Return a file's examples; what can't be read is a bad row, what is empty or in no format passed over."""
    own = report.beside(files=1)
    try:
        found = list(reading(own))
    except Empty:
        report.passed[EMPTY] += 1
        return []
    except (NotRead, UnknownRecord) as error:
        report.passed[PurePath(name).suffix.lower()] += 1
        report.unread.append(str(error))
        return []
    except DataError as error:
        own = report.beside(rows=1, bad=[str(error)])
        found = []
    except OSError as error:
        own = report.beside(rows=1, bad=[f"{name} can't be read: {error.strerror or error}"])
        found = []
    report.add(own)
    return found


def _read_file(file: Path, form: str, report: Report) -> Iterator[Example]:
    """Yield the examples of a file. Raises DataError, OSError."""
    outputs = lamp.outputs_of(file)
    name = shown(file)
    if outputs is None:
        refuse_suffix(file.suffix.lower(), name)  # before it is read: it may be large
        yield from _examples(file.read_bytes(), name, form, report)
    else:
        yield from examples_of(lamp_rows(file, report), name, form, report)


def lamp_users(path: Path) -> list[LampUser]:
    """Return the users of LaMP's files, each with a profile and questions; none where a file is not LaMP's.

    Raises DataError.
    """
    report = Report()
    files = list(files_in(path, None, report)) if path.is_dir() else [path]
    outputs = {lamp.outputs_of(file) for file in files}
    rows = list[tuple[str, Row]]()
    try:
        for file in files:
            if file.suffix.lower() in JsonFile.suffixes and file not in outputs:
                rows += [(f"{shown(file)}:{row.line}", row) for row in lamp_rows(file, report)]
    except OSError as error:
        raise DataError(f"{shown(path)} can't be read: {error.strerror or error}") from error
    if not all(isinstance(row.value, dict) and lamp.Lamp().fits(row.value) for _, row in rows):
        return []
    return lamp.users(rows)


def lamp_rows(file: Path, report: Report) -> Iterator[Row]:
    """Yield the records of LaMP's questions, each with its output. Raises DataError, OSError."""
    outputs, name = lamp.outputs_of(file), shown(file)
    found = lamp.golds(outputs) if outputs else {}
    for row in JsonFile().read(file.read_bytes(), name, report):
        if isinstance(row, Row):
            yield lamp.with_output(row, found, outputs.name, f"{name}:{row.line}") if outputs else row


def _examples(data: bytes, name: str, form: str, report: Report) -> Iterator[Example]:
    """Yield the examples of a file's bytes. Raises DataError."""
    suffix = PurePath(name).suffix.lower()
    refuse_suffix(suffix, name)
    chosen = _BY_SUFFIX.get(suffix, PlainText())
    if isinstance(chosen, (PlainText, Markdown)):
        text = decode(data, name)
        examples = _as_json(text, name, form, report)
        if examples is not None:
            yield from examples
            return
        if form == AUTO:
            refuse_chat_text(text, name)
            if is_whatsapp(text, name):
                report.talks.append(replace(talk_of(text, name, report), name=name))
                return
    if not data.strip(b" \t\r\n\xef\xbb\xbf\xff\xfe\x00"):
        raise Empty(f"{name} is empty")
    found = list(chosen.read(data, name, report))
    rows_found = [each for each in found if isinstance(each, Row)]
    passages = [each for each in found if isinstance(each, Passage)]
    report.talks += [replace(each, name=name) for each in found if isinstance(each, Talk)]
    if form not in (AUTO, "text") and passages:
        raise DataError(f"{name}:1: must be JSON for --format {form}, got plain text")
    report.rows += len(passages)
    yield from examples_of(rows_found, name, form, report)
    for passage in passages:
        yield Example(Prompt(text=""), passage.text, f"{name}:{passage.line}")
    if not found:
        raise Empty(f"{name} is empty")


def _as_json(text: str, name: str, form: str, report: Report) -> list[Example] | None:
    """Return the examples of a text that is JSON of a known format, whatever its file's name; None for other texts.

    Raises DataError, where JSON was asked for.
    """
    if text.lstrip()[:1] not in ("{", "[") or form == "text":
        return None
    own = report.beside()
    try:
        rows = [row for row in JsonFile().read(text.encode(), name, own) if isinstance(row, Row)]
        examples = list(examples_of(rows, name, form, own))
    except DataError:
        if form == AUTO:
            return None
        raise
    if form == AUTO and 2 * len(own.bad) >= own.rows:  # prose that begins with a bracket
        return None
    report.add(own)
    return examples
