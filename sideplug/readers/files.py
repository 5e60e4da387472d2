"""It turns a person's files and folders into examples: `read` takes a path, `parse` a text with a name.

A folder stands for its files, in the order of their names. It does not know what the examples are used for.
Test: pytest tests/readers/test_files.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath

from sideplug.contract.errors import DataError
from sideplug.readers.alpaca import Alpaca
from sideplug.readers.base import Example, Format, Record
from sideplug.readers.conversations import Messages, ShareGPT
from sideplug.readers.json_records import records
from sideplug.readers.lamp import golds, outputs_of
from sideplug.readers.text import Text, plain_text

_RECORDS: tuple[Format, ...] = (Messages(), ShareGPT(), Alpaca(), Text())  # in the order in which they are tried
FORMATS = ("auto", "alpaca", "messages", "sharegpt", "text")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
SUFFIXES = (*JSON_SUFFIXES, ".txt", ".md")


def read(path: Path, form: str = "auto", skip: Path | None = None) -> list[Example]:
    """Return all examples of a file or folder, without those in the folder `skip`. Raises DataError with file and line.

    >>> [example.reply for example in sideplug.read(notes)]
    ['The mill stands by the river.']
    """
    check_format(form)
    if path.is_dir():
        skipped = skip.resolve() if skip else None
        files = sorted(
            file
            for file in path.rglob("*")
            if file.suffix in SUFFIXES and not file.name.startswith(".") and skipped not in file.resolve().parents
        )
        output_files = {outputs_of(file) for file in files}
        files = [file for file in files if file not in output_files]
        if not files:
            raise DataError(f"the folder {path} has no {', '.join(SUFFIXES)} files")
    elif path.exists():
        files = [path]
    else:
        raise DataError(f"there is no file or folder {path}")
    examples = [example for file in files for example in _read_file(file, form)]
    if not examples:
        raise DataError(f"{path} has no examples: it is empty")
    return examples


def parse(text: str, name: str, form: str = "auto") -> list[Example]:
    """Return the examples of a text, as `read` would for a file of this name. Raises DataError with name and line."""
    check_format(form)
    if not text.strip():
        raise DataError(f"{name} is empty")
    suffix = PurePath(name).suffix
    is_plain = (suffix not in JSON_SUFFIXES and text.lstrip()[:1] not in "{[") or (
        form == "text" and suffix in (".txt", ".md")
    )
    if is_plain:
        if form not in ("auto", "text"):
            raise DataError(f"{name}:1: must be JSON for --format {form}, got plain text")
        return list(plain_text(text, name))
    return list(_from_records(text, name, form, None))


def check_format(form: str) -> None:
    """Raises DataError for a format that does not exist."""
    if form not in FORMATS:
        raise DataError(f"--format must be one of {', '.join(FORMATS)}, got {form!r}")


def _read_file(file: Path, form: str) -> list[Example]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: must be UTF-8 text, got the byte 0x{error.object[error.start]:02x}") from error
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror or error}") from error
    outputs = outputs_of(file)
    return list(_from_records(text, str(file), form, outputs)) if outputs else parse(text, str(file), form)


def _from_records(text: str, name: str, form: str, outputs: Path | None) -> Iterator[Example]:
    outputs_by_id = golds(outputs) if outputs else {}
    for line, record in records(text, name):
        where = f"{name}:{line}"
        if not isinstance(record, dict):
            raise DataError(f"{where}: an example must be a JSON object, got {str(record)[:40]!r}")
        if outputs:
            if str(record.get("id")) not in outputs_by_id:
                raise DataError(f"{where}: {outputs.name} has no output for the id {str(record.get('id'))[:40]!r}")
            record = {"input": record.get("input"), "output": outputs_by_id[str(record["id"])]}
        yield from _format_of(record, form, where).examples(record, where)


def _format_of(record: Record, form: str, where: str) -> Format:
    for each in _RECORDS:
        if each.name == form or (form == "auto" and each.fits(record)):
            return each
    keys = ", ".join(map(str, list(record)[:6])) or "none"
    raise DataError(
        f"{where}: an example must have instruction and output, messages, conversations or text; its keys: {keys}"
    )
