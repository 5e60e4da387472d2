"""Output of the commands: it shows progress on the error stream, so that standard output has results only.

On a terminal it shows a bar (rich), elsewhere a plain line every ten seconds. It does not know what the work is.
Test: pytest tests/test_cli.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 10.0


def say(line: str) -> None:
    """Print a line on the error stream."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Yield `show(done, note)`, which shows how much of `total` is done, and a note beside it."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, note="")

            def draw(done: int, note: str = "") -> None:
                bar.update(task, completed=done, note=note)

            yield draw
        return
    start = last = time.monotonic()

    def show(done: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY_S or done >= total:
            last = now
            say(f"{label}: {done} of {total}{'  ' + note if note else ''}  ({now - start:.0f} s)")

    yield show
