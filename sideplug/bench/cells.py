"""What a run has measured so far, a line of JSON a cell: a run that was cut goes on where it stopped.

It does not know what a cell holds. Test: pytest tests/bench/test_cells.py
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sideplug.contract.errors import InputError
from sideplug.paths import writing
from sideplug.terminal import say


class Cells:
    """Cells by key, in a file. Raises InputError where that file is of a run with other settings."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        self.expected = 0  # cells of the whole run, for the line that says how far it is
        self.values: dict[str, Any] = {}
        self.seconds = 0.0  # that all of them took, in this run and those before
        if path.exists():
            written = path.read_bytes()
            whole = written[: written.rfind(b"\n") + 1]
            if whole != written:  # killed in the middle of a line
                path.write_bytes(whole)
            lines = [json.loads(line) for line in whole.splitlines()]
            if lines and lines[0] != {"settings": settings}:
                raise InputError(f"{path} is of a run with other settings: delete it, or give another --out")
            self.values = {line["key"]: line["value"] for line in lines[1:]}
            self.seconds = sum(line["seconds"] for line in lines[1:])
        if not path.exists() or not path.stat().st_size:
            self._append({"settings": settings})

    def measured(self, key: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        """Return the cell of this key: what `measure(*arguments)` gave, now or in the run before. Raises Stopped."""
        if key not in self.values:
            of = f" of {self.expected}" if self.expected else ""
            say(f"── {len(self.values) + 1}{of}: {key}")
            start, before = time.monotonic(), self.seconds
            self.values[key] = measure(*arguments)
            seconds = round(time.monotonic() - start - (self.seconds - before), 1)  # cells within it have their own
            self.seconds += seconds
            self._append({"key": key, "seconds": seconds, "value": self.values[key]})
        return self.values[key]

    def _append(self, line: dict[str, Any]) -> None:
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
