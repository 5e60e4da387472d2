"""A run that is cut goes on where it was, and never mixes with another's figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from sideplug.bench.cells import Cells
from sideplug.contract.errors import InputError


def test_a_cell_is_measured_once(tmp_path: Path) -> None:
    path, calls = tmp_path / "cells.jsonl", []

    def measure(*about: int) -> int:
        calls.append(about)
        return sum(about)

    assert Cells(path, {"model": "m"}).measured("a", measure, 1, 2) == 3
    again = Cells(path, {"model": "m"})
    assert again.measured("a", measure, 5) == 3
    assert again.measured("b", measure, 5) == 5
    assert calls == [(1, 2), (5,)]
    assert Cells(path, {"model": "m"}).values == {"a": 3, "b": 5}


def test_a_cell_that_was_being_written_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    cells = Cells(path, {})
    cells.measured("a", lambda: 1)
    cells.measured("b", lambda: 2)
    path.write_bytes(path.read_bytes()[:-8])  # killed in the middle of a line
    again = Cells(path, {})
    assert again.values == {"a": 1}
    again.measured("b", lambda: 3)
    assert Cells(path, {}).values == {"a": 1, "b": 3}


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    Cells(path, {"model": "m"}).measured("a", lambda: 1)
    with pytest.raises(InputError, match="other settings"):
        Cells(path, {"model": "n"})


def test_a_cell_within_a_cell_has_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr("sideplug.bench.cells.time.monotonic", lambda: float(next(now)))
    run = Cells(tmp_path / "run.jsonl", {})
    run.measured("outer", lambda: run.measured("inner", lambda: 1))
    assert run.seconds == 30  # of the outer one, with 10 of the inner one in it
    again = Cells(tmp_path / "run.jsonl", {})
    assert again.seconds == 30
