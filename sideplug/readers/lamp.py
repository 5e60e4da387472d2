"""The LaMP format: a pair of files, X_questions.json and X_outputs.json in the same folder.

It does not know how examples are made of them. Test: pytest tests/readers/test_files.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sideplug.contract.errors import DataError


def outputs_of(file: Path) -> Path | None:
    """Return the path of X_outputs.json if `file` is X_questions.json and both exist, else None."""
    other = file.with_name(file.name.replace("questions", "outputs"))
    return other if file.suffix == ".json" and other != file and other.is_file() else None


def golds(file: Path) -> dict[str, Any]:
    """Return the outputs of an outputs file by id. Raises DataError."""
    try:
        return {str(gold["id"]): gold["output"] for gold in json.loads(file.read_bytes())["golds"]}
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{file} must be {{"golds": [{{"id", "output"}}, …]}}, as LaMP has it') from error
