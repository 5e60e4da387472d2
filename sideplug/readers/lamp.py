"""LaMP's pairs of files: X_questions.json with the outputs in X_outputs.json beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sideplug.contract.errors import DataError


def outputs_of(file: Path) -> Path | None:
    """LaMP's X_outputs.json beside X_questions.json, where this is one."""
    other = file.with_name(file.name.replace("questions", "outputs"))
    return other if file.suffix == ".json" and other != file and other.is_file() else None


def golds(file: Path) -> dict[str, Any]:
    """Outputs by id. Raises DataError."""
    try:
        return {str(gold["id"]): gold["output"] for gold in json.loads(file.read_bytes())["golds"]}
    except OSError as error:
        raise DataError(f"{file} can't be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{file} must be {{"golds": [{{"id", "output"}}, …]}}, as LaMP has it') from error
