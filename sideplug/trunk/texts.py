"""Whose texts a trunk is made of: a folder with a file or folder a writer, or a list that names each with its licence.

    [{"writer": "Herman Melville", "licence": "public domain", "file": "melville.txt"}, …]

It does not know trunks. Test: pytest tests/trunk/test_making.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from sideplug.contract.errors import DataError, InputError
from sideplug.readers import read
from sideplug.training.data import sample
from sideplug.trunk.making import Writer

LEAST = 4  # passages of a writer, two to learn from and two to be judged by


def read_writers(path: Path, licence: str, most: int, seed: int, tell: Callable[[str], None]) -> list[Writer]:
    """The writers of a folder or a list, each with at most so many passages. Raises DataError, InputError."""
    writers = []
    for name, terms, file in _named(path, licence):
        examples = sample(read(file, tell=tell), most, seed)
        if len(examples) < LEAST:
            tell(f"{name} has {len(examples)} passages, fewer than {LEAST}: left out")
            continue
        writers.append(Writer(name, terms, examples))
    return writers


def _named(path: Path, licence: str) -> list[tuple[str, str, Path]]:
    """(name, licence, file) of each writer."""
    if path.is_dir():
        if not licence:
            raise InputError("say under which licence these texts are (--licence), or list them: see the help")
        files = [each for each in sorted(path.iterdir()) if not each.name.startswith(".")]
        return [(each.stem, licence, each) for each in files]
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        named = [(str(row["writer"]), str(row.get("licence", licence)), path.parent / row["file"]) for row in rows]
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f'{path} must be a folder, or a list of {{"writer": …, "licence": …, "file": …}}') from error
    for name, terms, file in named:
        if not terms:
            raise InputError(f"{path} must say under which licence the text of {name} is, or give --licence")
        if not file.exists():
            raise DataError(f"{path} names {file}, which is not there")
    return named
